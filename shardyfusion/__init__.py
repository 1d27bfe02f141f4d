"""shardyfusion turns a Dask DataFrame into an immutable, sharded key-value snapshot, and serves it.

Write with `write_hash_sharded` or `write_cel_sharded` of `shardyfusion.writer.dask`, read with `ShardedReader`.
Importing this package loads nothing else: each name is imported when it is first used, and optional packages where they
are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardyfusion.config import (
        CelShardedWriteConfig,
        ColumnWriteInput,
        DaskWriteOptions,
        HashShardedWriteConfig,
        OutputOptions,
    )
    from shardyfusion.credentials import EnvCredentialProvider, S3Credentials, StaticCredentialProvider
    from shardyfusion.errors import ShardyfusionError, UnknownRoutingTokenError
    from shardyfusion.limits import RateLimits
    from shardyfusion.reader import ShardedReader
    from shardyfusion.retry import RetryConfig
    from shardyfusion.routing.cel.sharding import CelColumn, cel_sharding, cel_sharding_by_columns
    from shardyfusion.routing.cel.tree import CelType
    from shardyfusion.serde import KeyEncoding, ValueSpec
    from shardyfusion.slatedb_adapter import LocalSlateDbFactory, SlateDbFactory, SlateDbReaderFactory
    from shardyfusion.sqlite_adapter import SqliteFactory, SqliteReaderFactory
    from shardyfusion.type_defs import S3ConnectionOptions

__all__ = [
    "CelColumn",
    "CelShardedWriteConfig",
    "CelType",
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
    "UnknownRoutingTokenError",
    "ValueSpec",
    "cel_sharding",
    "cel_sharding_by_columns",
]

_HOMES = {
    "config": (
        "CelShardedWriteConfig",
        "ColumnWriteInput",
        "DaskWriteOptions",
        "HashShardedWriteConfig",
        "OutputOptions",
    ),
    "credentials": ("EnvCredentialProvider", "S3Credentials", "StaticCredentialProvider"),
    "errors": ("ShardyfusionError", "UnknownRoutingTokenError"),
    "limits": ("RateLimits",),
    "reader": ("ShardedReader",),
    "retry": ("RetryConfig",),
    "routing.cel.sharding": ("CelColumn", "cel_sharding", "cel_sharding_by_columns"),
    "routing.cel.tree": ("CelType",),
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
