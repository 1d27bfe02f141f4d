"""Stop a job for good before and after everything durable that it does, one place at a time.

Seen are the requests of every store that the job opens, the steps of adapters from a `WatchedFactory`, and what Python
does to files below the given directories (`local_steps.py`).
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, Self

from shardyfusion.shard_contract import DbAdapter, SealedShard, ShardTarget
from shardyfusion.storage import ObjectStore, wrapping_stores
from shardyfusion.testing.factories import FactoryOver
from shardyfusion.testing.faults import FaultStore, Killed, StoreCall
from shardyfusion.testing.local_steps import observing_local_steps

if TYPE_CHECKING:
    import pyarrow as pa

EXIT_STATUS = 137
"""What a process that was stopped at its point exits with."""

When = Literal["before", "after"]
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class KillPoint:
    """A place where a job can be stopped: just before or just after one step of it.

    `number` counts them from 1, in the order in which the job gets there. `action` is a request to a store (`create`),
    a step of an adapter (`seal`), or a system call on a local file (`os.link`), and `name` what it is done to. A local
    step has no point after it: the next point finds it done.
    """

    number: int
    when: When
    action: str
    name: str

    def __str__(self) -> str:
        return f"#{self.number} {self.when} {self.action} {self.name}"


class _Watch:
    """One execution of a job. Once it is stopped, every step that it still tries raises `Killed` instead."""

    def __init__(self, stop_at: int | None, on_stop: Callable[[], object]) -> None:
        self.points: list[KillPoint] = []
        self.stopped: KillPoint | None = None
        self._stop_at = stop_at
        self._on_stop = on_stop
        self._lock = threading.Lock()

    def reach(self, when: When, action: str, name: str) -> None:
        with self._lock:
            if self.stopped is None:
                point = KillPoint(number=len(self.points) + 1, when=when, action=action, name=name)
                self.points.append(point)
                if point.number != self._stop_at:
                    return
                self.stopped = point
                self._on_stop()
        raise Killed(f"stopped at {self.stopped}")

    @contextmanager
    def step(self, action: str, name: str) -> Generator[None]:
        self.reach("before", action, name)
        yield
        self.reach("after", action, name)

    def watch_store(self, store: ObjectStore) -> ObjectStore:
        def around(when: When) -> Callable[[StoreCall], None]:
            return lambda call: self.reach(when, call.verb, call.name)

        return FaultStore(store, before=around("before"), after=around("after"))


_active: _Watch | None = None


@contextmanager
def _watching(
    directories: Iterable[Path | str], stop_at: int | None, on_stop: Callable[[], object]
) -> Generator[_Watch]:
    global _active
    if _active is not None:
        raise RuntimeError("another job is being watched already")
    watch = _Watch(stop_at, on_stop)
    paths = [Path(directory) for directory in directories]
    with (
        wrapping_stores(watch.watch_store),
        observing_local_steps(paths, lambda event, name: watch.reach("before", event, name)),
    ):
        _active = watch
        try:
            yield watch
        finally:
            _active = None


def count_kill_points(job: Work, *, directories: Iterable[Path | str] = ()) -> tuple[KillPoint, ...]:
    """Run `job` to its end and return every point where it could have been stopped, in order.

    The job has to do the same each time, so give it a scheduler of one thread. `directories` are those whose files are
    of interest: the prefix, if it is local, and the scratch directory.
    """
    with _watching(directories, None, lambda: None) as watch:
        job()
    return tuple(watch.points)


def kill_at(number: int, job: Work, *, directories: Iterable[Path | str] = ()) -> KillPoint:
    """Run `job` and stop it at a point: there, and at every step that any thread of it tries later, `Killed` is raised.

    So its `finally` blocks change nothing any more, as if the process had died. What SlateDB's own client has begun may
    still end. `AssertionError` if the job never gets to the point.
    """
    with _watching(directories, number, lambda: None) as watch:
        try:
            job()
        except (Exception, Killed):
            if watch.stopped is None:
                raise
    if watch.stopped is None:
        raise AssertionError(f"the job ended after {len(watch.points)} points and never got to #{number}")
    return watch.stopped


def exit_at(number: int, job: Work, *, directories: Iterable[Path | str] = ()) -> NoReturn:
    """Run `job` and end this process at a point, at once and without any cleaning up, with `EXIT_STATUS`."""
    with _watching(directories, number, lambda: os._exit(EXIT_STATUS)) as watch:
        job()
    raise AssertionError(f"the job ended after {len(watch.points)} points and never got to #{number}")


def kill_child_at(number: int, job: Work, *, directories: Iterable[Path | str] = ()) -> None:
    """Run `job` in a forked child that ends at a point with `os._exit`. `AssertionError` if it ends otherwise.

    Fork from a process that has no threads and has not used SlateDB.
    """
    child = os.fork()
    if not child:
        try:
            exit_at(number, job, directories=directories)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != EXIT_STATUS:
        raise AssertionError(f"the job was to stop at #{number} and ended with exit status {code}; see its output")


@dataclass(frozen=True)
class WatchedFactory(FactoryOver):
    """An adapter factory whose adapters' steps are kill points. Outside of a watched job it does what `inner` does.

    Use it for the reruns, too: a run id belongs to one request, and the factory is part of that.
    """

    def open(self, target: ShardTarget) -> DbAdapter:
        watch = _active
        if watch is None:
            return self.inner.open(target)
        shard = f"shard {target.db_id}"
        watch.reach("before", "open", shard)
        adapter = _WatchedAdapter(self.inner.open(target), watch, shard)
        with adapter.released_when_killed():
            watch.reach("after", "open", shard)
        return adapter


class _WatchedAdapter:
    """Invariant: when its job is stopped, the adapter behind is closed, which by then reaches no store and no file."""

    def __init__(self, inner: DbAdapter, watch: _Watch, shard: str) -> None:
        self._inner = inner
        self._watch = watch
        self._shard = shard

    @contextmanager
    def released_when_killed(self) -> Generator[None]:
        try:
            yield
        except Killed:
            with suppress(Exception, Killed):
                self._inner.close()
            raise

    @contextmanager
    def _step(self, action: str) -> Generator[None]:
        with self.released_when_killed(), self._watch.step(action, self._shard):
            yield

    def write_arrow(self, batch: pa.RecordBatch) -> None:
        with self._step("write_arrow"):
            self._inner.write_arrow(batch)

    def write_batch(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        with self._step("write_batch"):
            self._inner.write_batch(pairs)

    def seal(self) -> SealedShard:
        with self._step("seal"):
            return self._inner.seal()

    def db_bytes(self) -> int:
        return self._inner.db_bytes()

    def close(self) -> None:
        with self._step("close"):
            self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
