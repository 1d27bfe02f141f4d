"""Is one shard what the manifest says? By sizes, by a sample of its rows, or by every byte and row.

Which snapshot is meant, and what the whole of it must fulfil, is in `verify.py`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from shardyfusion.errors import (
    ObjectNotFoundError,
    ReaderStateError,
    ShardTimeoutError,
    ShardUnavailableError,
    ShardyfusionError,
    StorageError,
)
from shardyfusion.layout import SEAL, SQLITE_FILE
from shardyfusion.local_cache import file_sha256
from shardyfusion.manifest import Manifest, ShardRecord
from shardyfusion.operations.verify_rows import RowScan
from shardyfusion.routing import Router
from shardyfusion.serde.keys import shown
from shardyfusion.shard_contract import ShardReader, ShardReaderFactory, ShardSource
from shardyfusion.shard_places import ShardPlace, locate_shard
from shardyfusion.slatedb_adapter import SlateDbReaderFactory
from shardyfusion.sqlite_adapter import SqliteReaderFactory
from shardyfusion.storage import ObjectStore, StoreAddress, open_store
from shardyfusion.storage.names import check_object_name

Mode = Literal["metadata", "sample", "full"]

_LOOKUPS = 20
_BATCH_ROWS = 8192
_BATCH_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """What was found out about one shard.

    `problem` says what is damaged, None for nothing. `unchecked` lists what could not be compared, because the manifest
    does not record it. `rows` were read; `bytes` are those of the objects that were compared, by size or by content.
    """

    db_id: int
    url: str
    problem: str | None = None
    unchecked: tuple[str, ...] = ()
    rows: int = 0
    bytes: int = 0


class _Seen:
    """What one check has come across, kept also if it then ends with a problem."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.unchecked: list[str] = []


