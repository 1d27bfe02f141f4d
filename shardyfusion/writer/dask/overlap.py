"""While a shard is on its way to the store, its worker may begin the next one."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from distributed import secede

from shardyfusion.storage.address import StoreKind

MOST_BYTES = 64 * 1024 * 1024
"""Of shards that one process may have on their way beside its tasks; one larger than that goes alone."""

MOST_SHARDS = 16

FAR: tuple[StoreKind, ...] = ("s3",)
"""Stores to wait for. What a disk takes at once is not worth a new thread, whose memory is new to it too."""


class Room:
    """What goes on beside the tasks of a process. For what does not fit in, a task keeps its place, so that no more
    than `MOST_BYTES`, or one shard, is held in memory beyond the shards that are being built."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: list[int] = []

    def enter(self, size: int) -> bool:
        with self._lock:
            if self._sizes and (len(self._sizes) >= MOST_SHARDS or sum(self._sizes) + size > MOST_BYTES):
                return False
            self._sizes.append(size)
            return True

    def leave(self, size: int) -> None:
        with self._lock:
            self._sizes.remove(size)


_room = Room()
_left = threading.local()


@contextmanager
def beside_other_tasks(store: StoreKind, size: int) -> Generator[None]:
    """On a distributed worker, give the place of this task, which holds so many bytes, to another one while it waits
    for a far store; elsewhere nothing happens.

    The place is not taken back: what is left to do after an upload is little.
    """
    if store not in FAR or not _room.enter(size):
        yield
        return
    try:
        if not getattr(_left, "its_pool", False):
            with suppress(ValueError):  # this is no task of a worker
                secede()
                _left.its_pool = True
        yield
    finally:
        _room.leave(size)
