"""Writes under one run id that fail at a chosen point, and what they leave."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pytest

from shardyfusion import ColumnWriteInput, DaskWriteOptions, HashShardedWriteConfig, ShardedReader, ValueSpec
from shardyfusion.commits import CommitLog, CommitRecord
from shardyfusion.errors import PublishManifestError, StoreAccessError, StoreUnavailableError
from shardyfusion.layout import SEAL
from shardyfusion.testing import StoreCall
from shardyfusion.testing.faults import WRITES
from shardyfusion.writer.dask import BuildResult, write_hash_sharded
from shardyfusion.writer.seals import Seal
from tests.protocol.tiny_writes import PUTS, faults, first, names_below, store_of
from tests.writer.frames import frame_of

INPUT = ColumnWriteInput("key", ValueSpec.binary_col("v"))
KEYS = range(40)
SHARDS = 4


def rows(**changed: bytes) -> dict[int, bytes]:
    """`k7=b"x"` gives key 7 another value."""
    return {key: changed.get(f"k{key}", b"v%d" % key) for key in KEYS}


def frame(values: dict[int, bytes]) -> dd.DataFrame:
    return frame_of(key=list(values), v=list(values.values()))


def stored(values: dict[int, bytes]) -> dict[bytes, bytes]:
    return {key.to_bytes(8, "big"): value for key, value in values.items()}


def unreadable() -> dd.DataFrame:
    """The same request over an input that must not be looked at."""

    def fail(part: pd.DataFrame) -> pd.DataFrame:
        raise AssertionError("the input was evaluated")

    ddf = frame(rows())
    return ddf.map_partitions(fail, meta=ddf._meta)


def log_of(config: HashShardedWriteConfig) -> CommitLog:
    return CommitLog(store_of(str(config.s3_prefix)))


def head_of(config: HashShardedWriteConfig) -> CommitRecord:
    head = log_of(config).state().head
    assert head is not None
    return head


def other_write(config: HashShardedWriteConfig, values: dict[int, bytes] | None = None, **changes: Any) -> BuildResult:
    return write_hash_sharded(frame(values or rows()), replace(config, run_id=None, **changes), INPUT)


def shard_writes(calls: Iterable[StoreCall]) -> list[str]:
    """What was written below `shards/`; removing losers does not count."""
    return [call.name for call in calls if call.verb in WRITES - {"delete"} and call.name.startswith("shards/")]


def shards_written(calls: Iterable[StoreCall]) -> set[int]:
    return {int(name.split("/")[2].removeprefix("db=")) for name in shard_writes(calls)}


def deny(call: StoreCall) -> None:
    raise StoreAccessError(f"{call}: HTTP 403")


def no_answer(call: StoreCall) -> None:
    raise StoreUnavailableError(f"{call}: no answer")


def seal_all_and_fail(config: HashShardedWriteConfig, ddf: dd.DataFrame | None = None, **options: Any) -> None:
    """A driver that dies when every shard is sealed, and before that is recorded anywhere else."""
    with faults(first(10, PUTS["outcome"], deny)), pytest.raises(PublishManifestError):
        write_hash_sharded(frame(rows()) if ddf is None else ddf, config, INPUT, DaskWriteOptions(**options))


def seal_names(config: HashShardedWriteConfig) -> list[str]:
    return [name for name in shard_names(config) if name.endswith(SEAL)]


def shard_names(config: HashShardedWriteConfig) -> list[str]:
    return names_below(str(config.s3_prefix), f"shards/run_id={config.run_id}/")


def read_seal(config: HashShardedWriteConfig, db_id: int) -> Seal:
    name = next(name for name in seal_names(config) if f"/db={db_id:05d}/" in name)
    return Seal.decode(store_of(str(config.s3_prefix)).get(name).body, name)


def shard_of(config: HashShardedWriteConfig, key: int) -> int:
    with ShardedReader(config.s3_prefix) as reader:
        return reader.route_key(key)
