"""From an address to its store: the one gate through which this process opens stores."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from shardyfusion.storage.address import StoreAddress
from shardyfusion.storage.contract import ObjectStore
from shardyfusion.storage.local import LocalStore
from shardyfusion.storage.memory import MemoryStore
from shardyfusion.storage.s3 import S3Store

StoreWrapper = Callable[[ObjectStore], ObjectStore]

_wrappers: list[StoreWrapper] = []


def open_store(address: StoreAddress) -> ObjectStore:
    """Open the store that an address names. Sends no request; for S3, credentials are resolved here."""
    store = _open(address)
    for wrap in _wrappers:
        store = wrap(store)
    return store


@contextmanager
def wrapping_stores(wrap: StoreWrapper) -> Generator[None]:
    """Inside the block every store that this process opens, in any thread, is what `wrap` makes of it.

    For tests (faults, delays, counting) and for tracing; nested blocks wrap outwards. What SlateDB stores goes through
    SlateDB's own client and is not seen here.
    """
    _wrappers.append(wrap)
    try:
        yield
    finally:
        _wrappers.remove(wrap)


def _open(address: StoreAddress) -> ObjectStore:
    match address.kind:
        case "s3":
            return S3Store(address)
        case "memory":
            return MemoryStore(address.url)
        case "file":
            return LocalStore(address.path)
