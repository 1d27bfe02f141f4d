"""Object stores: S3, a local directory, or memory, all behind `ObjectStore`."""

from __future__ import annotations

from shardyfusion.storage.address import StoreAddress
from shardyfusion.storage.contract import ObjectInfo, ObjectStore, StoredObject
from shardyfusion.storage.local import LocalStore
from shardyfusion.storage.memory import MemoryStore
from shardyfusion.storage.s3 import S3Store

__all__ = [
    "LocalStore",
    "MemoryStore",
    "ObjectInfo",
    "ObjectStore",
    "S3Store",
    "StoreAddress",
    "StoredObject",
    "open_store",
]


def open_store(address: StoreAddress) -> ObjectStore:
    """Open the store that an address names. Sends no request; for S3, credentials are resolved here."""
    match address.kind:
        case "s3":
            return S3Store(address)
        case "memory":
            return MemoryStore(address.url)
        case "file":
            return LocalStore(address.path)
