"""Two threads that go one step at a time, in an order that a test decides."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Chooser = Callable[[int, int], int]
"""(step so far, how many threads wait) -> which of them goes next."""


class Turns:
    """Runs functions in threads of their own, of which exactly one is ever at work.

    A function calls `wait()` where another may come in between: at each request, or less often than
    `shardyfusion.testing.Turns` does. What it sends from further threads of its own does not wait.
    """

    def __init__(self) -> None:
        self._back = threading.Semaphore(0)
        self._mine = threading.local()

    def wait(self) -> None:
        """A point at which the other may go first; nothing in threads that `run` did not start."""
        go: threading.Semaphore | None = getattr(self._mine, "go", None)
        if go is not None:
            self._back.release()
            go.acquire()

    def run(self, functions: Sequence[Callable[[], Any]], choose: Chooser) -> list[Any]:
        """What each function returned; what one raised is raised here, once all have ended."""
        results: list[Any] = [None] * len(functions)
        errors: list[BaseException] = []
        gates = [threading.Semaphore(0) for _ in functions]

        def body(number: int) -> None:
            self._mine.go = gates[number]
            gates[number].acquire()
            try:
                results[number] = functions[number]()
            except BaseException as exc:
                errors.append(exc)
            finally:
                alive.remove(number)
                self._back.release()

        alive = list(range(len(functions)))
        threads = [threading.Thread(target=body, args=(number,), daemon=True) for number in alive]
        for thread in threads:
            thread.start()
        step = 0
        while alive:
            gates[alive[choose(step, len(alive))]].release()
            self._back.acquire()
            step += 1
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


class Order:
    """Chooses as `beginning` says, and then lets a thread go on as long as it can. Remembers what it chose."""

    def __init__(self, beginning: Sequence[int]) -> None:
        self._beginning = beginning
        self.taken: list[int] = []
        self._waiting: list[int] = []

    def __call__(self, step: int, waiting: int) -> int:
        self._waiting.append(waiting)
        self.taken.append(self._beginning[step] if step < len(self._beginning) else self._unchanged(step))
        return self.taken[-1]

    def __repr__(self) -> str:
        return "order " + "".join(map(str, self.taken))

    def _unchanged(self, step: int) -> int:
        return min(self.taken[step - 1], self._waiting[step] - 1) if step else 0

    def following(self, most_switches: int | None) -> Order | None:
        """The next one, depth first: the last free choice that was not changed yet is."""
        for step in reversed(range(len(self.taken))):
            if self._waiting[step] == 2 and self.taken[step] == self._unchanged(step):
                beginning = [*self.taken[:step], 1 - self.taken[step]]
                if most_switches is None or self._switches(beginning) <= most_switches:
                    return Order(beginning)
        return None

    def _switches(self, beginning: Sequence[int]) -> int:
        """How often a thread was left although it could have gone on."""
        steps = range(1, len(beginning))
        return sum(self._waiting[i] == 2 and beginning[i] != beginning[i - 1] for i in steps)


def all_orders(most_switches: int | None = None) -> Iterator[Order]:
    """Every order of two threads; with `most_switches` only those that leave a thread which could go on at most so often.

    Each must have been used in one run before the next is taken: what comes next depends on what there was to choose.
    """
    order: Order | None = Order([])
    while order is not None:
        yield order
        order = order.following(most_switches)


class RandomOrder:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = random.Random(seed)

    def __call__(self, step: int, waiting: int) -> int:
        return self._rng.randrange(waiting)

    def __repr__(self) -> str:
        return f"seed {self._seed}"
