"""Which way rows take to their shard: chosen by size, the same snapshot whichever is taken, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import dask
import dask.dataframe as dd
import pytest
from distributed import Client, LocalCluster

from shardyfusion import (
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    OutputOptions,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.errors import ConfigValidationError, ShardWriteError, ValueEncodingError
from shardyfusion.writer import partition_files
from shardyfusion.writer.dask import exchange, frame, write_hash_sharded
from shardyfusion.writer.dask.exchange import FAR_DIRECT_TASKS, choose_exchange, shards_at_once
from tests.faults.small_disks import fill, small_disk
from tests.writer.frames import Rows, contents, make_rows, parquet_frame
from tests.writer.schedulers import scheduler

PAYLOAD = ColumnWriteInput("id", ValueSpec.binary_col("payload"))
DIRECT = exchange.DIRECT_TASKS


@pytest.fixture(scope="module")
def rows() -> Rows:
    return make_rows(3_000)


@pytest.fixture(scope="module")
def source(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> dd.DataFrame:
    return parquet_frame(rows, tmp_path_factory.mktemp("input"), 5)


@pytest.fixture
def local_root(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
def config(tmp_path: Path, local_root: Path) -> HashShardedWriteConfig:
    return HashShardedWriteConfig(
        num_dbs=4,
        s3_prefix=tmp_path / "snap",
        adapter_factory=SqliteFactory(),
        output=OutputOptions(local_root=local_root),
    )


@pytest.mark.parametrize("scheduler_name", ["synchronous", "distributed"])
def test_all_ways_lead_to_the_same_shards(
    scheduler_name: str, source: dd.DataFrame, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ways = ["auto", "direct", "disk", "tasks", *(["p2p"] if scheduler_name == "distributed" else [])]
    results = {}
    with scheduler(scheduler_name, request):
        for way in ways:
            config = HashShardedWriteConfig(num_dbs=4, s3_prefix=tmp_path / way, adapter_factory=SqliteFactory())
            result = write_hash_sharded(source, config, PAYLOAD, DaskWriteOptions(shuffle=way))
            results[way] = [(w.db_id, w.rows, w.row_digest, w.key_min, w.key_max) for w in result.winners]
    assert len(results["direct"]) == 4
    assert all(result == results["direct"] for result in results.values())


class Tasks:
    """Workers in this process find it by its name."""

    built: ClassVar[list[Sequence[int]]] = []
    build = staticmethod(frame._build_from_files)


def noted_build(shards: Sequence[int], *more: Any) -> Any:
    Tasks.built.append(shards)
    return Tasks.build(shards, *more)


def test_many_shards_are_built_several_by_a_task(
    source: dd.DataFrame, config: HashShardedWriteConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: Rows,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """As many as leave enough tasks for each thread; on the way to a far store, and without a cluster, one."""
    Tasks.built = []
    monkeypatch.setattr(exchange, "TASKS_OF_A_THREAD", 2)
    monkeypatch.setattr(frame, "_build_from_files", noted_build)
    config = replace(config, num_dbs=9)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster),
        dask.config.set(scheduler=None),
    ):
        assert [shards_at_once(9, "file"), shards_at_once(9, "s3"), shards_at_once(3, "file")] == [2, 1, 1]
        result = write_hash_sharded(source, config, PAYLOAD, DaskWriteOptions(shuffle="disk"))
    assert sorted(map(list, Tasks.built)) == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert [winner.db_id for winner in result.winners] == list(range(9))
    assert len(contents(config.s3_prefix)) == len(rows)
    with scheduler("threads", request):
        assert shards_at_once(10_000, "file") == 1


@pytest.mark.parametrize(
    ("name", "partitions", "num_dbs", "way"),
    [
        ("threads", 100, DIRECT["threads"] // 100, "direct"),
        ("threads", 100, DIRECT["threads"] // 100 + 1, "disk"),
        ("synchronous", 1, DIRECT["synchronous"] + 1, "disk"),
        ("processes", 1, 1, "disk"),
        ("distributed", 10, DIRECT["distributed"] // 10, "direct"),
        ("distributed", 10, DIRECT["distributed"] // 10 + 1, "disk"),
    ],
)
def test_auto_chooses_by_size(
    name: str, partitions: int, num_dbs: int, way: str, local_root: Path, request: pytest.FixtureRequest
) -> None:
    with scheduler(name, request):
        assert choose_exchange("auto", partitions, num_dbs, local_root) == way
    assert not local_root.exists() or list(local_root.iterdir()) == []


@pytest.fixture(scope="module")
def far_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a cluster whose workers cannot write where this process makes its temporary directories."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.run(_hide_temporary_directories)
        yield client


def _hide_temporary_directories() -> None:
    """In a worker: what this test's process makes for an exchange is not to be seen."""
    real = Path.touch

    def touch(self: Path, *args: Any, **kwargs: Any) -> None:
        if "shardyfusion-exchange-" in str(self):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        real(self, *args, **kwargs)

    Path.touch = touch


