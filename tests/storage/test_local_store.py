"""What the local store promises beyond the contract: durability, no debris, and honesty about the file system."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from shardyfusion.errors import (
    ObjectExistsError,
    StorageError,
    StoreAccessError,
    StoreUnavailableError,
    UnsafeStoreError,
)
from shardyfusion.storage import LocalStore, MemoryStore, PendingUpload
from shardyfusion.storage.durable import locked

TEXT = "text/plain"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "root"


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root)


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every fsync, link and rename, with the file or directory it was about, in order."""
    seen: list[tuple[str, str]] = []

    def trace(function: str, about: Callable[..., str]) -> None:
        real = getattr(os, function)

        def traced(*args: Any, **kwargs: Any) -> Any:
            seen.append((function, about(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, function, traced)

    trace("fsync", lambda fd: str(Path(f"/proc/self/fd/{fd}").readlink()))
    trace("link", lambda source, target: str(target))
    trace("replace", lambda source, target: str(target))
    trace("mkdir", lambda path, *mode: str(path))
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells files by /proc/self/fd")
@pytest.mark.parametrize("verb", ["put", "create", "replace", "upload"])
def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_return(
    store: LocalStore, root: Path, tmp_path: Path, calls: list[tuple[str, str]], verb: str
) -> None:
    target = root / "runs" / "a"
    step, etag = "replace", ""
    if verb == "replace":
        etag = store.create("runs/a", b"old", content_type=TEXT)
        calls.clear()
    match verb:
        case "put":
            store.put("runs/a", b"new", content_type=TEXT)
        case "create":
            store.create("runs/a", b"new", content_type=TEXT)
            step = "link"
        case "replace":
            store.replace("runs/a", b"new", etag=etag, content_type=TEXT)
        case _:
            (tmp_path / "source").write_bytes(b"new")
            store.upload("runs/a", tmp_path / "source", content_type=TEXT)
            step = "link"
    made = [tmp_path / "deep", root, root / "runs"] if verb != "replace" else []
    parents = [call for path in made for call in (("mkdir", str(path)), ("fsync", str(path.parent)))]
    name = [(step, str(target)), ("fsync", str(root / "runs"))]
    if verb == "upload":  # the file itself gets another name
        assert calls == [("fsync", str(tmp_path / "source")), *parents, *name]
        return
    assert calls[: len(parents)] == parents
    (synced, temporary), *rest = calls[len(parents) :]
    assert synced == "fsync"
    assert Path(temporary).parent == root / "runs"
    assert rest == name


def other_file_system(*_: object, **__: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells files by /proc/self/fd")
def test_directories_of_an_upload_that_cannot_be_linked_are_synced_too(
    store: LocalStore, root: Path, tmp_path: Path, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(b"new")
    monkeypatch.setattr(os, "link", other_file_system)
    store.upload("runs/a", tmp_path / "source", content_type=TEXT)
    made = [tmp_path / "deep", root, root / "runs"]
    assert [path for call, path in calls if call == "mkdir"] == list(map(str, made))
    synced = {path for call, path in calls[: calls.index(("replace", str(root / "runs" / "a")))] if call == "fsync"}
    assert {str(path.parent) for path in made} <= synced
    assert store.get("runs/a").body == b"new"


def test_an_upload_copies_only_what_is_on_another_file_system(
    store: LocalStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"new")
    store.upload("linked", source, content_type=TEXT)
    monkeypatch.setattr(os, "link", other_file_system)
    store.upload("copied", source, content_type=TEXT)
    monkeypatch.undo()
    (tmp_path / "symbolic").symlink_to(source)
    store.upload("through-a-link", tmp_path / "symbolic", content_type=TEXT)
    for name, same in {"linked": True, "copied": False, "through-a-link": False}.items():
        assert store.get(name).body == b"new"
        assert (root / name).samefile(source) == same
        assert not (root / name).is_symlink()
    source.unlink()
    assert store.get("linked").body == b"new"
    assert files(root) == ["copied", "linked", "through-a-link"]


@pytest.mark.parametrize("broken", ["fsync", "replace", "link", "write"])
def test_a_failed_write_leaves_nothing_behind(
    store: LocalStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A full disk at each step in turn: the old object stays, no temporary file does, and the error says why."""
    store.put("a", b"old", content_type=TEXT)
    (tmp_path / "source").write_bytes(b"new")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if broken == "write":
        monkeypatch.setattr("shutil.copyfileobj", full)
        monkeypatch.setattr(os, "link", other_file_system)
    else:
        monkeypatch.setattr(os, broken, full)
    actions: list[Callable[[], object]] = [lambda: store.upload("a", tmp_path / "source", content_type=TEXT)]
    if broken in ("fsync", "replace"):
        actions += [lambda: store.put("a", b"new", content_type=TEXT)]
    if broken == "link":
        actions += [lambda: store.create("b", b"new", content_type=TEXT)]
    for action in actions:
        with pytest.raises(StorageError, match="No space left") as caught:
            action()
        assert not caught.value.retryable
    monkeypatch.undo()
    assert files(root) == ["a"]
    assert store.get("a").body == b"old"


def test_a_file_system_without_hard_links_is_refused(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(UnsafeStoreError, match="hard links"):
        store.create("a", b"", content_type=TEXT)
    assert files(root) == []


def test_a_repeated_link_of_ours_is_success_and_another_s_is_not(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS sends a lost `link` again and gets EEXIST for its own work."""
    real = os.link

    def twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", twice)
    store.create("a", b"ours", content_type=TEXT)
    assert store.get("a").body == b"ours"
    with pytest.raises(ObjectExistsError):
        store.create("a", b"theirs", content_type=TEXT)


def test_debris_of_a_crash_is_no_object(store: LocalStore, root: Path) -> None:
    store.put("runs/a", b"", content_type=TEXT)
    (root / "runs" / ".shardyfusion-0123").write_bytes(b"half")
    (root / "runs" / ".shardyfusion-lock").touch()
    (root / "runs" / "line\nbreak").touch()
    assert [info.name for info in store.list()] == ["runs/a"]
    store.put("runs/a", b"new", content_type=TEXT)
    with pytest.raises(StorageError, match=r"\.shardyfusion-"):
        store.put("runs/.shardyfusion-0123", b"", content_type=TEXT)


def test_delete_removes_directories_that_it_empties(store: LocalStore, root: Path) -> None:
    for name in ("shards/r/0/x", "shards/r/1/x", "_CURRENT"):
        store.put(name, b"", content_type=TEXT)
    store.delete(["shards/r/0/x"])
    assert not (root / "shards/r/0").exists()
    store.delete(["shards/r/1/x", "_CURRENT"])
    assert list(root.iterdir()) == []


def test_creating_where_another_thread_deletes(store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory goes away between its creation and its first file: it is made again."""
    real, removed = os.open, []

    def late(path: Any, flags: int, *rest: Any, **kwargs: Any) -> int:
        if flags & os.O_EXCL and len(removed) < 2:
            removed.append(Path(path).parent)
            Path(path).parent.rmdir()
        return real(path, flags, *rest, **kwargs)

    monkeypatch.setattr(os, "open", late)
    store.create("runs/a", b"x", content_type=TEXT)
    assert removed == [root / "runs"] * 2
    assert store.get("runs/a").body == b"x"


def test_an_object_and_a_directory_cannot_share_a_name(store: LocalStore) -> None:
    store.put("a", b"", content_type=TEXT)
    store.put("d/x", b"", content_type=TEXT)
    for action in (store.put, store.create):
        for name in ("a/b", "d"):
            with pytest.raises(StorageError, match="both an object and a directory"):
                action(name, b"", content_type=TEXT)
    assert store.head("d") is None
    store.delete(["d", "a/b"])
    assert [info.name for info in store.list()] == ["a", "d/x"]


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EACCES, StoreAccessError), (errno.EROFS, StoreAccessError), (errno.EIO, StoreUnavailableError)],
)
def test_os_errors_are_told_apart(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, error: type[StorageError]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error, match="runs/a"):
        store.put("runs/a", b"", content_type=TEXT)


def test_large_objects_keep_their_etag_until_they_change(store: LocalStore, tmp_path: Path) -> None:
    big = bytes(100_000)
    etag = store.put("big", big, content_type=TEXT)
    info = store.head("big")
    assert info is not None
    assert info.etag == etag == store.get("big").info.etag
    assert store.replace("big", big, etag=etag, content_type=TEXT) != etag


def test_a_lock_that_is_held_too_long_is_reported(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(StoreUnavailableError, match="locked"),
        locked(tmp_path, timeout_seconds=0.01),
    ):
        pass
    assert files(tmp_path) == []


def test_a_lock_on_a_file_that_was_removed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last holder removes the file between our open and our lock: others would lock a new one meanwhile."""
    real, removed, lock = fcntl.flock, [], tmp_path / ".shardyfusion-lock"

    def late(fd: int, operation: int) -> None:
        real(fd, operation)
        if not removed:
            lock.unlink()
            removed.append(lock)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert removed
        assert lock.exists()


def _add_ones(root: Path, times: int) -> None:
    store = LocalStore(root)
    for _ in range(times):
        while True:
            found = store.get("counter")
            try:
                store.replace("counter", b"%d" % (int(found.body) + 1), etag=found.info.etag, content_type=TEXT)
                break
            except ObjectExistsError:
                continue


def test_replace_excludes_other_processes(store: LocalStore, root: Path) -> None:
    """Four processes count to 80 together by compare-and-swap; a lost update would show."""
    store.create("counter", b"0", content_type=TEXT)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_ones, args=(root, 20)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert store.get("counter").body == b"80"
    assert files(root) == ["counter"]


def test_memory_stores_of_one_name_are_one() -> None:
    name = uuid4().hex
    MemoryStore(f"memory://{name}").put("a/x", b"1", content_type=TEXT)
    assert MemoryStore(f"memory://{name}/a").get("x").body == b"1"
    assert list(MemoryStore(f"memory://{name}2").list()) == []


# -- what killed writers leave -----------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from pathlib import Path
from shardyfusion.storage import LocalStore

real, step = getattr(os, sys.argv[2]), sys.argv[2]

def die(*args, **kwargs):
    real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, step, die)
store = LocalStore(Path(sys.argv[1]))
(store.create if step == "link" else store.put)("runs/deep/a", b"x" * 100_000, content_type="x")
"""


@pytest.mark.parametrize("step", ["fsync", "link", "replace"])
def test_leftovers_of_a_killed_writer_are_pending_and_can_be_given_up(
    store: LocalStore, root: Path, tmp_path: Path, step: str
) -> None:
    """Killed after the temporary file was synced, after the link, and after the rename (with the lock held)."""
    (root / "runs" / "deep").mkdir(parents=True)
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(root), step], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = store.pending_uploads()
    assert left.name.startswith("runs/deep/.shardyfusion-")
    assert abs(left.started - store.now()) < timedelta(minutes=1)
    assert list(store.pending_uploads("runs/deep/")) == [left]
    assert list(store.pending_uploads("shards/")) == []
    done = step != "fsync"
    assert (store.head("runs/deep/a") is not None) == done
    store.abort_uploads([left])
    store.abort_uploads([left])
    assert list(store.pending_uploads()) == []
    assert files(root) == (["runs/deep/a"] if done else [])
    assert (root / "runs").exists() == done, "directories that are empty now are gone"


def test_giving_up_touches_no_object_no_held_lock_and_nothing_outside(store: LocalStore, root: Path) -> None:
    store.put("runs/a", b"x", content_type=TEXT)
    (root.parent / ".shardyfusion-other").write_bytes(b"x")
    now = store.now()
    with locked(root / "runs"):
        names = ("runs/a", "runs/.shardyfusion-lock", "../.shardyfusion-other", "gone/.shardyfusion-1")
        assert [left.name for left in store.pending_uploads()] == ["runs/.shardyfusion-lock"]
        store.abort_uploads(PendingUpload(name, name.rpartition("/")[2], now) for name in names)
        assert (root / "runs" / ".shardyfusion-lock").exists()
    assert files(root) == ["runs/a"]
    assert (root.parent / ".shardyfusion-other").exists()


def test_directories_that_go_away_while_leftovers_are_looked_for(store: LocalStore, root: Path) -> None:
    for name in ("a", "b", "c"):
        (root / name).mkdir(parents=True)
        (root / name / ".shardyfusion-1").touch()
    found = store.pending_uploads()
    assert next(found).name == "a/.shardyfusion-1"
    for name in ("b", "c"):
        shutil.rmtree(root / name)
    assert list(found) == []
    assert list(LocalStore(root / "nothing-here").pending_uploads()) == []


def test_now_is_the_clock_that_stamps_objects(store: LocalStore) -> None:
    store.put("a", b"x", content_type=TEXT)
    stamped, now = store.get("a").info.modified, store.now()
    store.put("b", b"x", content_type=TEXT)
    assert stamped <= now <= store.get("b").info.modified
    assert files(Path(store.url.removeprefix("file://"))) == ["a", "b"]
