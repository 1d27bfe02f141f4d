"""Objects in this process's memory, for tests. Every `memory://name` names one namespace, whoever opens it.

Nothing here outlives the process or reaches another one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from shardyfusion.errors import ObjectExistsError, ObjectNotFoundError, StorageError
from shardyfusion.storage.contract import ObjectInfo, PendingUpload, StoredObject
from shardyfusion.storage.durable import translated_os_errors
from shardyfusion.storage.names import check_object_name


@dataclass
class _Namespace:
    lock: Lock = field(default_factory=Lock)
    objects: dict[str, StoredObject] = field(default_factory=dict[str, StoredObject])


_NAMESPACES: dict[str, _Namespace] = {}
_VERSIONS = itertools.count(1)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class MemoryStore:
    """An `ObjectStore` over a namespace, or over the part of it below a prefix (`memory://name/a` sees `a/…`).

    `clock` gives the store's time, to tests that need days to pass.
    """

    def __init__(self, url: str, *, clock: Callable[[], datetime] = _utc_now) -> None:
        self._clock = clock
        name, _, prefix = url.removeprefix("memory://").partition("/")
        self._url = url
        self._prefix = f"{prefix}/" if prefix else ""
        self._space = _NAMESPACES.setdefault(name, _Namespace())

    @property
    def url(self) -> str:
        return self._url

    def get(self, name: str) -> StoredObject:
        key = self._key(name)
        with self._space.lock:
            found = self._space.objects.get(key)
        if found is None:
            raise ObjectNotFoundError(f"cannot read {self._url}/{name}: there is no such object")
        return StoredObject(replace(found.info, name=name), found.body)

    def head(self, name: str) -> ObjectInfo | None:
        key = self._key(name)
        with self._space.lock:
            found = self._space.objects.get(key)
        return replace(found.info, name=name) if found else None

    def put(self, name: str, body: bytes, *, content_type: str) -> str:
        del content_type
        key = self._key(name)
        with self._space.lock:
            return self._store(key, body)

    def create(self, name: str, body: bytes, *, content_type: str) -> str:
        del content_type
        key = self._key(name)
        with self._space.lock:
            if key in self._space.objects:
                raise ObjectExistsError(f"{self._url}/{name} exists already")
            return self._store(key, body)

    def replace(self, name: str, body: bytes, *, etag: str, content_type: str) -> str:
        del content_type
        key = self._key(name)
        with self._space.lock:
            found = self._space.objects.get(key)
            if found is None:
                raise ObjectNotFoundError(f"cannot replace {self._url}/{name}: it does not exist")
            if found.info.etag != etag:
                raise ObjectExistsError(f"cannot replace {self._url}/{name}: it has changed since it was read")
            return self._store(key, body)

    def upload(self, name: str, path: Path, *, content_type: str) -> None:
        with translated_os_errors("upload", str(path), missing=StorageError):
            body = path.read_bytes()
        self.put(name, body, content_type=content_type)

    def download(self, name: str, path: Path) -> None:
        body = self.get(name).body
        with translated_os_errors("write", str(path)):
            path.write_bytes(body)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._space.lock:
            found = sorted(item for item in self._space.objects.items() if item[0].startswith(self._prefix + prefix))
        cut = len(self._prefix)
        for key, stored in found:
            yield replace(stored.info, name=key[cut:])

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            key = self._key(name)
            with self._space.lock:
                self._space.objects.pop(key, None)

    def pending_uploads(self, prefix: str = "") -> Iterator[PendingUpload]:
        del prefix  # an object is stored whole or not at all
        return iter(())

    def abort_uploads(self, uploads: Iterable[PendingUpload]) -> None:
        del uploads

    def now(self) -> datetime:
        return self._clock()

    def _key(self, name: str) -> str:
        return self._prefix + check_object_name(name)

    def _store(self, key: str, body: bytes) -> str:
        """Store under the lock that the caller holds."""
        info = ObjectInfo(key, len(body), self._clock(), f'"{next(_VERSIONS)}"')
        self._space.objects[key] = StoredObject(info, bytes(body))
        return info.etag
