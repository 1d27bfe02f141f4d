"""Files that survive a crash: fsync, temporary files beside their target, advisory locks, and OSErrors translated.

What the files mean is up to `local.py`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from shardyfusion.errors import StorageError, StoreAccessError, StoreUnavailableError

RESERVED = ".shardyfusion-"
"""File names of ours that are no objects begin with this."""

LOCK_FILE = f"{RESERVED}lock"

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What `link` says on file systems without hard links."""

_LOCK_POLL_SECONDS = 0.002
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_TAKEN = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}
_WRONG = {errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG}

_T = TypeVar("_T")


def is_temporary(name: str) -> bool:
    """Whether a file below a local root, given by its path there, is one of those."""
    return name.rpartition("/")[2].startswith(RESERVED)


@contextmanager
def translated_os_errors(
    action: str, where: str, *, missing: type[StorageError] = StoreUnavailableError
) -> Generator[None]:
    """Turn every OSError of the block into the `StorageError` that tells a caller what to do."""
    try:
        yield
    except OSError as exc:
        detail = f"cannot {action} {where}: {exc.strerror or exc}"
        if exc.errno == errno.ENOENT:
            raise missing(detail) from exc
        if exc.errno in _DENIED:
            raise StoreAccessError(detail) from exc
        if exc.errno in _FULL:
            raise StorageError(f"{detail}; free some space and run again") from exc
        if exc.errno in _TAKEN:
            raise StorageError(f"{detail}; one name is both an object and a directory of objects") from exc
        if exc.errno in _WRONG:
            raise StorageError(detail) from exc
        raise StoreUnavailableError(detail) from exc


def sync_path(path: Path) -> None:
    """fsync a file's contents, or a directory's entries."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(directory: Path) -> None:
    """Make a directory and its parents, each entry durable."""
    missing: list[Path] = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        # Whoever made it first may not have synced it yet, and our object depends on it all the same.
        with suppress(FileExistsError):
            path.mkdir()
        sync_path(path.parent)


def open_beside(target: Path) -> tuple[int, Path]:
    """Open a new temporary file in `target`'s directory, which is made if need be."""
    temporary = target.parent / f"{RESERVED}{uuid4().hex}"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    return _in_its_directory(target, lambda: os.open(temporary, flags, 0o666)), temporary


def link_new(source: Path, target: Path) -> bool:
    """Make `target` a name of the same file, durably: no byte is copied. False, and nothing is linked, if there is
    something already, or if the two are in different file systems, or in one that has no links."""
    if source.is_symlink() or not source.is_file():
        return False
    try:
        os.utime(source)  # the object is as old as its name, not as its first byte
    except PermissionError:
        return False  # somebody else's file stays theirs
    sync_path(source)
    try:
        _in_its_directory(target, lambda: os.link(source, target))
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno in (errno.EXDEV, *NO_LINKS):
            return False
        raise
    sync_path(target.parent)
    return True


def _in_its_directory(target: Path, make: Callable[[], _T]) -> _T:
    """What `make` makes in `target`'s directory, which is made if need be."""
    for _ in range(100):
        # Somebody who deletes objects may remove the empty directory just before our file is in it.
        with suppress(FileNotFoundError):
            make_directories(target.parent)
            return make()
    raise StoreUnavailableError(f"cannot create {target}: its directory keeps disappearing")


@contextmanager
def locked(directory: Path, *, timeout_seconds: float = 30.0) -> Generator[None]:
    """Hold the lock of a directory against threads and processes; it ends with the process at the latest.

    The lock file is removed while it is held. A waiter may thus lock a file that is no longer there; it compares
    inodes and tries again.
    """
    path = directory / LOCK_FILE
    deadline = time.monotonic() + timeout_seconds
    while (fd := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise StoreUnavailableError(f"{path} has been locked by another process for {timeout_seconds} s")
        time.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        _unlock(path, fd)


def remove_abandoned_lock(directory: Path) -> None:
    """Remove the lock file that a killed process has left; one that is held stays."""
    path = directory / LOCK_FILE
    with suppress(FileNotFoundError):
        fd = _try_lock(path)
        if fd is not None:
            _unlock(path, fd)


def _unlock(path: Path, fd: int) -> None:
    try:
        path.unlink(missing_ok=True)
    finally:  # else a directory that may no longer be written to would stay locked as long as we live
        fcntl.flock(fd, fcntl.LOCK_UN)  # a forked child may hold a copy of the descriptor, so closing is not enough
        os.close(fd)


def _try_lock(path: Path) -> int | None:
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None
