"""The open shards of one manifest, and how a prefix's served snapshot becomes one.

Which shard a key belongs to is decided in `router.py`; the caller swaps and closes generations.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from shardyfusion.commits import load_manifest, served_manifest, snapshots_before
from shardyfusion.errors import ConfigValidationError, ManifestParseError, ReaderStateError
from shardyfusion.layout import SQLITE_FILE, join_url
from shardyfusion.local_cache import cached_name
from shardyfusion.manifest import Manifest, ManifestRef, ShardRecord
from shardyfusion.reader.details import ShardDetails, SnapshotInfo, describe_shard, describe_snapshot
from shardyfusion.reader.local_root import LocalRoot
from shardyfusion.reader.router import KeyPlacer
from shardyfusion.shard_contract import ShardReader, ShardReaderFactory, ShardSource
from shardyfusion.shard_places import ShardPlace, locate_shards
from shardyfusion.slatedb_adapter import SlateDbReaderFactory
from shardyfusion.sqlite_adapter import SqliteReaderFactory
from shardyfusion.storage import ObjectStore, StoreAddress, open_store
from shardyfusion.type_defs import BackendName, require

_log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A snapshot with its shards. `fallback_from` is the URL of the served manifest, if that could not be read."""

    ref: ManifestRef
    generation: Generation
    fallback_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class SnapshotSource:
    """Where snapshots come from and how this reader was told to open them."""

    address: StoreAddress
    store: ObjectStore
    local_root: LocalRoot
    reader_factory: ShardReaderFactory | None
    allow_external_shards: bool
    pointer_name: str

    def __post_init__(self) -> None:
        given = self.reader_factory
        reads = isinstance(getattr(given, "backend", None), str) and callable(getattr(given, "open_reader", None))
        name = f"the class {given.__name__}" if isinstance(given, type) else f"{type(given).__name__}"
        require(
            given is None or (reads and not isinstance(given, type)),
            f"reader_factory is {name}, which opens no shards for reading; "
            "pass SqliteReaderFactory(...) or SlateDbReaderFactory(...), or none",
        )

    def served(self, after: ManifestRef | None = None) -> ManifestRef:
        return served_manifest(self.store, after=after, pointer_name=self.pointer_name)

    def open(self, max_fallbacks: int) -> Opened:
        """What is served, or, where its manifest cannot be read, the newest of so many older snapshots that can be."""
        ref = self.served()
        try:
            return Opened(ref, self.load(ref))
        except ManifestParseError as exc:
            for older in islice(snapshots_before(self.store, ref, pointer_name=self.pointer_name), max_fallbacks):
                try:
                    generation = self.load(older)
                except ManifestParseError as also:
                    _log.warning("cannot fall back to run %r: %s", older.run_id, also)
                    continue
                _log.warning(
                    "%s: serving the older run %r (commit %s), because the newest manifest cannot be read: %s",
                    self.store.url,
                    older.run_id,
                    older.seq,
                    exc,
                )
                return Opened(older, generation, fallback_from=ref.ref)
            raise

    def load(self, ref: ManifestRef) -> Generation:
        """Fetch the manifest and decide everything about it that can be wrong; no shard is opened."""
        manifest = load_manifest(self.store, ref)
        places = locate_shards(manifest, self.address.url, allow_external=self.allow_external_shards)
        backend = manifest.backend
        factory = self.reader_factory
        if factory is None and places:
            backend = backend or _detect_backend(self.store_at(next(iter(places.values())).root_url), places)
            factory = SqliteReaderFactory() if backend == "sqlite" else SlateDbReaderFactory()
        elif factory is not None and backend is not None and factory.backend != backend:
            raise ConfigValidationError(
                f"{ref.ref} holds {backend} shards, but {type(factory).__name__} reads {factory.backend}; "
                "pass the other reader_factory, or none"
            )
        return Generation(source=self, manifest=manifest, places=places, factory=factory, backend=backend)

    def store_at(self, root_url: str) -> ObjectStore:
        return self.store if root_url == self.address.url else open_store(self.address.at(root_url))


class Generation:
    """The shard readers of one manifest, each opened at the first use of its shard.

    Invariants: a handle that was opened is closed exactly once, by `close()`, also when opening another one failed;
    nothing is opened after `close()`. Used by one thread at a time.
    """

    def __init__(
        self,
        *,
        source: SnapshotSource,
        manifest: Manifest,
        places: dict[int, ShardPlace],
        factory: ShardReaderFactory | None,
        backend: BackendName | None,
    ) -> None:
        self.manifest = manifest
        self.placer = KeyPlacer.of(manifest)
        self._source = source
        self._places = places
        self._factory = factory
        self._backend: BackendName | None = factory.backend if factory and places else backend
        self._records = {record.db_id: record for record in manifest.shards}
        self._open: dict[int, ShardReader] = {}
        self._handles = ExitStack()
        self._closed = False

    def shard(self, db_id: int) -> ShardReader | None:
        """The open reader of a shard, or None if the shard is empty."""
        reader = self._open.get(db_id)
        if reader is None and db_id in self._places:
            reader = self._open[db_id] = self._open_shard(db_id)
        return reader

    def _open_shard(self, db_id: int) -> ShardReader:
        if self._closed or self._factory is None:
            raise ReaderStateError(f"shard {db_id} is asked of a snapshot that is closed", run_id=self.manifest.run_id)
        place, record = self._places[db_id], self._records[db_id]
        reader = self._factory.open_reader(
            ShardSource(
                db_id=db_id,
                store=self._source.store_at(place.root_url),
                address=self._source.address.at(place.root_url),
                directory=place.directory,
                objects=record.objects,
                identity=shard_identity(self.manifest, record),
                cache=self._source.local_root.path,
            )
        )
        self._handles.callback(reader.close)
        return reader

    def cached_names(self) -> frozenset[str]:
        """The names that downloads of these shards have in a cache directory."""
        return frozenset(
            cached_name(
                join_url(place.url, SQLITE_FILE),
                sha256=next((o.sha256 for o in self._records[db_id].objects if o.path == SQLITE_FILE), None),
                identity=shard_identity(self.manifest, self._records[db_id]),
            )
            for db_id, place in self._places.items()
        )

    def describe(self, ref: ManifestRef, *, fallback_from: str | None) -> SnapshotInfo:
        return describe_snapshot(
            ref,
            self.manifest,
            prefix=self._source.address.url,
            backend=self._backend,
            context_columns={name: kind.value for name, kind in self.placer.router.context_columns.items()},
            fallback_from=fallback_from,
        )

    def describe_shard(self, db_id: int) -> ShardDetails:
        return describe_shard(db_id, self._records, self._places)

    def close(self) -> None:
        self._closed = True
        self._open.clear()
        self._handles.close()


def shard_identity(manifest: Manifest, record: ShardRecord) -> str:
    """Changes whenever the shard's bytes may have changed; stays when the snapshot is moved.

    A checkpoint id is fresh for every attempt. Without one, only the build tells two shards at one URL apart.
    """
    return f"{record.db_url} {record.checkpoint_id or f'{manifest.run_id} {manifest.created_at.isoformat()}'}"


def _detect_backend(store: ObjectStore, places: dict[int, ShardPlace]) -> BackendName:
    """The reference records no backend. One request for one name tells them apart without permission to list."""
    first = next(iter(places.values()))
    return "sqlite" if store.head(join_url(first.directory, SQLITE_FILE)) is not None else "slatedb"
