"""Objects as files below a local directory, as durable and as atomic as the file system allows.

The file handling itself (fsync, temporary files, locks) is in `durable.py`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from shardyfusion.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StoreUnavailableError,
    UnsafeStoreError,
)
from shardyfusion.storage.contract import ObjectInfo, PendingUpload, StoredObject
from shardyfusion.storage.durable import (
    LOCK_FILE,
    NO_LINKS,
    RESERVED,
    link_new,
    locked,
    open_beside,
    remove_abandoned_lock,
    sync_path,
    translated_os_errors,
)
from shardyfusion.storage.names import check_object_name

_SMALL = 64 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LocalStore:
    """An `ObjectStore` in a directory. What a method reported as written is still there after a power failure.

    An object of up to 64 KiB has the digest of its bytes as its etag, a larger one its inode, time and size: an inode
    is reused at once and file times are coarse, so that two short objects in a row could not be told apart by those.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        return f"file://{self._root}"

    def get(self, name: str) -> StoredObject:
        with self._reading(name) as path, path.open("rb") as file:
            status = os.fstat(file.fileno())
            body = file.read()
        return StoredObject(_info(name, status, body), body)

    def head(self, name: str) -> ObjectInfo | None:
        try:
            with self._reading(name) as path:
                return _describe(name, path)
        except ObjectNotFoundError:
            return None

    def put(self, name: str, body: bytes, *, content_type: str) -> str:
        del content_type  # files have none
        with self._writing(name) as target, _staged(target, body) as staged:
            return _rename(staged, target, body)

    def create(self, name: str, body: bytes, *, content_type: str) -> str:
        del content_type
        with self._writing(name) as target, _staged(target, body) as staged:
            try:
                _link(staged, target)
            except FileExistsError as exc:
                if target.is_dir():
                    raise
                # Who is told that it exists counts on it, and whoever made it may not have come to this yet.
                with _unknown_from_here(f"{self.url}/{name}"):
                    sync_path(target.parent)
                raise ObjectExistsError(f"{self.url}/{name} exists already") from exc
            with _unknown_from_here(f"{self.url}/{name}"):
                sync_path(target.parent)
                return _etag(target.stat(), body)

    def replace(self, name: str, body: bytes, *, etag: str, content_type: str) -> str:
        del content_type
        self._check_etag(name, etag)  # here only so that a lost race makes no directories
        with self._writing(name) as target, _staged(target, body) as staged, locked(target.parent):
            self._check_etag(name, etag)
            staged.replace(target)
            with _unknown_from_here(f"{self.url}/{name}"):
                sync_path(target.parent)
                return _etag(target.stat(), body)

    def upload(self, name: str, path: Path, *, content_type: str) -> None:
        del content_type
        with self._writing(name) as target:
            if not path.is_file():
                raise StorageError(f"cannot upload {path}: there is no such file")
            if not link_new(path, target):
                with _staged(target, path) as staged:
                    _rename(staged, target)

    def download(self, name: str, path: Path) -> None:
        with (
            self._reading(name) as source,
            source.open("rb") as file,
            translated_os_errors("write", str(path)),
            path.open("wb") as copy,
        ):
            shutil.copyfileobj(file, copy, 1024 * 1024)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        directory = prefix.rpartition("/")[0]
        if directory and {"", ".", ".."} & set(directory.split("/")):
            return iter(())  # no object can have such a name, and `..` would leave the root
        return self._walk(f"{directory}/" if directory else "", prefix)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with self._writing(name, "delete") as target:
                # No object: neither is there anything to do for a directory or for a path through another object.
                with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError), locked(target.parent):
                    target.unlink()
                self._prune(target.parent)

    def pending_uploads(self, prefix: str = "") -> Iterator[PendingUpload]:
        """What writers that were killed left: locks, and files that never got the name of their object (which is not
        known)."""
        for path in self._temporary_files():
            name = path.relative_to(self._root).as_posix()
            if name.startswith(prefix):
                with translated_os_errors("list", f"{self.url}/{name}"), suppress(FileNotFoundError):
                    yield PendingUpload(name, path.name, _modified(path.stat()))

    def abort_uploads(self, uploads: Iterable[PendingUpload]) -> None:
        for upload in uploads:
            path = self._root / upload.name
            if not path.name.startswith(RESERVED) or ".." in path.parts:
                continue
            with translated_os_errors("delete", f"{self.url}/{upload.name}"), suppress(FileNotFoundError):
                if path.name == LOCK_FILE:  # to remove it under its holder would let two hold the lock
                    remove_abandoned_lock(path.parent)
                else:
                    path.unlink()
            self._prune(path.parent)

    def _temporary_files(self) -> Iterator[Path]:
        """Those of ours in every directory, by name. Directories that go away meanwhile are passed over."""

        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        with translated_os_errors("list", self.url):
            for directory, children, files in os.walk(self._root, onerror=fail):
                children.sort()
                yield from (Path(directory, name) for name in sorted(files) if name.startswith(RESERVED))

    def now(self) -> datetime:
        # The clock of the file system, which on a network is not ours. Who may not write has to take ours.
        try:
            with tempfile.TemporaryFile(prefix=RESERVED, dir=self._root) as file:
                file.write(b"now")
                file.flush()
                return _modified(os.fstat(file.fileno()))
        except OSError:
            return datetime.now(UTC)

    def _prune(self, directory: Path) -> None:
        """Remove directories that a deletion has emptied. Whoever creates an object there meanwhile makes them anew."""
        while directory != self._root:
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return
            directory = directory.parent

    def _walk(self, directory: str, prefix: str) -> Iterator[ObjectInfo]:
        with translated_os_errors("list", f"{self.url}/{directory}"):
            try:
                with os.scandir(self._root / directory) as found:
                    entries = [(entry.name, entry.is_dir()) for entry in found if _may_be_object(entry.name)]
            except (FileNotFoundError, NotADirectoryError):
                return
        # A directory sorts as its objects' names do: "a/x" comes after "a.txt".
        for path in sorted(f"{directory}{name}/" if is_dir else f"{directory}{name}" for name, is_dir in entries):
            if path.endswith("/"):
                if path.startswith(prefix) or prefix.startswith(path):
                    yield from self._walk(path, prefix)
            elif path.startswith(prefix) and (info := self.head(path)):
                yield info

    def _check_etag(self, name: str, etag: str) -> None:
        info = self.head(name)
        if info is None:
            raise ObjectNotFoundError(f"cannot replace {self.url}/{name}: it does not exist")
        if info.etag != etag:
            raise ObjectExistsError(f"cannot replace {self.url}/{name}: it has changed since it was read")

    @contextmanager
    def _reading(self, name: str) -> Generator[Path]:
        path = self._path(name)
        with translated_os_errors("read", f"{self.url}/{name}", missing=ObjectNotFoundError):
            try:
                yield path
            except (NotADirectoryError, IsADirectoryError) as exc:
                raise ObjectNotFoundError(f"cannot read {self.url}/{name}: there is no such object") from exc

    @contextmanager
    def _writing(self, name: str, action: str = "write") -> Generator[Path]:
        path = self._path(name)
        with translated_os_errors(action, f"{self.url}/{name}"):
            yield path

    def _path(self, name: str) -> Path:
        segments = check_object_name(name).split("/")
        if "" in segments or any(segment.startswith(RESERVED) for segment in segments):
            raise StorageError(
                f"a local object name has no empty segments, and none that begins with {RESERVED}", name=name
            )
        return self._root.joinpath(*segments)


