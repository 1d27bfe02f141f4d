"""Write a small snapshot: `write.py BACKEND PREFIX`. `cel` is SQLite, sharded by an expression."""

from __future__ import annotations

import sys

import dask.dataframe as dd
import pandas as pd

from shardyfusion import (
    CelShardedWriteConfig,
    ColumnWriteInput,
    HashShardedWriteConfig,
    SlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.writer.dask import write_cel_sharded, write_hash_sharded

EXPRESSION = "string(key).matches('^[0-4]') ? 0 : key % 2 + 1"

if __name__ == "__main__":
    backend, prefix = sys.argv[1:]
    frame = pd.DataFrame({"id": range(100), "name": [f"name {i}" for i in range(100)]})
    ddf, how = dd.from_pandas(frame, npartitions=2), ColumnWriteInput("id", ValueSpec.binary_col("name"))
    if backend == "cel":
        by_expression = CelShardedWriteConfig(
            s3_prefix=prefix, cel_expr=EXPRESSION, cel_columns={"key": "int"}, adapter_factory=SqliteFactory()
        )
        write_cel_sharded(ddf, by_expression, how)
    else:
        factory = SqliteFactory() if backend == "sqlite" else SlateDbFactory()
        write_hash_sharded(ddf, HashShardedWriteConfig(num_dbs=3, s3_prefix=prefix, adapter_factory=factory), how)
