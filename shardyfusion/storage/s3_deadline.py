"""Every S3 call ends in time: it runs in a thread of its own, and whoever asked waits no longer than its deadline.

botocore bounds the time without a byte and not that of a call, so a server that drips would keep one for ever. It has
no public way to bound a call, nor to close a connection whose answer has not begun. Hence the thread, which is given
up: it sends no further request, and if the answer has begun its connection is shut down. What is asked is in `s3.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Lock, Thread, get_ident
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from shardyfusion.errors import StoreUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
P = ParamSpec("P")

SLOWEST_BYTES_PER_SECOND = 64 * 1024
"""A call that moves data at this rate or faster is not given up, however much it is."""

PIECE_BYTES = 256 * 1024
"""What a thread may move before it shows."""

_DOUBLING_PAUSES = 5
_LONGEST_PAUSE = 20.0
_current: ContextVar[_Call[Any]] = ContextVar("shardyfusion_s3_call")


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """The connection options that bound a call, and the rule by which they do; docs/storage.md tells it.

    A call may last `seconds()`. What it moves of an object gives it back the time that this takes at the slowest rate,
    so one that moves is not given up, and one that stops moving is, that long after it did.
    """

    connect_timeout: float
    read_timeout: float
    max_attempts: int

    def seconds(self) -> float:
        """All tries, and the pauses between them, at their longest."""
        tries = self.max_attempts * (self.connect_timeout + self.read_timeout)
        # botocore's standard mode waits up to 1, 2, 4, 8, 16 and from then on 20 seconds between tries.
        pauses = self.max_attempts - 1
        waits = 2.0 ** min(pauses, _DOUBLING_PAUSES) - 1 + _LONGEST_PAUSE * max(pauses - _DOUBLING_PAUSES, 0)
        return tries + waits


class AbandonedCallError(Exception):
    """Ends the thread of a call for which nobody waits any more; never seen by a caller of the store."""


def within(limits: CallLimits, action: str, place: str, work: Callable[[], T]) -> T:
    """What `work` returns or raises, if that comes by the deadline; `place` is where it is done, for the error.

    It runs in the context of the caller. When something interrupts the wait, such as KeyboardInterrupt, the work is
    given up as well.

    Raises:
        StoreUnavailableError: the deadline has passed, and whether the work was or will be done is not known.
    """
    started = time.monotonic()
    call = _Call(limits.seconds(), work)
    thread = Thread(target=copy_context().run, args=(call.run,), name="shardyfusion-s3-call", daemon=True)
    try:
        _start(thread, f"cannot {action} {place}")
        if not call.wait():
            raise StoreUnavailableError(
                f"cannot {action} {place}: it did not end within {time.monotonic() - started:.4g} seconds; "
                f"connect_timeout={limits.connect_timeout:g}, read_timeout={limits.read_timeout:g} and "
                f"max_attempts={limits.max_attempts} allow {limits.seconds():.4g} for what hardly moves; "
                "whether it was done is not known"
            )
        thread.join()  # so that a caller who forks now has no thread of ours
    except BaseException:
        call.abandon()
        raise
    return call.outcome()


def moved(count: int) -> None:
    """Inside a call: that many more bytes of objects have been moved."""
    _current.get().gain(count)


def sets_out(count: int) -> None:
    """Inside a call: that many bytes of objects will move before it shows."""
    _current.get().lengthen(count)


def stops_by(stop: Callable[[], object]) -> None:
    """Inside a call: how to stop it when nobody waits any more. Must not wait itself."""
    _current.get().stops_by(stop)


def heed_deadlines(client: S3Client) -> None:
    """Have the requests of a client heed the deadlines of the calls that they belong to."""
    client.meta.events.register("before-send.s3", _before_request)
    client.meta.events.register("after-call.s3.GetObject", _when_body_begins)


class _Call(Generic[T]):
    """One call: its deadline, what came of it, and how to stop it. A thread of it reads one body at a time."""

    def __init__(self, seconds: float, work: Callable[[], T]) -> None:
        self.abandoned = False
        self._work = work
        self._most = seconds
        self._deadline = time.monotonic() + seconds
        self._bodies: dict[int, Any] = {}
        self._stops: list[Callable[[], object]] = []
        self._lock = Lock()
        self._running = Lock()
        self._running.acquire()
        self._result: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        _current.set(self)
        try:
            self._result = self._work()
        except BaseException as exc:
            self._error = exc
        finally:
            for body in self._bodies.values():
                _close(body)
            self._running.release()

    def wait(self) -> bool:
        """Whether it has ended by the deadline, which moves on as long as bytes do."""
        while not self._running.acquire(timeout=min(max(self._deadline - time.monotonic(), 0), TIMEOUT_MAX)):
            if time.monotonic() >= self._deadline:
                return False
        return True

    def outcome(self) -> T:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # it knows this frame
        return cast("T", self._result)

    def gain(self, count: int) -> None:
        seconds = max(count, 0) / SLOWEST_BYTES_PER_SECOND  # s3transfer takes back what it sends again
        with self._lock:
            self._deadline = min(self._deadline + seconds, time.monotonic() + self._most)

    def lengthen(self, count: int) -> None:
        with self._lock:
            self._most += count / SLOWEST_BYTES_PER_SECOND
            self._deadline += count / SLOWEST_BYTES_PER_SECOND

    def reads(self, body: Any, size: int) -> None:
        with self._lock:
            previous = self._bodies.get(get_ident())
            self._bodies[get_ident()] = body
        if previous is None:  # the first piece of this thread: from then on, one that has moved is followed by another
            self.lengthen(min(size, PIECE_BYTES))
        _close(previous)
        if self.abandoned:
            raise AbandonedCallError

    def stops_by(self, stop: Callable[[], object]) -> None:
        with self._lock:
            self._stops.append(stop)
        if self.abandoned:
            stop()

    def abandon(self) -> None:
        self.abandoned = True
        with self._lock:
            stops, bodies = list(self._stops), list(self._bodies.values())
        for stop in stops:
            stop()
        for body in bodies:
            # Older releases of urllib3 cannot, and one that has been read to its end has no connection any more.
            with suppress(Exception):
                body.shutdown()


def _before_request(event_name: str, **_: object) -> None:
    call = _current.get(None)
    if call and call.abandoned and not event_name.endswith(".AbortMultipartUpload"):
        raise AbandonedCallError


def _when_body_begins(http_response: Any, parsed: Mapping[str, Any], **_: object) -> None:
    call = _current.get(None)
    if call:
        call.reads(http_response.raw, parsed.get("ContentLength", 0))


def _close(body: Any) -> None:
    """The connection too, unless the body was read to its end: s3transfer leaves that to the garbage collection."""
    with suppress(Exception):
        body.close()


class CallThreads(Executor):
    """Runs the parts of a transfer, in the context of who submitted them: they belong to the same call.

    Its threads are daemons. Those of `concurrent.futures` are joined when the interpreter exits, which would then wait
    for a store that drips.
    """

    def __init__(self, max_workers: int) -> None:
        self._most = max_workers
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._closed = False
        self._lock = Lock()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        context = copy_context()

        def run() -> None:
            try:
                result = context.run(fn, *args, **kwargs)
            except BaseException as exc:
                future.set_exception(exc)
            else:
                future.set_result(result)

        with self._lock:
            if self._closed:
                raise RuntimeError("this transfer has ended")
            if len(self._threads) < self._most:
                thread = Thread(target=self._run_tasks, name="shardyfusion-s3-transfer", daemon=True)
                _start(thread, "cannot transfer in parallel")
                self._threads.append(thread)
            self._tasks.put(run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._tasks.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _run_tasks(self) -> None:
        while task := self._tasks.get():
            task()
            del task  # else it is kept until the next one comes


def _start(thread: Thread, otherwise: str) -> None:
    try:
        thread.start()
    except RuntimeError as exc:  # the limit of threads is reached, or the interpreter ends
        raise StoreUnavailableError(f"{otherwise}: {exc}") from exc
