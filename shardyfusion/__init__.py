"""shardyfusion turns a Dask DataFrame into an immutable, sharded key-value snapshot, and serves it.

Write with `shardyfusion.writer.dask.write_hash_sharded`, read with `ShardedReader`. Importing this package loads none
of the optional packages; each is imported where it is first used.
"""

from __future__ import annotations

from shardyfusion.config import ColumnWriteInput, DaskWriteOptions, HashShardedWriteConfig, OutputOptions
from shardyfusion.credentials import EnvCredentialProvider, S3Credentials, StaticCredentialProvider
from shardyfusion.errors import ShardyfusionError
from shardyfusion.limits import RateLimits
from shardyfusion.reader import ShardedReader
from shardyfusion.retry import RetryConfig
from shardyfusion.serde import KeyEncoding, ValueSpec
from shardyfusion.slatedb_adapter import LocalSlateDbFactory, SlateDbFactory, SlateDbReaderFactory
from shardyfusion.sqlite_adapter import SqliteFactory, SqliteReaderFactory
from shardyfusion.type_defs import S3ConnectionOptions

__all__ = [
    "ColumnWriteInput",
    "DaskWriteOptions",
    "EnvCredentialProvider",
    "HashShardedWriteConfig",
    "KeyEncoding",
    "LocalSlateDbFactory",
    "OutputOptions",
    "RateLimits",
    "RetryConfig",
    "S3ConnectionOptions",
    "S3Credentials",
    "ShardedReader",
    "ShardyfusionError",
    "SlateDbFactory",
    "SlateDbReaderFactory",
    "SqliteFactory",
    "SqliteReaderFactory",
    "StaticCredentialProvider",
    "ValueSpec",
]
