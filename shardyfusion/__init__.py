"""shardyfusion turns a Dask DataFrame into an immutable, sharded key-value snapshot, and serves it.

Write with `shardyfusion.writer.dask.write_hash_sharded`, read with `ShardedReader`. Importing this package loads
nothing else: each name is imported when it is first used, and optional packages where they are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_HOMES = {
    "config": ("ColumnWriteInput", "DaskWriteOptions", "HashShardedWriteConfig", "OutputOptions"),
    "credentials": ("EnvCredentialProvider", "S3Credentials", "StaticCredentialProvider"),
    "errors": ("ShardyfusionError",),
    "limits": ("RateLimits",),
    "reader": ("ShardedReader",),
    "retry": ("RetryConfig",),
    "serde": ("KeyEncoding", "ValueSpec"),
    "slatedb_adapter": ("LocalSlateDbFactory", "SlateDbFactory", "SlateDbReaderFactory"),
    "sqlite_adapter": ("SqliteFactory", "SqliteReaderFactory"),
    "type_defs": ("S3ConnectionOptions",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return importlib.import_module(f"{__name__}.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
