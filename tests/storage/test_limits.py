"""Rate limits on a clock that only moves when somebody sleeps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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


def limiter(clock: Clock, **limits: float) -> RateLimiter:
    return RateLimiter(RateLimits(**limits), clock=clock, sleep=clock.sleep)


def test_without_limits_nobody_waits() -> None:
    clock = Clock()
    free = limiter(clock)
    free.acquire(10**9, 10**12)
    assert (clock.now, free.waited_seconds, free.batch_rows(50_000)) == (0, 0, 50_000)


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


@pytest.mark.parametrize(("rate", "rows"), [(10, 10), (0.5, 1), (2.9, 2), (1e9, 5000)])
def test_batches_are_at_most_a_second_s_worth(rate: float, rows: int) -> None:
    assert limiter(Clock(), max_writes_per_second=rate).batch_rows(5000) == rows


@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan")])
def test_wrong_limits_are_refused(wrong: float) -> None:
    for name in ("max_writes_per_second", "max_write_bytes_per_second"):
        with pytest.raises(ConfigValidationError, match=name):
            RateLimits(**{name: wrong})
