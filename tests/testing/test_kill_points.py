"""Kill points: numbered in order, and past the one where a job is stopped nothing that it tries has an effect."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from shardyfusion import SqliteFactory
from shardyfusion.shard_contract import ShardTarget
from shardyfusion.sqlite_adapter.writer import SqliteAdapter
from shardyfusion.storage import ObjectStore, StoreAddress, open_store
from shardyfusion.testing import Killed, WatchedFactory, count_kill_points, kill_at

TEXT = "text/plain"
SCRIPT = """
import sys
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.testing import kill_child_at

def job():
    store = open_store(StoreAddress.parse(sys.argv[1]))
    try:
        store.put("a", b"", content_type="text/plain")
    finally:
        store.put("b", b"", content_type="text/plain")

kill_child_at(int(sys.argv[2]), job)
"""


@pytest.fixture
def address() -> StoreAddress:
    return StoreAddress.parse(f"memory://{uuid4().hex}")


def names(address: StoreAddress) -> list[str]:
    return [info.name for info in open_store(address).list()]


def job_on(address: StoreAddress) -> Callable[[], None]:
    """Two steps, and a third one that even an error does not prevent."""

    def job() -> None:
        store = open_store(address)
        try:
            store.put("a", b"", content_type=TEXT)
            store.create("b", b"", content_type=TEXT)
        finally:
            store.put("c", b"", content_type=TEXT)

    return job


def test_points_are_numbered_in_order(address: StoreAddress) -> None:
    points = count_kill_points(job_on(address))
    assert [str(point) for point in points] == [
        "#1 before put a",
        "#2 after put a",
        "#3 before create b",
        "#4 after create b",
        "#5 before put c",
        "#6 after put c",
    ]
    assert names(address) == ["a", "b", "c"]


@pytest.mark.parametrize(("number", "left"), [(1, []), (2, ["a"]), (3, ["a"]), (4, ["a", "b"]), (6, ["a", "b", "c"])])
def test_past_its_point_nothing_has_an_effect(address: StoreAddress, number: int, left: list[str]) -> None:
    point = kill_at(number, job_on(address))
    assert point.number == number
    assert names(address) == left


def test_other_threads_of_the_job_are_stopped_too(address: StoreAddress) -> None:
    go_on, errors = threading.Event(), list[BaseException]()

    def other(store: ObjectStore) -> None:
        go_on.wait(30)
        try:
            store.put("late", b"", content_type=TEXT)
        except BaseException as exc:
            errors.append(exc)

    def job() -> None:
        store = open_store(address)
        thread = threading.Thread(target=other, args=(store,))
        thread.start()
        try:
            store.put("a", b"", content_type=TEXT)
        finally:
            go_on.set()
            thread.join()

    kill_at(2, job)
    assert [type(error) for error in errors] == [Killed]
    assert names(address) == ["a"]


def test_a_job_that_outlives_its_killing_reaches_nothing_even_later(address: StoreAddress) -> None:
    kept: list[ObjectStore] = []

    def job() -> None:
        kept.append(open_store(address))
        with suppress(Killed):
            kept[0].put("a", b"", content_type=TEXT)

    kill_at(1, job)
    with pytest.raises(Killed, match="#1 before put a"):
        kept[0].put("b", b"", content_type=TEXT)
    open_store(address).put("c", b"", content_type=TEXT)
    assert names(address) == ["c"]


def test_a_point_that_is_never_reached_is_an_error(address: StoreAddress) -> None:
    with pytest.raises(AssertionError, match="ended after 6 points and never got to #7"):
        kill_at(7, job_on(address))


def test_errors_of_the_job_itself_are_not_hidden(address: StoreAddress) -> None:
    def job() -> None:
        raise KeyError("mine")

    for run in (lambda: count_kill_points(job), lambda: kill_at(1, job)):
        with pytest.raises(KeyError, match="mine"):
            run()


def test_jobs_are_watched_one_at_a_time(address: StoreAddress) -> None:
    with pytest.raises(RuntimeError, match="another job"):
        count_kill_points(lambda: count_kill_points(job_on(address)))
    assert len(count_kill_points(job_on(address))) == 6


def test_steps_on_local_files_are_seen_below_the_directories_only(tmp_path: Path) -> None:
    watched, other = tmp_path / "watched", tmp_path / "watched-not"
    other.mkdir()

    def job() -> None:
        watched.mkdir()
        (other / "x").write_bytes(b"")
        (watched / "a").write_bytes(b"a")
        (watched / "a").read_bytes()
        os.link(watched / "a", watched / "b")
        (watched / "b").replace(watched / "c")
        descriptor = os.open(watched / "d", os.O_CREAT | os.O_WRONLY)
        with os.fdopen(descriptor, "wb"):
            pass
        (watched / "inner").mkdir()
        (watched / "inner" / "x").touch()
        shutil.rmtree(watched / "inner")
        with suppress(FileNotFoundError):
            (watched / "no").unlink()

    steps = [f"{point.when} {point.action} {point.name}" for point in count_kill_points(job, directories=[watched])]
    assert steps == [
        "before os.mkdir ",
        "before open a",
        "before os.link b",
        "before os.rename c",
        "before open d",
        "before open d",
        "before os.mkdir inner",
        "before open inner/x",
        "before os.remove inner/x",
        "before os.rmdir inner",
        "before os.remove no",
    ]
    shutil.rmtree(watched)
    kill_at(4, job, directories=[watched])
    assert sorted(path.name for path in watched.iterdir()) == ["a", "b"]


ADAPTER_POINTS = [
    "#1 before open shard 3",
    "#2 after open shard 3",
    "#3 before write_batch shard 3",
    "#4 after write_batch shard 3",
    "#5 before seal shard 3",
    "#6 before upload d/shard.db",
    "#7 after upload d/shard.db",
    "#8 before head d/shard.db",
    "#9 after head d/shard.db",
    "#10 after seal shard 3",
    "#11 before close shard 3",
    "#12 after close shard 3",
]


@pytest.mark.parametrize(("number", "point"), list(enumerate(ADAPTER_POINTS, start=1)))
def test_the_steps_of_an_adapter_are_points_and_a_killed_one_is_closed(
    address: StoreAddress, tmp_path: Path, number: int, point: str
) -> None:
    closed: list[bool] = []

    class Factory(SqliteFactory):
        def open(self, target: ShardTarget):
            adapter = super().open(target)
            close = adapter.close
            adapter.close = lambda: (closed.append(True), close())
            return adapter

    def job() -> None:
        target = ShardTarget(db_id=3, store=open_store(address), address=address, directory="d", scratch=tmp_path)
        with WatchedFactory(Factory()).open(target) as adapter:
            adapter.write_batch([(b"k", b"v")])
            assert adapter.db_bytes() > 0
            adapter.seal()

    assert str(kill_at(number, job)) == point
    assert bool(closed) == (number > 1)
    assert names(address) == (["d/shard.db"] if number > 6 else [])


def test_outside_of_a_watched_job_a_watched_factory_is_what_it_watches(address: StoreAddress, tmp_path: Path) -> None:
    watched = WatchedFactory(SqliteFactory())
    watched.check(address)
    assert (watched.backend, watched.min_key_bytes, watched.max_key_bytes) == ("sqlite", 0, None)
    target = ShardTarget(db_id=3, store=open_store(address), address=address, directory="d", scratch=tmp_path)
    with watched.open(target) as adapter:
        assert isinstance(adapter, SqliteAdapter)


def test_a_child_process_ends_at_its_point(tmp_path: Path) -> None:
    def run(number: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path), str(number)], capture_output=True, text=True, check=False
        )

    assert run(2).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    failed = run(5)
    assert failed.returncode == 1
    assert "the job was to stop at #5 and ended with exit status 1" in failed.stderr
