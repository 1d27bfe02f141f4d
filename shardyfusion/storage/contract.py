"""The one protocol through which every byte of a snapshot is stored and fetched.

Implementations: `s3.py`, `local.py`, `memory.py`. What a commit does with these verbs is in `commits/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows about an object without its body. `modified` is the store's clock, in UTC."""

    name: str
    size: int
    modified: datetime
    etag: str


@dataclass(frozen=True, slots=True)
class StoredObject:
    info: ObjectInfo
    body: bytes


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """An upload that has begun and has made no object: in progress, or left behind by a process that died."""

    name: str
    upload_id: str
    started: datetime


class ObjectStore(Protocol):
    """Objects below one root URL, by relative name.

    Every method raises only `StorageError`s: `ObjectNotFoundError`, `ObjectExistsError`, `StoreAccessError`,
    and `StoreUnavailableError` (retryable; after a write it means that the outcome is unknown). All writes are
    atomic: a reader sees a whole object or none. Instances may be shared by threads; they are opened per process.
    """

    @property
    def url(self) -> str:
        """The root, without a trailing slash."""
        ...

    def get(self, name: str) -> StoredObject:
        """A small object, whole."""
        ...

    def head(self, name: str) -> ObjectInfo | None:
        """None when there is no such object."""
        ...

    def put(self, name: str, body: bytes, *, content_type: str) -> str:
        """Create or overwrite; returns the etag."""
        ...

    def create(self, name: str, body: bytes, *, content_type: str) -> str:
        """Create only; `ObjectExistsError` if the name is taken. One request, never multipart."""
        ...

    def replace(self, name: str, body: bytes, *, etag: str, content_type: str) -> str:
        """Overwrite only what still has `etag`; `ObjectExistsError` if it changed, `ObjectNotFoundError` if it went."""
        ...

    def upload(self, name: str, path: Path, *, content_type: str) -> None:
        """Make a finished local file the object `name`.

        Nobody may write to the file any more: a store on the same file system keeps that file and no copy of it.
        """
        ...

    def download(self, name: str, path: Path) -> None:
        """Stream `name` into a new local file at `path`, in a directory that exists.

        A failed download may leave a partial file there, which the caller removes.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose name starts with `prefix`, in ascending name order."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; a name that is not there is no error."""
        ...

    def pending_uploads(self, prefix: str = "") -> Iterator[PendingUpload]:
        """Unfinished uploads of objects whose name starts with `prefix`: they take space and show in no listing."""
        ...

    def abort_uploads(self, uploads: Iterable[PendingUpload]) -> None:
        """Give up unfinished uploads; one that has ended meanwhile is no error."""
        ...

    def now(self) -> datetime:
        """The time by the clock that sets `modified`, to its precision (whole seconds on S3)."""
        ...
