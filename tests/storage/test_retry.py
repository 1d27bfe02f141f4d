"""Retrying: what is repeated, how often, and after which pauses."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.errors import ConfigValidationError, ShardWriteError, StoreUnavailableError, ValueEncodingError
from shardyfusion.retry import RetryConfig, call_with_retry


class Flaky:
    """Fails `failures` times, then returns the number of the attempt."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error = failures, error
        self.attempts: list[int] = []
        self.pauses: list[float] = []

    def __call__(self, attempt: int) -> int:
        self.attempts.append(attempt)
        if len(self.attempts) <= self.failures:
            raise self.error
        return attempt

    def run(self, config: RetryConfig, seed: int = 0) -> int:
        return call_with_retry(self, config, sleep=self.pauses.append, rng=random.Random(seed))


def test_it_returns_the_first_success() -> None:
    action = Flaky(2, StoreUnavailableError("reset"))
    assert action.run(RetryConfig()) == 2
    assert action.attempts == [0, 1, 2]
    assert len(action.pauses) == 2


def test_the_last_error_is_raised_as_it_is() -> None:
    error = ShardWriteError("upload failed", db_id=3)
    action = Flaky(9, error)
    with pytest.raises(ShardWriteError) as caught:
        action.run(RetryConfig(max_attempts=4))
    assert caught.value is error
    assert action.attempts == [0, 1, 2, 3]
    assert len(action.pauses) == 3


@pytest.mark.parametrize("error", [ValueEncodingError("bad"), ZeroDivisionError(), KeyboardInterrupt()])
def test_what_cannot_get_better_is_not_repeated(error: Exception) -> None:
    action = Flaky(1, error)
    with pytest.raises(type(error)):
        action.run(RetryConfig())
    assert action.attempts == [0]
    assert action.pauses == []


@given(
    attempts=st.integers(1, 30),
    initial=st.floats(0, 5),
    multiplier=st.floats(1, 1e6),
    cap=st.floats(5, 60),
    seed=st.integers(0, 99),
)
def test_pauses_stay_below_a_growing_ceiling(
    attempts: int, initial: float, multiplier: float, cap: float, seed: int
) -> None:
    action = Flaky(attempts - 1, StoreUnavailableError("reset"))
    config = RetryConfig(
        max_attempts=attempts, initial_backoff_seconds=initial, multiplier=multiplier, max_backoff_seconds=cap
    )
    action.run(config, seed)
    ceiling = initial
    for pause in action.pauses:
        assert 0 <= pause <= ceiling
        ceiling = min(ceiling * multiplier, cap)


def test_pauses_are_jittered() -> None:
    runs = []
    for seed in range(20):
        action = Flaky(1, StoreUnavailableError("reset"))
        action.run(RetryConfig(), seed)
        runs += action.pauses
    assert len(set(runs)) == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"initial_backoff_seconds": -1},
        {"multiplier": 0.5},
        {"max_backoff_seconds": 0.1},
        {"initial_backoff_seconds": float("nan")},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigValidationError, match=next(iter(wrong))):
        RetryConfig(**wrong)
