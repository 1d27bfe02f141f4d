"""Object stores: S3, a local directory, or memory, all behind `ObjectStore`."""

from __future__ import annotations

from shardyfusion.storage.address import StoreAddress
from shardyfusion.storage.contract import ObjectInfo, ObjectStore, PendingUpload, StoredObject
from shardyfusion.storage.local import LocalStore
from shardyfusion.storage.memory import MemoryStore
from shardyfusion.storage.opening import open_store, wrapping_stores
from shardyfusion.storage.s3 import S3Store

__all__ = [
    "LocalStore",
    "MemoryStore",
    "ObjectInfo",
    "ObjectStore",
    "PendingUpload",
    "S3Store",
    "StoreAddress",
    "StoredObject",
    "open_store",
    "wrapping_stores",
]
