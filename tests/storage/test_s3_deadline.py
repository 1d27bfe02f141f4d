"""The thread in which a call to S3 runs: how long it may, what comes out of it, and what it may do no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shardyfusion.errors import StoreUnavailableError
from shardyfusion.storage import S3Store, StoreAddress, s3, s3_deadline
from shardyfusion.storage.s3_connection import s3_client as client_of
from shardyfusion.storage.s3_deadline import SLOWEST_BYTES_PER_SECOND, CallLimits, CallThreads, moved, sets_out, within
from tests.faults.dead_endpoints import DrippingServer, Pace, dripping_server
from tests.storage.fake_s3 import STATIC

TEXT = "text/plain"
LIMITS = CallLimits(connect_timeout=0.2, read_timeout=0.3, max_attempts=1)
MIB = 1024 * 1024


@pytest.fixture
def drips() -> Iterator[DrippingServer]:
    with dripping_server() as server:
        yield server
        server.hang_up()
        wait_until(lambda: not threads())


def store_at(url: str, **options: Any) -> S3Store:
    options = {"endpoint_url": url, "connect_timeout": 0.3, "read_timeout": 0.3, "max_attempts": 1} | options
    return S3Store(StoreAddress.parse("s3://bucket/snap", credential_provider=STATIC, options=options))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shardyfusion-s3")]


def wait_until(holds: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"still not so; threads: {threads()}"
        time.sleep(0.01)


# -- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connect", "read", "attempts", "seconds"),
    [
        (0.2, 0.3, 1, 0.5),
        (10, 60, 6, 451),
        (1, 1, 2, 4 + 1),
        (1, 1, 8, 16 + 31 + 2 * 20),
        (1, 1, 10**9, 2 * 10**9 + 31 + (10**9 - 6) * 20),
    ],
)
def test_tries_and_pauses(connect: float, read: float, attempts: int, seconds: float) -> None:
    limits = CallLimits(connect_timeout=connect, read_timeout=read, max_attempts=attempts)
    assert limits.seconds() == pytest.approx(seconds)


@pytest.mark.parametrize("slower", [False, True])
def test_what_moves_goes_on_and_what_hardly_moves_does_not(slower: bool) -> None:
    """A little above the slowest rate and a little below: 4 s of work with 2 s allowed, or endless work."""
    limits, ended = CallLimits(connect_timeout=1, read_timeout=1, max_attempts=1), threading.Event()

    def work() -> str:
        for _ in range(40 if not slower else 10_000):
            time.sleep(0.1)
            moved(int(0.1 * SLOWEST_BYTES_PER_SECOND * (0.5 if slower else 4)))
            if ended.is_set():
                break
        return "done"

    started = time.monotonic()
    if not slower:
        assert within(limits, "do", "it", work) == "done"
    else:
        with pytest.raises(StoreUnavailableError, match=r"did not end within .* allow 2 "):
            within(limits, "do", "it", work)
        ended.set()
        wait_until(lambda: not threads())
    assert 2 < time.monotonic() - started < 40


def test_what_has_moved_much_may_not_stop_for_longer() -> None:
    ended = threading.Event()

    def work() -> None:
        moved(1000 * MIB)
        ended.wait(30)

    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="did not end"):
        within(LIMITS, "do", "it", work)
    assert time.monotonic() - started < 20
    ended.set()
    wait_until(lambda: not threads())


def test_what_does_not_show_has_its_time_in_advance() -> None:
    def work() -> str:
        sets_out(10 * SLOWEST_BYTES_PER_SECOND)
        time.sleep(1)
        return "done"

    assert within(LIMITS, "do", "it", work) == "done"


def test_limits_that_no_clock_can_hold_are_no_error() -> None:
    most = threading.TIMEOUT_MAX - 1
    assert within(CallLimits(connect_timeout=most, read_timeout=most, max_attempts=6), "do", "it", lambda: 1) == 1


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_results_and_errors_come_as_they_are() -> None:
    error = TimeoutError("of the work itself")

    def fail() -> None:
        raise error

    assert within(LIMITS, "do", "it", lambda: None) is None
    with pytest.raises(TimeoutError) as caught:
        within(LIMITS, "do", "it", fail)
    assert caught.value is error
    assert {"fail", "within"} <= {entry.name for entry in caught.traceback}, "both threads are in the traceback"


def test_a_call_that_has_ended_leaves_no_thread() -> None:
    """Not for a moment, however long the thread takes to end: the caller may fork."""

    def linger(frame: FrameType, event: str, _: object) -> None:
        if (event, frame.f_code.co_qualname) == ("return", "_Call.run"):
            time.sleep(0.2)

    threading.setprofile(linger)
    try:
        within(LIMITS, "do", "it", lambda: None)
        assert threads() == []
    finally:
        threading.setprofile(None)


def test_an_error_is_kept_by_nobody() -> None:
    class OwnError(Exception): ...

    def fail() -> None:
        raise OwnError

    try:
        within(LIMITS, "do", "it", fail)
    except OwnError as exc:
        kept = weakref.ref(exc)
    assert kept() is None


def test_what_the_caller_has_in_its_context_is_there(s3_prefix: str, tmp_path: Path) -> None:
    """In the threads of transfers too: tracing hangs on it."""
    (tmp_path / "file").write_bytes(b"x")
    span: ContextVar[str] = ContextVar("span")
    seen: list[str] = []

    def look(**_: object) -> None:
        seen.append(span.get("none"))

    store, events = S3Store(StoreAddress.parse(s3_prefix)), client_of(StoreAddress.parse(s3_prefix)).meta.events
    events.register("before-send.s3", look)
    try:
        token = span.set("ours")
        store.put("a", b"x", content_type=TEXT)
        store.upload("b", tmp_path / "file", content_type=TEXT)
        store.download("b", tmp_path / "copy")
        span.reset(token)
    finally:
        events.unregister("before-send.s3", look)
    assert len(seen) >= 3
    assert set(seen) == {"ours"}


def test_no_thread_to_be_had_is_an_error_of_the_store(s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store(StoreAddress.parse(s3_prefix))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(StoreUnavailableError, match=rf"cannot read {s3_prefix}/a at http.*: can't start new thread"):
        store.get("a")


# -- what is given up -------------------------------------------------------------------------------------------------


def test_a_call_whose_answer_has_begun_leaves_nothing(tmp_path: Path) -> None:
    """Its connection is shut down, while the server would go on."""
    with dripping_server("body") as server:
        store = store_at(server.url)
        for call in (lambda: store.get("a"), lambda: store.download("a", tmp_path / "copy")):
            with pytest.raises(StoreUnavailableError, match="did not end"):
                call()
            wait_until(lambda: not threads())
        assert [request.partition("?")[0] for request in server.requests] == ["GET /bucket/snap/a"] * 2


def test_a_call_without_an_answer_leaves_a_thread_until_the_server_hangs_up(drips: DrippingServer) -> None:
    with pytest.raises(StoreUnavailableError, match="did not end"):
        store_at(drips.url).get("a")
    assert threads() == ["shardyfusion-s3-call"]
    drips.hang_up()
    wait_until(lambda: not threads())


def test_a_call_that_was_given_up_is_not_tried_again(drips: DrippingServer) -> None:
    """Its first try breaks off when the server hangs up, and there would be two left."""
    with pytest.raises(StoreUnavailableError, match="did not end"):
        store_at(drips.url, max_attempts=3).create("a", b"x", content_type=TEXT)
    assert threads()
    drips.hang_up()
    wait_until(lambda: not threads())
    assert drips.requests == ["PUT /bucket/snap/a"]


def test_an_interrupt_gives_the_call_up(drips: DrippingServer) -> None:
    store = store_at(drips.url, read_timeout=60, max_attempts=3)
    timer = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.put("a", b"x", content_type=TEXT)
    timer.join()
    assert time.monotonic() - started < 20
    drips.hang_up()
    wait_until(lambda: not threads())
    assert drips.requests == ["PUT /bucket/snap/a"]


def test_a_download_that_was_given_up_writes_no_more(tmp_path: Path) -> None:
    """Not even into a file that has got the same name and file descriptor since."""
    path = tmp_path / "copy"
    for part in ("head", "body"):
        with dripping_server(part) as server:
            with pytest.raises(StoreUnavailableError, match="did not end"):
                store_at(server.url).download("a", path)
            with path.open("wb") as file:
                file.write(b"another")
                file.flush()
                server.hang_up()
                wait_until(lambda: not threads())
            assert path.read_bytes() == b"another", part


def test_an_upload_that_was_given_up_is_not_completed(
    drips: DrippingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewritten file could make it an object of two halves. It is aborted as soon as the server lets go of it."""
    monkeypatch.setattr(s3_deadline, "SLOWEST_BYTES_PER_SECOND", MIB)  # or the first MiB had 16 seconds in advance
    begun = "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>"
    drips.prompt = {
        "POST /bucket/snap/a?uploads": (200, begun),
        "PUT /bucket/snap/a?uploadId=id&partNumber=1": (200, ""),
    }
    path = tmp_path / "big"
    path.write_bytes(bytes(17 * MIB))
    with pytest.raises(
        StoreUnavailableError, match=rf"cannot upload s3://bucket/snap/a at {drips.url}: it did not end"
    ):
        store_at(drips.url, read_timeout=1).upload("a", path, content_type=TEXT)
    path.unlink()
    path.write_bytes(b"\1" * 17 * MIB)
    before = list(drips.requests)
    drips.prompt = {"": (200, "")}
    drips.hang_up()
    wait_until(lambda: not threads())
    assert [request.partition("?")[0] for request in drips.requests[len(before) :]] == ["DELETE /bucket/snap/a"]


