"""While a shard is on its way to the store, its worker may begin the next one."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from distributed import secede

_beside = threading.BoundedSemaphore(1)
"""One upload per process goes on beside its tasks. The next one keeps its task's place, so that no more than one shard
per process is held in memory beyond those that are being built."""

_left = threading.local()


@contextmanager
def beside_other_tasks() -> Generator[None]:
    """On a distributed worker, give the place of this task to another one; elsewhere nothing happens.

    The place is not taken back: what is left to do after an upload is little.
    """
    if not _beside.acquire(blocking=False):
        yield
        return
    try:
        if not getattr(_left, "its_pool", False):
            with suppress(ValueError):  # this is no task of a worker
                secede()
                _left.its_pool = True
        yield
    finally:
        _beside.release()