def test_workers_that_share_no_disk(
    far_client: Client, source: dd.DataFrame, config: HashShardedWriteConfig, rows: Rows
) -> None:
    with dask.config.set(scheduler=None):
        assert choose_exchange("auto", 10, DIRECT["distributed"] // 10 + 1, None) == "direct"
        assert choose_exchange("auto", 10, FAR_DIRECT_TASKS // 10 + 1, None) == "p2p"
        with pytest.raises(ConfigValidationError, match=r"shuffle='disk' needs a directory.*output\.local_root"):
            write_hash_sharded(source, config, PAYLOAD, DaskWriteOptions(shuffle="disk"))
        write_hash_sharded(source, config, PAYLOAD)
    assert len(contents(config.s3_prefix)) == len(rows)


def test_files_of_an_exchange_are_gone_afterwards(
    source: dd.DataFrame, config: HashShardedWriteConfig, local_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[Path] = []
    real = partition_files.store_partition

    def store(encoded: Any, directory: Path) -> Any:
        done = real(encoded, directory)
        assert done.path.parent.parent == local_root
        stored.append(done.path)
        return done

    monkeypatch.setattr("shardyfusion.writer.dask.frame.store_partition", store)
    with dask.config.set(scheduler="threads"):
        write_hash_sharded(source, config, PAYLOAD, DaskWriteOptions(shuffle="disk"))
    assert len(stored) == source.npartitions
    assert list(local_root.iterdir()) == []


def test_bad_data_is_told_as_ever_and_leaves_no_files(
    source: dd.DataFrame, config: HashShardedWriteConfig, local_root: Path
) -> None:
    def encode(row: Any) -> bytes:
        raise LookupError("no such user")

    spec = ColumnWriteInput("id", ValueSpec.callable_encoder(encode))
    with pytest.raises(ValueEncodingError, match="no such user"):
        write_hash_sharded(source, config, spec, DaskWriteOptions(shuffle="disk"))
    assert list(local_root.iterdir()) == []


def test_a_file_that_is_lost_fails_the_write_and_names_it(
    source: dd.DataFrame, config: HashShardedWriteConfig, local_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = partition_files.load_rows

    def load(stored: Any, db_id: int) -> Any:
        stored[0].path.unlink(missing_ok=True)
        return real(stored, db_id)

    monkeypatch.setattr("shardyfusion.writer.dask.frame.load_rows", load)
    with pytest.raises(ShardWriteError, match=rf"{local_root}/shardyfusion-exchange-.*DaskWriteOptions\.shuffle"):
        write_hash_sharded(source, config, PAYLOAD, DaskWriteOptions(shuffle="disk"))
    assert list(local_root.iterdir()) == []


def test_a_full_disk_is_told(source: dd.DataFrame, config: HashShardedWriteConfig, tmp_path: Path, rows: Rows) -> None:
    options = DaskWriteOptions(shuffle="disk")
    with small_disk(tmp_path / "disk", 2_048) as disk:
        full = HashShardedWriteConfig(
            num_dbs=4,
            s3_prefix=config.s3_prefix,
            adapter_factory=SqliteFactory(),
            output=OutputOptions(local_root=disk),
        )
        ballast = fill(disk, leave=8 * 1024)
        with pytest.raises(ShardWriteError, match=rf"{disk}/shardyfusion-exchange-.*the disk is full; free some space"):
            write_hash_sharded(source, full, PAYLOAD, options)
        ballast.unlink()
        assert list(disk.iterdir()) == []
        write_hash_sharded(source, full, PAYLOAD, options)
        assert list(disk.iterdir()) == []
    assert len(contents(config.s3_prefix)) == len(rows)


@pytest.mark.parametrize("way", ["direct", "disk", "tasks"])
def test_the_result_says_where_the_time_went(way: Any, source: dd.DataFrame, config: HashShardedWriteConfig) -> None:
    with dask.config.set(scheduler="synchronous"):
        seconds = write_hash_sharded(source, config, PAYLOAD, DaskWriteOptions(shuffle=way)).seconds
    assert set(seconds.encode_stages) == {"keys", "route", "values", "digest", "split"}
    assert set(seconds.shard_stages) >= {"gather", "sort", "build", "digest", "seal"}
    assert all(spent > 0 for spent in (*seconds.encode_stages.values(), *seconds.shard_stages.values()))
    assert seconds.encode_tasks + seconds.shard_tasks <= seconds.build, "one thread: parts are no more than the whole"
