"""Small builds to be stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import dask
import dask.dataframe as dd
import pandas as pd

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    LocalSlateDbFactory,
    OutputOptions,
    SlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.shard_contract import DbAdapterFactory
from shardyfusion.testing import WatchedFactory
from shardyfusion.writer.dask import write_hash_sharded
from shardyfusion.writer.result import BuildResult
from tests.faults.kill_proxy import ReroutedFactory

KEYS = range(40)
ENGINES: Mapping[str, DbAdapterFactory] = {
    "sqlite": SqliteFactory(),
    "slatedb": ReroutedFactory(SlateDbFactory()),
    "local_slatedb": LocalSlateDbFactory(),
}


def rows_of(version: str) -> dict[int, bytes]:
    return {key: f"{version} {key}".encode() for key in KEYS}


@cache
def frame(version: str) -> dd.DataFrame:
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_pandas(pd.DataFrame({"key": KEYS, "v": list(rows_of(version).values())}), npartitions=2)


@dataclass(frozen=True)
class BuildJob:
    """A build of four shards whose values tell the version. `scratch` is for the shards while they are built."""

    prefix: str
    engine: str
    version: str
    run_id: str
    scratch: str

    def __call__(self) -> BuildResult:
        config = HashShardedWriteConfig(
            num_dbs=4,
            s3_prefix=self.prefix,
            adapter_factory=WatchedFactory(ENGINES[self.engine]),
            run_id=self.run_id,
            output=OutputOptions(local_root=self.scratch),
        )
        with dask.config.set(scheduler="synchronous"):
            return write_hash_sharded(frame(self.version), config, ColumnWriteInput("key", ValueSpec.binary_col("v")))

    @property
    def directories(self) -> list[str]:
        """Whose files are of interest."""
        return [self.scratch, *([self.prefix] if "://" not in self.prefix else [])]