@contextmanager
def _unknown_from_here(url: str) -> Generator[None]:
    """The object has its name, whatever goes wrong now: that is no refusal."""
    try:
        yield
    except OSError as exc:
        raise StoreUnavailableError(f"{url} is written, but may not survive a crash: {exc.strerror or exc}") from exc


def _may_be_object(file_name: str) -> bool:
    return file_name.isprintable() and not file_name.startswith(RESERVED)


@contextmanager
def _staged(target: Path, content: bytes | Path) -> Generator[Path]:
    """A temporary file beside `target` whose bytes are on disk. It is gone afterwards, whatever happens."""
    fd, temporary = open_beside(target)
    try:
        with os.fdopen(fd, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, 1024 * 1024)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _rename(staged: Path, target: Path, body: bytes | None = None) -> str:
    # Under the lock, so that a `replace` never overwrites what was put between its comparison and its rename.
    with locked(target.parent):
        staged.replace(target)
        sync_path(target.parent)
        return _etag(target.stat(), body)


def _link(staged: Path, target: Path) -> None:
    """Give the finished file its name, if the name is free. (O_EXCL and then writing would show torn objects.)"""
    try:
        os.link(staged, target)
    except FileExistsError:
        # NFS repeats a `link` whose reply was lost, and so meets its own work.
        with suppress(FileNotFoundError):
            if staged.samefile(target):
                return
        raise
    except OSError as exc:
        if exc.errno not in NO_LINKS:
            raise
        raise UnsafeStoreError(
            f"{target.parent} is on a file system without hard links, so two writers could both create {target.name}; "
            "use another file system or an object store"
        ) from exc


def _describe(name: str, path: Path) -> ObjectInfo:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        return _info(name, status, file.read() if status.st_size <= _SMALL else None)


def _info(name: str, status: os.stat_result, body: bytes | None) -> ObjectInfo:
    return ObjectInfo(name, status.st_size, _modified(status), _etag(status, body))


def _modified(status: os.stat_result) -> datetime:
    return _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)


def _etag(status: os.stat_result, body: bytes | None) -> str:
    if body is not None and status.st_size <= _SMALL:
        return hashlib.sha256(body).hexdigest()
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
