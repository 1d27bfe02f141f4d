"""The only way into SlateDB: one background event loop per process, deadlines, fork checks and translated errors.

What is asked of SlateDB is in `writer.py` and `reader.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from shardyfusion.errors import ForkedProcessError, ShardTimeoutError, ShardUnavailableError, ShardWriteError

_T = TypeVar("_T")

_ANSWER_SECONDS = 1.0
"""How long a loop that missed a deadline gets to show that it is alive."""

_LOOK_SECONDS = 5.0
"""How often it is looked whether a call that takes long can still succeed."""

_lock = threading.Lock()
_process: int | None = None
"""The process that first used SlateDB. Its threads do not exist in a forked child, where every call would hang."""
_running: _LoopThread | None = None


class _LoopThread:
    """An event loop in a daemon thread. It closes its loop itself, so nothing is left over for the interpreter."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="shardyfusion-slatedb", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(_cancel_all())
        finally:
            self.loop.close()

    def is_alive(self) -> bool:
        answered = threading.Event()
        self.loop.call_soon_threadsafe(answered.set)
        return answered.wait(_ANSWER_SECONDS)

    def stop(self, *, wait_seconds: float) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(wait_seconds)


async def _cancel_all() -> None:
    await asyncio.sleep(0)  # let what was only just submitted begin: a coroutine that never did would warn
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """Calls into SlateDB on behalf of one shard, which every error names, with the `endpoint` of its store if given.

    `failure` is what SlateDB's errors, its panics and a missed deadline become. `impasse` is asked while a call takes
    long: why it cannot end, or None. (SlateDB tries again for ever where a disk is full.)
    """

    url: str
    db_id: int
    deadline_seconds: float
    failure: type[ShardWriteError] | type[ShardUnavailableError]
    endpoint: str | None = None
    impasse: Callable[[], str | None] = lambda: None

    def run(
        self,
        verb: str,
        call: Callable[[], Awaitable[_T]],
        *,
        deadline_seconds: float | None = None,
        if_late: Callable[[], None] | None = None,
    ) -> _T:
        """Await `call()` on the background loop, at most for the deadline. Then it is cancelled; or, with `if_late`, it
        goes on for as long as it takes, and `if_late` is called after it in a thread of its own."""
        with self.calling(verb):
            thread = _loop_thread()

            async def awaited() -> _T:
                return await call()

            coroutine = awaited()
            try:
                future = asyncio.run_coroutine_threadsafe(coroutine, thread.loop)
            except RuntimeError:
                coroutine.close()
                raise self._failed(f"cannot {verb} {self._where}: the interpreter is shutting down") from None
            limit = self.deadline_seconds if deadline_seconds is None else deadline_seconds
            try:
                return self._answer(future, limit)
            except TimeoutError as exc:
                if if_late is None:
                    future.cancel()
                else:
                    future.add_done_callback(lambda done: None if done.cancelled() else _in_a_thread(if_late))
                _replace_if_stuck(thread)
                late = ShardTimeoutError if self.failure is ShardUnavailableError else self.failure
                message = f"cannot {verb} {self._where}: {exc}"
                raise late(message, db_id=self.db_id) from exc
            except CancelledError:
                raise self._failed(f"cannot {verb} {self._where}: the interpreter is shutting down") from None
            except BaseException:
                future.cancel()
                raise

    def _answer(self, future: Future[_T], limit: float) -> _T:
        """The result, or a `TimeoutError` that says why there will be none."""
        until = time.monotonic() + limit
        while True:
            left = until - time.monotonic()
            try:
                return future.result(min(left, _LOOK_SECONDS))
            except TimeoutError:
                if future.done():  # SlateDB's own
                    raise
            reason = self.impasse()
            if reason is not None:
                raise TimeoutError(f"SlateDB cannot go on: {reason}")
            if left <= _LOOK_SECONDS:
                raise TimeoutError(f"SlateDB gave no answer in {limit:g} seconds")

    @contextmanager
    def calling(self, verb: str) -> Generator[None]:
        """For SlateDB's synchronous calls: refuse in a forked child, and translate what is raised."""
        _claim_process(self)
        import slatedb.uniffi

        binding: Any = slatedb.uniffi  # its Error is assembled in a way that type checkers do not follow
        try:
            yield
        except (binding.Error, binding.InternalError) as exc:
            raise self._failed(f"cannot {verb} {self._where}: SlateDB says: {exc}") from exc

    @property
    def _where(self) -> str:
        return f"{self.url} at {self.endpoint}" if self.endpoint else self.url

    def _failed(self, message: str) -> ShardWriteError | ShardUnavailableError:
        return self.failure(message, db_id=self.db_id)


def _in_a_thread(call: Callable[[], None]) -> None:
    threading.Thread(target=call, name="shardyfusion-slatedb-late", daemon=True).start()


def _claim_process(bridge: Bridge) -> None:
    global _process
    if _process is None:
        _process = os.getpid()
    if _process == os.getpid():
        return
    raise ForkedProcessError(
        f"SlateDB was used before this process was forked, and does not work in the child; open {bridge.url} "
        "after the fork, or start processes with the 'spawn' method"
    )


def _loop_thread() -> _LoopThread:
    global _running
    with _lock:
        if _running is None:
            _running = _LoopThread()
            atexit.register(_stop_at_exit, os.getpid())
        return _running


def _replace_if_stuck(thread: _LoopThread) -> None:
    """Futures of SlateDB are polled on the loop's thread: one that never returns would block all later calls."""
    global _running
    if thread.is_alive():
        return
    with _lock:
        if _running is thread:
            _running = None
    with suppress(RuntimeError):
        thread.stop(wait_seconds=0)


def _stop_at_exit(owner: int) -> None:
    # A daemon thread that is still in Rust code while the interpreter goes away can take the process down with it.
    if os.getpid() == owner and _running is not None:
        with suppress(RuntimeError):
            _running.stop(wait_seconds=_ANSWER_SECONDS)
