"""While a shard is on its way to the store, its worker, or its thread, may begin the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Self

from distributed import secede

from shardyfusion.storage.address import StoreKind
from shardyfusion.writer.shard import ShardResult

Waiting = Callable[[int], AbstractContextManager[None]]
"""To be entered, with the bytes that are held, while a shard is on its way to the store."""

MOST_BYTES = 64 * 1024 * 1024
"""Of shards that one process may have on their way beside its tasks; one larger than that goes alone."""

MOST_SHARDS = 16

FAR: tuple[StoreKind, ...] = ("s3",)
"""Stores to wait for. What a disk takes at once is not worth another thread, whose memory is new to it too."""

_MOST_THREADS = 256


def is_far(store: StoreKind) -> bool:
    return store in FAR


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
    if not is_far(store) or not _room.enter(size):
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


class ShardThreads:
    """Threads that build the shards of the threaded scheduler, whose tasks cannot give up their place.

    A task waits for its shard no longer than until it is on its way to the store. After an error nothing new is begun.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="shardyfusion-shard")
        self._failed: Future[ShardResult] | None = None

    def build(self, work: Callable[[Waiting], ShardResult]) -> Future[ShardResult]:
        """Begin to build a shard; returns once it is built, or on its way.

        Raises:
            What building an earlier shard has raised.
        """
        if self._failed is not None:
            self._failed.result()
        leaves = threading.Event()
        future = self._pool.submit(work, partial(_leaving, leaves))
        future.add_done_callback(self._note)
        future.add_done_callback(lambda _: leaves.set())
        leaves.wait()
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        # Not waiting for shards that are being built: after an error a store may take minutes to give up.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _note(self, future: Future[ShardResult]) -> None:
        if not future.cancelled() and future.exception() is not None:
            self._failed = future


@contextmanager
def _leaving(leaves: threading.Event, size: int) -> Generator[None]:
    if not _room.enter(size):
        yield
        return
    leaves.set()
    try:
        yield
    finally:
        _room.leave(size)
