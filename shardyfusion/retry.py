"""Trying again: how often, after which pause, and for which errors.

Retries of single S3 requests are botocore's own (`S3ConnectionOptions.max_attempts`); those of Dask tasks are Dask's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shardyfusion.errors import ShardyfusionError
from shardyfusion.type_defs import require, require_type

T = TypeVar("T")


class UniformRandom(Protocol):
    """The module `random`, or a seeded `random.Random`."""

    def uniform(self, a: float, b: float) -> float: ...


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """How often a failed action is repeated, and how long to wait before each repetition.

    The n-th pause is a random time up to `initial_backoff_seconds * multiplier**n`, at most `max_backoff_seconds`, so
    that workers which failed together do not come back together.
    """

    max_attempts: int = 3
    """Tries in all, the first included; 1 turns retrying off."""
    initial_backoff_seconds: float = 0.5
    multiplier: float = 2.0
    max_backoff_seconds: float = 20.0

    def __post_init__(self) -> None:
        require_type(self.max_attempts, int, "max_attempts")
        for name in ("initial_backoff_seconds", "multiplier", "max_backoff_seconds"):
            require_type(getattr(self, name), (int, float), name)
        require(self.max_attempts >= 1, f"max_attempts must be at least 1, not {self.max_attempts}")
        require(
            self.initial_backoff_seconds >= 0,
            f"initial_backoff_seconds must not be negative, but is {self.initial_backoff_seconds}",
        )
        require(self.multiplier >= 1, f"multiplier must be at least 1, not {self.multiplier}")
        require(
            self.max_backoff_seconds >= self.initial_backoff_seconds,
            f"max_backoff_seconds {self.max_backoff_seconds} must not be below initial_backoff_seconds",
        )


def call_with_retry(
    action: Callable[[int], T],
    config: RetryConfig,
    *,
    sleep: Callable[[float], None] = time.sleep,
    rng: UniformRandom = random,
) -> T:
    """Call `action` with the number of the attempt, from 0, until it returns or raises what is not retryable.

    The error of the last attempt is raised as it is. Anything but a `ShardyfusionError` marked `retryable`, such as a
    bug in a user's encoder, is raised at once.
    """
    ceiling = config.initial_backoff_seconds
    for attempt in range(config.max_attempts - 1):
        try:
            return action(attempt)
        except ShardyfusionError as exc:
            if not exc.retryable:
                raise
        sleep(rng.uniform(0, ceiling))
        ceiling = min(ceiling * config.multiplier, config.max_backoff_seconds)
    return action(config.max_attempts - 1)
