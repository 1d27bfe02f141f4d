"""While a shard is on its way to the store, its worker, or its thread, may begin the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from typing import Self

from distributed import secede

from shardyfusion.storage.address import StoreKind
from shardyfusion.writer.shard import ShardResult, Waiting

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


class _Leave:
    """How the task of one shard gives up its place: once, when the shard is first on its way.

    From then on what it holds counts in the room, until it is done: also while it is built again after a failure.
    """

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._give_up = give_up
        self._size: int | None = None

    @contextmanager
    def waiting(self, size: int) -> Generator[None]:
        if self._size is None and _room.enter(size):
            self._size = size
            self._give_up()
        yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._size is not None:
            _room.leave(self._size)


def build_beside_other_tasks(store: StoreKind, work: Callable[[Waiting], ShardResult]) -> ShardResult:
    """Build a shard; on a distributed worker, its task gives its place to another one while it waits for a far store.

    The place is not taken back: what is left to do after an upload is little.
    """
    if not is_far(store):
        return work(lambda _: nullcontext())
    with _Leave(_secede) as leave:
        return work(leave.waiting)


def _secede() -> None:
    if not getattr(_left, "its_pool", False):
        with suppress(ValueError):  # this is no task of a worker
            secede()
            _left.its_pool = True


class ShardThreads:
    """Threads that build the shards of the threaded scheduler, whose tasks cannot give up their place.

    A task waits for its shard no longer than until it is on its way to the store. Once a shard has raised, no other is
    begun.
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

        def build() -> ShardResult:
            with _Leave(leaves.set) as leave:
                return work(leave.waiting)

        future = self._pool.submit(copy_context().run, build)
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


def results_of(built: Sequence[ShardResult | Future[ShardResult]]) -> list[ShardResult]:
    """All of them, once they are there; raises what the first that fails has raised, without waiting for others."""
    futures = [each for each in built if isinstance(each, Future)]
    for future in wait(futures, return_when=FIRST_EXCEPTION).done:
        future.result()
    return [each.result() if isinstance(each, Future) else each for each in built]
