"""The same job on every backend, store and scheduler: 20,000 rows in, the same 20,000 rows out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pytest

from shardyfusion import (
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    LocalSlateDbFactory,
    RetryConfig,
    ShardedReader,
    SlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.errors import ShardWriteError, ValueEncodingError
from shardyfusion.writer.dask import write_hash_sharded
from tests.writer.frames import Rows, contents, make_rows, parquet_frame
from tests.writer.schedulers import scheduler

ROWS = 20_000
BACKENDS = {"sqlite": SqliteFactory(), "slatedb": SlateDbFactory(), "slatedb-local": LocalSlateDbFactory()}


@pytest.fixture(scope="module")
def rows() -> Rows:
    return make_rows(ROWS)


@pytest.fixture(scope="module")
def source(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("input")
    parquet_frame(rows, directory, partitions=6)
    return directory


@pytest.fixture(params=["local", "s3"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("s3_prefix" if request.param == "s3" else "tmp_path"))


@pytest.mark.parametrize("scheduler_name", ["synchronous", "threads", "processes", "distributed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_write_then_read_back_exactly(
    backend: str, scheduler_name: str, prefix: str, rows: Rows, source: Path, request: pytest.FixtureRequest
) -> None:
    config = HashShardedWriteConfig(num_dbs=5, s3_prefix=prefix, adapter_factory=BACKENDS[backend])
    with scheduler(scheduler_name, request):
        result = write_hash_sharded(
            dd.read_parquet(source), config, ColumnWriteInput("id", ValueSpec.binary_col("payload"))
        )
    assert (result.rows, result.input_rows, len(result.winners)) == (ROWS, ROWS, 5)
    assert contents(prefix) == {key.to_bytes(8, "big"): value for key, value in rows.items()}
    with ShardedReader(prefix) as reader:
        assert reader.multi_get([*rows, 5]) == {**rows, 5: None}


class ApiError(Exception):
    """Survives pickling, but not unpickling: as exceptions of many client libraries."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def test_an_encoder_error_that_cannot_be_unpickled_still_comes_home(
    source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def encode(row: Any) -> bytes:
        raise ApiError("no such user", 404)

    config = HashShardedWriteConfig(num_dbs=2, s3_prefix=tmp_path / "snap", adapter_factory=SqliteFactory())
    with scheduler("distributed", request), pytest.raises(ValueEncodingError, match="ApiError: no such user") as caught:
        write_hash_sharded(dd.read_parquet(source), config, ColumnWriteInput("id", ValueSpec.callable_encoder(encode)))
    assert caught.value.facts["raised_at"].startswith(__file__)


@pytest.mark.parametrize(
    ("exchange", "scheduler_name"),
    [
        ("tasks", "synchronous"),
        ("tasks", "threads"),
        ("tasks", "distributed"),
        ("p2p", "distributed"),
        ("disk", "synchronous"),
        ("disk", "threads"),
        ("disk", "processes"),
        ("disk", "distributed"),
    ],
)
def test_every_exchange_places_rows_exactly(
    exchange: str,
    scheduler_name: str,
    rows: Rows,
    source: Path,
    tmp_path: Path,
    counted,
    request: pytest.FixtureRequest,
) -> None:
    ddf, evaluations = counted(dd.read_parquet(source))
    config = HashShardedWriteConfig(num_dbs=7, s3_prefix=tmp_path / "snap", adapter_factory=SqliteFactory())
    with scheduler(scheduler_name, request):
        write_hash_sharded(
            ddf,
            config,
            ColumnWriteInput("id", ValueSpec.binary_col("payload")),
            DaskWriteOptions(shuffle=exchange),
        )
    assert contents(tmp_path / "snap") == {key.to_bytes(8, "big"): value for key, value in rows.items()}
    assert evaluations() == ddf.npartitions, "the input is evaluated once"


@pytest.mark.parametrize("retries", [0, 1])
def test_distributed_runs_a_failed_task_again_as_often_as_asked(
    retries: int, source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    marker = tmp_path / "failed-once"

    @dataclass(frozen=True)
    class FailsOnce(SqliteFactory):
        def open(self, target: Any) -> Any:
            if not marker.exists():
                marker.touch()
                raise ShardWriteError("the network blinked")
            return super().open(target)

    config = HashShardedWriteConfig(
        num_dbs=1,
        s3_prefix=tmp_path / "snap",
        adapter_factory=FailsOnce(),
        shard_retry=RetryConfig(max_attempts=1),
    )
    job = (dd.read_parquet(source), config, ColumnWriteInput("id", ValueSpec.binary_col("payload")))
    with scheduler("distributed", request):
        if retries:
            assert write_hash_sharded(*job, DaskWriteOptions(retries=retries)).rows == ROWS
        else:
            with pytest.raises(ShardWriteError, match="blinked"):
                write_hash_sharded(*job, DaskWriteOptions(retries=retries))
