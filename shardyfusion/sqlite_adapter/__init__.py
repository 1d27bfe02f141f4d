"""Shards as single SQLite files.

Writing needs `shardyfusion[writer-dask-sqlite]`, reading only the standard library.
"""

from __future__ import annotations

from shardyfusion.sqlite_adapter.reader import SqliteReaderFactory
from shardyfusion.sqlite_adapter.writer import SqliteFactory

__all__ = ["SqliteFactory", "SqliteReaderFactory"]
