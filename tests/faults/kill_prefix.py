"""The prefix of a sweep: what is there, and how it becomes again what it was before a build was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from shardyfusion.layout import BINARY_TYPE
from shardyfusion.storage import PendingUpload, StoreAddress, open_store

Objects = dict[str, tuple[int, str]]


class Prefix:
    """Invariant: from `remember()` on, whatever `put_back()` finds, the store is afterwards as it was then."""

    def __init__(self, url: str, scratch: Path) -> None:
        self.store = open_store(StoreAddress.parse(url))
        self._directory = None if "://" in url else Path(url)
        self._copy = scratch / "prefix"
        self._bodies: dict[str, bytes] = {}
        self.remembered: Objects = {}

    def remember(self) -> None:
        self.remembered = self.objects()
        if self._directory:
            shutil.copytree(self._directory, self._copy)
        else:
            self._bodies = {name: self.store.get(name).body for name in self.remembered}

    def put_back(self, found: Objects | None = None) -> None:
        """`found`, if it is known already, is what is there now."""
        if self._directory:  # directories and temporary files included
            shutil.rmtree(self._directory)
            shutil.copytree(self._copy, self._directory)
            return
        found = self.objects() if found is None else found
        self.store.delete(found.keys() - self.remembered.keys())
        for name, body in self._bodies.items():
            if found.get(name) != self.remembered[name]:
                self.remembered[name] = (len(body), self.store.put(name, body, content_type=BINARY_TYPE))

    def objects(self) -> Objects:
        """What is there, temporary files of a local store included: sizes and etags."""
        found = {info.name: (info.size, info.etag) for info in self.store.list()}
        return found | {upload.name: (0, upload.upload_id) for upload in self._uploads()}

    def check_nothing_unfinished(self) -> None:
        assert list(self.store.pending_uploads()) == []
        if self._directory:
            files = {path for path in self._directory.rglob("*") if path.is_file()}
            names = {info.name for info in self.store.list()}
            assert {path.relative_to(self._directory).as_posix() for path in files} == names

    def _uploads(self) -> Iterable[PendingUpload]:
        return self.store.pending_uploads() if self._directory else ()  # elsewhere one put makes an object
