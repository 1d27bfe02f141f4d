"""Readers: point lookups and scans on a published snapshot. Nothing here ever writes to the store.

How shards are opened is in `generation.py`, which shard a key belongs to in `router.py`; engines live in the adapters.
"""

from __future__ import annotations

from shardyfusion.reader.details import ShardDetails, SnapshotInfo
from shardyfusion.reader.reader import ShardedReader

__all__ = ["ShardDetails", "ShardedReader", "SnapshotInfo"]
