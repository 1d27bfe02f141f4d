"""`shard_retry` and `rate_limits` at work in a whole write."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from shardyfusion import (
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    RateLimits,
    RetryConfig,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.errors import ShardCoverageError, ShardWriteError, ShardyfusionError
from shardyfusion.shard_contract import DbAdapter, SealedShard, ShardTarget
from shardyfusion.storage import StoreAddress
from shardyfusion.writer.dask import write_hash_sharded
from tests.writer.frames import contents, frame_of, make_rows, object_names, parquet_frame

BINARY = ColumnWriteInput("key", ValueSpec.binary_col("v"))
QUICK = RetryConfig(max_attempts=3, initial_backoff_seconds=0.001)


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A factory around SQLite whose adapters go through `wrap`."""

    wrap: Any
    backend = "sqlite"
    max_key_bytes = None
    min_key_bytes = 0

    def check(self, address: StoreAddress) -> None:
        SqliteFactory().check(address)

    def open(self, target: ShardTarget) -> DbAdapter:
        return self.wrap(SqliteFactory().open(target), target)


class Adapter:
    """Passes everything on; subclasses disturb it."""

    def __init__(self, inner: DbAdapter, target: ShardTarget) -> None:
        self.inner, self.target = inner, target

    def write_arrow(self, batch: Any) -> None:
        self.inner.write_arrow(batch)

    def seal(self) -> SealedShard:
        return self.inner.seal()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.inner.close()


def simple() -> Any:
    return frame_of(key=list(range(20)), v=[f"v{i}" for i in range(20)])


def test_a_passing_error_is_retried_in_a_directory_of_its_own(config: HashShardedWriteConfig) -> None:
    class FailsTwice(Adapter):
        def seal(self) -> SealedShard:
            sealed = self.inner.seal()
            if "attempt=02" not in self.target.directory and self.target.db_id == 1:
                raise ShardWriteError("the network blinked after the upload")
            return sealed

    config = dataclasses.replace(config, adapter_factory=Wrapped(FailsTwice), shard_retry=QUICK)
    result = write_hash_sharded(simple(), config, BINARY)
    assert result.attempts == {0: 1, 1: 3, 2: 1}
    assert {winner.db_id: winner.attempt for winner in result.winners} == {0: 0, 1: 2, 2: 0}
    assert len(contents(config.s3_prefix)) == 20
    left = {name.rpartition("/")[0] for name in object_names(config.s3_prefix) if name.startswith("shards/")}
    assert left == {winner.directory for winner in result.winners}, "the losing attempts are gone"


def test_retries_end_and_the_error_names_the_shard(config: HashShardedWriteConfig) -> None:
    tries: list[str] = []

    class AlwaysFails(Adapter):
        def seal(self) -> SealedShard:
            tries.append(self.target.directory)
            raise ShardWriteError("no")

    config = dataclasses.replace(config, num_dbs=1, adapter_factory=Wrapped(AlwaysFails), shard_retry=QUICK)
    with pytest.raises(ShardWriteError) as caught:
        write_hash_sharded(simple(), config, BINARY)
    assert caught.value.facts["db_id"] == 0
    assert caught.value.facts["run_id"]
    assert len(set(tries)) == 3


def test_a_bug_is_not_retried(config: HashShardedWriteConfig) -> None:
    tries: list[int] = []

    class Buggy(Adapter):
        def seal(self) -> SealedShard:
            tries.append(self.target.db_id)
            raise ShardyfusionError("a bug")

    config = dataclasses.replace(config, num_dbs=1, adapter_factory=Wrapped(Buggy), shard_retry=QUICK)
    with pytest.raises(ShardyfusionError, match="a bug"):
        write_hash_sharded(simple(), config, BINARY)
    assert tries == [0]


def test_an_engine_that_loses_a_row_is_caught(config: HashShardedWriteConfig) -> None:
    class LosesOne(Adapter):
        def write_arrow(self, batch: Any) -> None:
            self.inner.write_arrow(batch.slice(1))

    with pytest.raises(ShardCoverageError, match="after sealing"):
        write_hash_sharded(simple(), dataclasses.replace(config, adapter_factory=Wrapped(LosesOne)), BINARY)
    assert not [name for name in object_names(config.s3_prefix) if name.startswith("commits/")]


@pytest.mark.parametrize("sort", [False, True])
def test_adapters_receive_keys_in_ascending_order(sort: bool, config: HashShardedWriteConfig, tmp_path: Path) -> None:
    seen: dict[int, list[bytes]] = {}

    class Records(Adapter):
        def write_arrow(self, batch: Any) -> None:
            seen.setdefault(self.target.db_id, []).extend(batch.column("key").to_pylist())
            self.inner.write_arrow(batch)

    rows = make_rows(2_000)
    write_hash_sharded(
        parquet_frame(rows, tmp_path / "in", 4),
        dataclasses.replace(config, adapter_factory=Wrapped(Records)),
        ColumnWriteInput("id", ValueSpec.binary_col("payload")),
        DaskWriteOptions(sort_within_partitions=sort),
    )
    assert sorted(seen) == [0, 1, 2]
    assert all(keys == sorted(keys) for keys in seen.values())
    assert sum(map(len, seen.values())) == len(rows)


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (RateLimits(max_writes_per_second=10), 1.0),  # 20 rows, 10 of which the first second admits
        (RateLimits(max_write_bytes_per_second=120), 0.75),  # 20 keys of 8 bytes and values of 2 or 3: 210 bytes
    ],
)
def test_the_rate_limit_holds_and_the_wait_is_reported(
    limits: RateLimits, seconds: float, config: HashShardedWriteConfig
) -> None:
    config = dataclasses.replace(config, num_dbs=1, rate_limits=limits)
    started = time.monotonic()
    result = write_hash_sharded(simple(), config, BINARY)
    assert result.rows == 20
    assert result.seconds.rate_limit_waits == pytest.approx(seconds, abs=0.2)
    assert time.monotonic() - started >= result.seconds.rate_limit_waits
    assert result.winners[0].waited_seconds == result.seconds.rate_limit_waits
    unlimited = write_hash_sharded(simple(), dataclasses.replace(config, rate_limits=RateLimits()), BINARY)
    assert unlimited.seconds.rate_limit_waits == 0


def test_each_shard_has_a_limit_of_its_own(config: HashShardedWriteConfig) -> None:
    """20 rows at 5 a second: one shard would wait for 3 s; four of 3 to 7 rows do not wait for each other."""
    config = dataclasses.replace(config, num_dbs=4, rate_limits=RateLimits(max_writes_per_second=5))
    result = write_hash_sharded(simple(), config, BINARY)
    waits = {winner.rows: winner.waited_seconds for winner in result.winners}
    assert sum(winner.rows for winner in result.winners) == 20
    for rows, waited in waits.items():
        assert max(0.0, rows / 5 - 1) - 0.3 <= waited <= max(0.0, rows / 5 - 1) + 0.01
    assert max(waits) > 6, "a shard that had to wait"
    assert result.seconds.rate_limit_waits == pytest.approx(sum(winner.waited_seconds for winner in result.winners))


def test_one_row_larger_than_a_second_s_bytes_is_written(config: HashShardedWriteConfig) -> None:
    config = dataclasses.replace(config, num_dbs=1, rate_limits=RateLimits(max_write_bytes_per_second=50_000))
    big = frame_of(key=[1, 2], v=["x" * 60_000, "y"])
    result = write_hash_sharded(big, config, BINARY)
    assert result.rows == 2
    assert 0 < result.seconds.rate_limit_waits < 1
