"""Several jobs on one store, one request at a time, in an order that the test decides: any interleaving, repeatable."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from shardyfusion.storage import ObjectStore
from shardyfusion.testing.faults import FaultStore, Killed, StoreCall

_PATIENCE_SECONDS = 60.0


class Job:
    """One job of `Turns`. `pending` is the request that it waits to send; None once it has ended.

    `result` or `error` is what it came to; `killed` says that neither will come.
    """

    def __init__(self, name: str, turns: Turns) -> None:
        self.name = name
        self.pending: StoreCall | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self.killed = False
        self._turns = turns
        self._go = threading.Semaphore(0)

    def store(self, inner: ObjectStore) -> ObjectStore:
        """`inner`, for this job: every request waits for its turn."""
        return FaultStore(inner, before=self._wait)

    def _wait(self, call: StoreCall) -> None:
        if self.killed:  # `finally` blocks of a dead process do nothing any more
            raise Killed(str(call))
        self.pending = call
        self._turns.settled.release()
        if not self._go.acquire(timeout=_PATIENCE_SECONDS):
            raise TimeoutError(f"{self.name} was never given its turn for {call}")
        if self.killed:
            raise Killed(str(call))

    def _run(self, work: Callable[[Job], Any]) -> None:
        try:
            self.result = work(self)
        except BaseException as exc:
            self.error = exc
        finally:
            self.pending, self.ended = None, True
            self._turns.settled.release()

    def resume(self) -> None:
        """Let the job send its pending request and go on to the next one, or to its end."""
        self._go.release()
        self._turns.settle()

    def kill(self) -> None:
        """Stop the job before its pending request, and let nothing of it reach the store again."""
        self.killed = True
        self.resume()


class Turns:
    """Runs jobs in threads, of which one at a time is at work. Not for jobs whose own threads send requests.

    `start` returns when the job waits to send its first request; then `job.resume()` makes one step of it.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.settled = threading.Semaphore(0)

    def start(self, name: str, work: Callable[[Job], Any]) -> Job:
        """Begin `work(job)`, which is to use `job.store(...)` for all its requests."""
        job = Job(name, self)
        self.jobs.append(job)
        threading.Thread(target=job._run, args=(work,), name=name, daemon=True).start()  # pyright: ignore[reportPrivateUsage]
        self.settle()
        return job

    def settle(self) -> None:
        """Wait until the job that is at work waits for its next turn, or has ended."""
        if not self.settled.acquire(timeout=_PATIENCE_SECONDS):
            raise TimeoutError("a job neither sent a request nor ended")

    @property
    def running(self) -> list[Job]:
        return [job for job in self.jobs if not job.ended]
