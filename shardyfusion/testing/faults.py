"""A store that does what it is told at each request: fail, lose the answer, wait, or be killed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from shardyfusion.storage import ObjectInfo, ObjectStore, PendingUpload, StoredObject

Verb = Literal[
    "get",
    "head",
    "put",
    "create",
    "replace",
    "upload",
    "download",
    "list",
    "delete",
    "now",
    "pending_uploads",
    "abort_uploads",
]
WRITES: frozenset[Verb] = frozenset({"put", "create", "replace", "upload", "delete", "abort_uploads"})

_T = TypeVar("_T")


class Killed(BaseException):
    """A job was stopped for good, as if its process had died. No `except Exception` holds it up."""


@dataclass(frozen=True, kw_only=True)
class StoreCall:
    """One request to a store.

    `name` is the object's, the prefix of a listing, or the first name of a deletion. `number` counts the requests
    through one `FaultStore`, from 1. `perform` sends the request to the store behind and returns its answer: a test
    that keeps the call can let the request arrive late.
    """

    verb: Verb
    name: str
    number: int
    perform: Callable[[], Any]

    def __str__(self) -> str:
        return f"#{self.number} {self.verb} {self.name}"


Fault = Callable[[StoreCall], None]


def _no_fault(call: StoreCall) -> None:
    del call


class FaultStore:
    """An `ObjectStore` over another one, with a fault around each request.

    Args:
        before: called first. What it raises is raised instead of the answer, and the request never arrives.
        after: called when the request has been applied and answered. What it raises is raised instead of the answer.
    """

    def __init__(self, inner: ObjectStore, *, before: Fault = _no_fault, after: Fault = _no_fault) -> None:
        self.inner = inner
        self._before = before
        self._after = after
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return self.inner.url

    def now(self) -> datetime:
        return self._send("now", "", self.inner.now)

    def get(self, name: str) -> StoredObject:
        return self._send("get", name, lambda: self.inner.get(name))

    def head(self, name: str) -> ObjectInfo | None:
        return self._send("head", name, lambda: self.inner.head(name))

    def put(self, name: str, body: bytes, *, content_type: str) -> str:
        return self._send("put", name, lambda: self.inner.put(name, body, content_type=content_type))

    def create(self, name: str, body: bytes, *, content_type: str) -> str:
        return self._send("create", name, lambda: self.inner.create(name, body, content_type=content_type))

    def replace(self, name: str, body: bytes, *, etag: str, content_type: str) -> str:
        return self._send("replace", name, lambda: self.inner.replace(name, body, etag=etag, content_type=content_type))

    def upload(self, name: str, path: Path, *, content_type: str) -> None:
        self._send("upload", name, lambda: self.inner.upload(name, path, content_type=content_type))

    def download(self, name: str, path: Path) -> None:
        self._send("download", name, lambda: self.inner.download(name, path))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._send("list", prefix, lambda: tuple(self.inner.list(prefix))))

    def delete(self, names: Iterable[str]) -> None:
        given = tuple(names)
        if given:
            self._send("delete", given[0], lambda: self.inner.delete(given))

    def pending_uploads(self, prefix: str = "") -> Iterator[PendingUpload]:
        return iter(self._send("pending_uploads", prefix, lambda: tuple(self.inner.pending_uploads(prefix))))

    def abort_uploads(self, uploads: Iterable[PendingUpload]) -> None:
        given = tuple(uploads)
        if given:
            self._send("abort_uploads", given[0].name, lambda: self.inner.abort_uploads(given))

    def _send(self, verb: Verb, name: str, perform: Callable[[], _T]) -> _T:
        call = StoreCall(verb=verb, name=name, number=next(self._numbers), perform=perform)
        self._before(call)
        answer = perform()
        self._after(call)
        return answer
