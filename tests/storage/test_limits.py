"""Rate limits on a clock that only moves when somebody sleeps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.errors import ConfigValidationError
from shardyfusion.limits import RateLimiter, RateLimits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def rows(value_sizes: list[int]) -> pa.RecordBatch:
    """A batch with a value of each of these sizes, and keys of 8 bytes."""
    keys = [number.to_bytes(8, "big") for number in range(len(value_sizes))]
    columns = [pa.array(keys, pa.large_binary()), pa.array([b"v" * size for size in value_sizes], pa.large_binary())]
    return pa.record_batch(columns, names=["key", "value"])


def payload(batch: pa.RecordBatch) -> int:
    return sum(len(value) for column in batch.columns for value in column.to_pylist())


def limiter(clock: Clock, **limits: float | None) -> RateLimiter:
    return RateLimiter(RateLimits(**limits), clock=clock, sleep=clock.sleep)


def test_without_limits_nobody_waits() -> None:
    clock = Clock()
    free = limiter(clock)
    free.acquire(10**9, 10**12)
    assert [len(part) for part in free.paced(rows([10] * 50_000))] == [50_000]
    assert (clock.now, free.waited_seconds) == (0, 0)


def test_the_first_second_is_free_and_the_rest_is_paid_for() -> None:
    clock = Clock()
    limited = limiter(clock, max_writes_per_second=100)
    limited.acquire(100, 0)
    assert clock.now == 0
    limited.acquire(50, 0)
    assert clock.now == pytest.approx(0.5)
    clock.now += 60
    limited.acquire(100, 0)  # an idle minute earns one second's worth, no more
    limited.acquire(100, 0)
    assert clock.now == pytest.approx(61.5)
    assert limited.waited_seconds == pytest.approx(1.5)


def test_a_request_larger_than_a_second_waits_in_proportion() -> None:
    clock = Clock()
    limited = limiter(clock, max_writes_per_second=10)
    for _ in range(5):
        limited.acquire(70, 0)
    assert clock.now == pytest.approx((5 * 70 - 10) / 10)


def test_the_tighter_of_two_limits_decides() -> None:
    clock = Clock()
    limited = limiter(clock, max_writes_per_second=1000, max_write_bytes_per_second=100)
    for _ in range(10):
        limited.acquire(10, 100)
    assert clock.now == pytest.approx(9)


@given(st.floats(0.1, 1e6), st.lists(st.tuples(st.integers(0, 10**5), st.floats(0, 10)), max_size=30))
def test_the_sustained_rate_holds(rate: float, requests: list[tuple[int, float]]) -> None:
    """Whatever the requests and the idle times, no more than (elapsed + 1 s) * rate rows are let through."""
    clock = Clock()
    limited = limiter(clock, max_writes_per_second=rate)
    total = 0
    for rows, idle in requests:
        clock.now += idle
        limited.acquire(rows, 0)
        total += rows
        assert total <= (clock.now + 1) * rate * (1 + 1e-9)


def test_threads_share_one_limit() -> None:
    """Eight threads on a clock that stands still: each waits for its own turn, so the waits add up."""
    waits: list[float] = []
    shared = RateLimiter(RateLimits(max_writes_per_second=10), clock=lambda: 0.0, sleep=waits.append)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: shared.acquire(10, 0), range(8)))
    assert sorted(waits) == pytest.approx([1, 2, 3, 4, 5, 6, 7])
    assert shared.waited_seconds == pytest.approx(28)


@given(
    st.lists(st.integers(0, 300), max_size=60),
    st.none() | st.floats(0.4, 50),
    st.none() | st.floats(1, 1000),
)
def test_batches_are_cut_to_what_one_second_admits(sizes: list[int], per_second: Any, bytes_per_second: Any) -> None:
    """Whatever the rows: nothing is lost, no slice is more than a second's worth unless it is one row, and when a
    slice is given out no more than (elapsed + 1 s) x rate has been, not counting that last row."""
    clock = Clock()
    limited = limiter(clock, max_writes_per_second=per_second, max_write_bytes_per_second=bytes_per_second)
    batch, given_rows, given_bytes = rows(sizes), 0, 0
    parts: list[pa.RecordBatch] = []
    for part in limited.paced(batch.slice(len(batch) // 3)):
        parts.append(part)
        size = payload(part)
        assert len(part) == 1 or len(part) <= (per_second or len(part))
        assert len(part) == 1 or size <= (bytes_per_second or size)
        given_rows, given_bytes = given_rows + len(part), given_bytes + size
        assert given_rows - 1 <= (clock.now + 1) * (per_second or 1e9) * (1 + 1e-9)
        assert given_bytes - (size if len(part) == 1 else 0) <= (clock.now + 1) * (bytes_per_second or 1e9) * (1 + 1e-9)
    assert pa.Table.from_batches(parts, batch.schema).equals(pa.Table.from_batches([batch.slice(len(batch) // 3)]))
    assert limited.waited_seconds == pytest.approx(clock.now)


def test_bytes_are_those_of_keys_and_values_alone() -> None:
    clock = Clock()
    batch = rows([92] * 30)  # with keys of 8 bytes: 3,000 bytes
    assert [len(part) for part in limiter(clock, max_write_bytes_per_second=1000).paced(batch)] == [10, 10, 10]
    assert clock.now == pytest.approx(2)


@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan")])
def test_wrong_limits_are_refused(wrong: float) -> None:
    for name in ("max_writes_per_second", "max_write_bytes_per_second"):
        with pytest.raises(ConfigValidationError, match=name):
            RateLimits(**{name: wrong})
