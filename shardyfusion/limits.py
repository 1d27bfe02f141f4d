"""Keeping a writer below so many rows and bytes per second.

One limiter limits whoever shares it; how a limit for a whole job is divided among its shards is the writer's affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from types import NoneType
from typing import TYPE_CHECKING

from shardyfusion.type_defs import require, require_type

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

_LONGEST_SLEEP = 60.0


@dataclass(frozen=True, kw_only=True)
class RateLimits:
    """Upper bounds on what is written to a shard; None means no bound."""

    max_writes_per_second: float | None = None
    """Rows per second."""
    max_write_bytes_per_second: float | None = None
    """Bytes of keys and values per second."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require_type(value, (int, float, NoneType), name)
            require(
                value is None or 0 < value < float("inf"),
                f"{name} must be a positive number, not {value!r}; leave it out for no limit",
            )


class RateLimiter:
    """Two token buckets that hold one second's worth each and are full at first. Safe to share between threads.

    A bucket may go into debt: whoever takes more than there is waits until the debt is paid, so a request of any size
    waits in proportion and the sustained rate holds. (Waiting for a bucket to fill up *before* taking from it would
    never end for a request larger than the bucket.)

    Invariant: within any t seconds, at most `(t + 1) * rate` are let through, not counting the last request.
    """

    def __init__(
        self,
        limits: RateLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._sleep = sleep
        self._lock = Lock()
        self._waited_seconds = 0.0
        rates = (limits.max_writes_per_second, limits.max_write_bytes_per_second)
        now = clock()
        self._buckets = tuple(_Bucket(rate, now) if rate is not None else None for rate in rates)

    @property
    def waited_seconds(self) -> float:
        """How long callers were held back so far, in total."""
        return self._waited_seconds

    def acquire(self, rows: int, nbytes: int) -> None:
        """Wait until `rows` rows of `nbytes` bytes together may be written."""
        if self._buckets == (None, None):
            return
        with self._lock:
            now = self._clock()
            waits = [b.take(n, now) for b, n in zip(self._buckets, (rows, nbytes), strict=True) if b]
            seconds = max(waits)
            self._waited_seconds += seconds
        while seconds > 0:  # in slices: a tiny rate asks for more than one sleep can take
            self._sleep(min(seconds, _LONGEST_SLEEP))
            seconds -= _LONGEST_SLEEP

    def paced(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """A batch of keys and values in slices, each given out when it may be written.

        A slice is what one second admits, at most; a row that is more by itself comes alone, and waits in proportion.
        """
        if self._buckets == (None, None) or len(batch) == 0:
            yield batch
            return
        rows, nbytes = self._limits.max_writes_per_second, self._limits.max_write_bytes_per_second
        ends = _payload_ends(batch)
        start, before = 0, 0
        while start < len(batch):
            stop = len(batch) if rows is None else min(len(batch), start + max(1, int(rows)))
            if nbytes is not None:
                stop = max(start + 1, min(stop, int(ends.searchsorted(before + nbytes, side="right"))))
            self.acquire(stop - start, int(ends[stop - 1]) - before)
            yield batch.slice(start, stop - start)
            start, before = stop, int(ends[stop - 1])


def _payload_ends(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Bytes of keys and values up to and with each row."""
    import numpy as np
    import pyarrow.compute as pc

    lengths = [pc.call_function("binary_length", [column]).to_numpy(zero_copy_only=False) for column in batch.columns]
    return np.cumsum(np.sum(lengths, axis=0, dtype=np.int64), dtype=np.int64)


class _Bucket:
    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._tokens = rate
        self._updated = now

    def take(self, amount: int, now: float) -> float:
        """Take `amount` tokens and return how many seconds it takes until the bucket is out of debt."""
        self._tokens = min(self._rate, self._tokens + (now - self._updated) * self._rate) - amount
        self._updated = now
        return max(0.0, -self._tokens / self._rate)
