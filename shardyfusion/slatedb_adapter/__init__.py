"""Shards as SlateDB databases, written and read in bulk through its async binding.

Writing needs `shardyfusion[writer-dask-slatedb]`, reading `shardyfusion[read-slatedb]`.
"""

from __future__ import annotations

from shardyfusion.slatedb_adapter.reader import SlateDbReaderFactory
from shardyfusion.slatedb_adapter.writer import LocalSlateDbFactory, SlateDbFactory

__all__ = ["LocalSlateDbFactory", "SlateDbFactory", "SlateDbReaderFactory"]
