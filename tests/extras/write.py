"""Write a small snapshot: `write.py BACKEND PREFIX`."""

from __future__ import annotations

import sys

import dask.dataframe as dd
import pandas as pd

from shardyfusion import ColumnWriteInput, HashShardedWriteConfig, SlateDbFactory, SqliteFactory, ValueSpec
from shardyfusion.writer.dask import write_hash_sharded

if __name__ == "__main__":
    backend, prefix = sys.argv[1:]
    frame = pd.DataFrame({"id": range(100), "name": [f"name {i}" for i in range(100)]})
    factory = SqliteFactory() if backend == "sqlite" else SlateDbFactory()
    config = HashShardedWriteConfig(num_dbs=3, s3_prefix=prefix, adapter_factory=factory)
    write_hash_sharded(
        dd.from_pandas(frame, npartitions=2), config, ColumnWriteInput("id", ValueSpec.binary_col("name"))
    )
