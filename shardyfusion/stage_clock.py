"""Where the time of a task goes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager


class StageClock:
    """Seconds spent in each named stage of one task, by one thread. Stages do not overlap: an inner one stops the
    outer one's clock while it lasts."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @property
    def seconds(self) -> Mapping[str, float]:
        return dict(self._seconds)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def _turn(self) -> None:
        """Book the time until now on the innermost stage."""
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


def add_up(clocks: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Seconds by stage over several tasks."""
    total: dict[str, float] = {}
    for seconds in clocks:
        for name, spent in seconds.items():
            total[name] = total.get(name, 0.0) + spent
    return total