@dataclass(frozen=True, kw_only=True)
class ShardVerifier:
    """Checks the shards of one manifest; `check` may be called from several threads.

    `router` may be the reason why keys cannot be routed. Downloads go below `scratch` and are removed again.
    """

    address: StoreAddress
    manifest: Manifest
    mode: Mode
    router: Router | str
    reader_factory: ShardReaderFactory | None
    allow_external_shards: bool
    sample_rows: int
    seed: int
    scratch: Path

    def check(self, record: ShardRecord) -> ShardCheck:
        """Damage is reported. What the store, the credentials or this machine cannot do is raised."""
        seen, url, problem = _Seen(), record.db_url or "", None
        try:
            place = locate_shard(self.manifest, record, self.address.url, allow_external=self.allow_external_shards)
            url = place.url
            self._check(record, place, seen)
        except (ReaderStateError, ObjectNotFoundError) as exc:
            _raise_what_is_no_damage(exc)
            problem = exc.message
        return ShardCheck(
            db_id=record.db_id,
            url=url,
            problem=problem,
            unchecked=tuple(seen.unchecked),
            rows=seen.rows,
            bytes=seen.bytes,
        )

    def _check(self, record: ShardRecord, place: ShardPlace, seen: _Seen) -> None:
        address = self.address.at(place.root_url)
        store = open_store(address)
        start = len(place.directory) + 1
        stored = {info.name[start:]: info.size for info in store.list(f"{place.directory}/")}
        stored.pop(SEAL, None)
        _check_sizes(record, stored, place, seen)
        if self.mode == "metadata":
            _check_newest_manifest(record, stored, store, place, seen)
        elif self.mode == "sample":
            with TemporaryDirectory(dir=self.scratch) as cache:
                source = self._source(record, store, address, place.directory, Path(cache))
                with _opened(self._factory(stored), source) as reader:
                    self._read_sample(reader, record, place, seen)
        else:
            with self._at_hand(store, address, place.directory, stored) as (local, local_store, directory):
                _check_digests(record, local.path / directory, place, seen)
                source = self._source(record, local_store, local, directory, self.scratch)
                with _opened(self._factory(stored), source) as reader:
                    self._read_all(reader, record, place, seen)

    def _factory(self, stored: Mapping[str, int]) -> ShardReaderFactory:
        if self.reader_factory is not None:
            return self.reader_factory
        backend = self.manifest.backend or ("sqlite" if SQLITE_FILE in stored else "slatedb")
        if backend == "slatedb":
            return SlateDbReaderFactory()
        return SqliteReaderFactory(verify_local=self.mode == "sample")  # in full, it has just been done

    def _source(
        self, record: ShardRecord, store: ObjectStore, address: StoreAddress, directory: str, cache: Path
    ) -> ShardSource:
        return ShardSource(
            db_id=record.db_id,
            store=store,
            address=address,
            directory=directory,
            objects=record.objects,
            identity=f"{record.db_url} {record.checkpoint_id}",
            cache=lambda: cache,
        )

    @contextmanager
    def _at_hand(
        self, store: ObjectStore, address: StoreAddress, directory: str, stored: Mapping[str, int]
    ) -> Generator[tuple[StoreAddress, ObjectStore, str]]:
        """The shard in a local directory: where it is, or a copy of all its objects, each fetched once."""
        if address.kind == "file":
            yield address, store, directory
            return
        with TemporaryDirectory(dir=self.scratch) as copy:
            for name in stored:
                path = Path(copy, "shard", check_object_name(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                store.download(f"{directory}/{name}", path)
            local = StoreAddress.parse(copy)
            yield local, open_store(local), "shard"

    def _read_sample(self, reader: ShardReader, record: ShardRecord, place: ShardPlace, seen: _Seen) -> None:
        rows = list(islice(reader.scan(), self.sample_rows))
        scan = self._row_scan(record, place)
        scan.add(rows)
        seen.rows = scan.rows
        if len(rows) < min(self.sample_rows, record.row_count) and record.row_digest:
            raise _damaged(record, place, f"it ends after {len(rows)} rows instead of {record.row_count}")
        if rows and record.key_bytes_min is not None and rows[0][0] != record.key_bytes_min:
            raise _damaged(record, place, f"its first key is {shown(rows[0][0])}, not {shown(record.key_bytes_min)}")
        if record.key_bytes_max is not None and reader.get(record.key_bytes_max) is None:
            raise _damaged(record, place, f"its last key {shown(record.key_bytes_max)} is not there")
        rng = random.Random(f"{self.seed} {record.db_id}")  # noqa: S311 (so that a sample can be repeated)
        chosen = rng.sample(rows, min(len(rows), _LOOKUPS))
        _check_lookups(reader, rows, dict(chosen), record, place)
        self._note_routing(seen)

    def _read_all(self, reader: ShardReader, record: ShardRecord, place: ShardPlace, seen: _Seen) -> None:
        scan = self._row_scan(record, place)
        batch: list[tuple[bytes, bytes]] = []
        held = 0
        for key, value in reader.scan():
            batch.append((key, value))
            held += len(key) + len(value)
            if len(batch) >= _BATCH_ROWS or held >= _BATCH_BYTES:
                scan.add(batch)
                seen.rows, batch, held = scan.rows, [], 0
        scan.add(batch)
        seen.rows = scan.rows
        seen.unchecked += scan.compare_with_record()
        self._note_routing(seen)

    def _row_scan(self, record: ShardRecord, place: ShardPlace) -> RowScan:
        return RowScan(
            record,
            router=None if isinstance(self.router, str) else self.router,
            encoding=self.manifest.key_encoding,
            damaged=lambda what: _damaged(record, place, what),
        )

    def _note_routing(self, seen: _Seen) -> None:
        if isinstance(self.router, str):
            seen.unchecked.append(f"whether its keys belong to it: {self.router}")


@contextmanager
def _opened(factory: ShardReaderFactory, source: ShardSource) -> Generator[ShardReader]:
    with ExitStack() as stack:
        reader = factory.open_reader(source)
        stack.callback(reader.close)
        yield reader


def _raise_what_is_no_damage(exc: ShardyfusionError) -> None:
    """The store did not answer, or refused, or a local disk is full: that says nothing about the shard."""
    cause = exc.__cause__
    if isinstance(cause, StorageError) and not isinstance(cause, ObjectNotFoundError):
        raise cause from None
    if isinstance(exc, ShardTimeoutError) or (isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)):
        raise exc


def _damaged(record: ShardRecord, place: ShardPlace, what: str) -> ShardUnavailableError:
    return ShardUnavailableError(f"shard {record.db_id} at {place.url} is damaged: {what}", db_id=record.db_id)


def _check_sizes(record: ShardRecord, stored: Mapping[str, int], place: ShardPlace, seen: _Seen) -> None:
    if not stored:
        raise _damaged(record, place, "nothing is stored there")
    if not record.objects:
        seen.unchecked.append("sizes and digests of its objects: none are recorded")
    for item in record.objects:
        if item.path not in stored:
            raise _damaged(record, place, f"{item.path} is missing")
        if stored[item.path] != item.size:
            raise _damaged(record, place, f"{item.path} has {stored[item.path]} bytes instead of {item.size}")
        seen.bytes += item.size


def _check_newest_manifest(
    record: ShardRecord, stored: Mapping[str, int], store: ObjectStore, place: ShardPlace, seen: _Seen
) -> None:
    """SlateDB's own manifest, which its readers start from, is the recorded one, and no later one is there."""
    recorded = [item for item in record.objects if _is_manifest(item.path)]
    if not recorded:
        return
    newest = max(recorded, key=lambda item: item.path)
    if hashlib.sha256(store.get(f"{place.directory}/{newest.path}").body).hexdigest() != newest.sha256:
        raise _damaged(record, place, f"{newest.path} is not what was recorded (sha256 differs)")
    if any(path > newest.path for path in stored if _is_manifest(path)):
        seen.unchecked.append("later manifests of SlateDB, as other versions' readers leave them: mode sample does")


def _is_manifest(path: str) -> bool:
    return path.startswith("manifest/")


def _check_digests(record: ShardRecord, directory: Path, place: ShardPlace, seen: _Seen) -> None:
    for item in record.objects:
        if file_sha256(directory / item.path) != item.sha256:
            raise _damaged(record, place, f"{item.path} is not what was recorded (sha256 differs)")


def _check_lookups(
    reader: ShardReader,
    rows: Sequence[tuple[bytes, bytes]],
    chosen: Mapping[bytes, bytes],
    record: ShardRecord,
    place: ShardPlace,
) -> None:
    """Keys that the scan found are found by lookups too, and what lies between two of them is not."""
    at_once = reader.get_many(list(chosen))
    for key, value in chosen.items():
        if reader.get(key) != value or at_once.get(key) != value:
            raise _damaged(record, place, f"key {shown(key)} reads otherwise in a lookup than in a scan")
    gaps = [key + b"\0" for (key, _), (after, _) in pairwise(rows) if key in chosen and after != key + b"\0"]
    for key, value in reader.get_many(gaps).items():
        raise _damaged(record, place, f"key {shown(key)} is in no row and still has the value {shown(value)}")