def test_an_upload_that_was_given_up_sends_no_more_of_its_file(
    drips: DrippingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one request, too slowly; then the server would take all of it at once."""
    monkeypatch.setattr(s3_deadline, "SLOWEST_BYTES_PER_SECOND", 8 * MIB)
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 64 * MIB)
    (tmp_path / "file").write_bytes(bytes(40 * MIB))
    drips.pace = Pace(MIB)
    with pytest.raises(StoreUnavailableError, match="did not end"):
        store_at(drips.url, connect_timeout=4).upload("a", tmp_path / "file", content_type=TEXT)
    drips.pace = None
    wait_until(lambda: not threads())
    assert (drips.requests, drips.complete) == (["PUT /bucket/snap/a"], [])


AT_EXIT = """
import sys, threading
from pathlib import Path
from shardyfusion.errors import StoreUnavailableError
from tests.storage.test_s3_deadline import store_at
store = store_at(sys.argv[1])
calls = [
    lambda: store.get("a"),
    lambda: store.upload("a", Path(sys.argv[2]), content_type="text/plain"),
    lambda: store.download("a", Path(sys.argv[2] + "-copy")),
]
for call in calls:
    try:
        call()
    except StoreUnavailableError as exc:
        assert "did not end" in str(exc), exc
print(threading.active_count() > len(calls))
"""


def test_the_interpreter_ends_while_calls_hang(drips: DrippingServer, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    command = [sys.executable, "-W", "error", "-c", AT_EXIT, drips.url, str(tmp_path / "small")]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_a_call_hangs(drips: DrippingServer, s3_prefix: str, tmp_path: Path) -> None:
    near = S3Store(StoreAddress.parse(s3_prefix))
    near.put("parent", b"", content_type=TEXT)
    far = store_at(drips.url)
    with pytest.raises(StoreUnavailableError):
        far.get("a")
    assert threads()
    (tmp_path / "file").write_bytes(bytes(17 * MIB))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert not threads()
            near.upload("child", tmp_path / "file", content_type=TEXT)
            near.download("child", tmp_path / "copy")
            try:
                far.get("a")
            except StoreUnavailableError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tmp_path / "copy").read_bytes() == bytes(17 * MIB)


# -- the threads of a transfer ----------------------------------------------------------------------------------------


def test_parts_run_side_by_side_and_errors_stay_with_their_own() -> None:
    pool = CallThreads(max_workers=2)
    both = threading.Barrier(2)
    together = [pool.submit(both.wait, 20) for _ in range(2)]
    assert sorted(future.result(20) for future in together) == [0, 1]
    failed, fine = pool.submit(lambda: 1 / 0), pool.submit(lambda: 7)
    assert isinstance(failed.exception(20), ZeroDivisionError)
    assert fine.result(20) == 7
    late = [pool.submit(time.sleep, 0.01) for _ in range(10)]
    pool.shutdown()
    assert all(future.done() for future in late), "it waits for all of them"
    assert threads() == []
    with pytest.raises(RuntimeError):
        pool.submit(lambda: 7)
