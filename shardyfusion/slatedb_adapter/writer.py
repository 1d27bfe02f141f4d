"""Builds one shard as a SlateDB database: straight in its store, or in local scratch and uploaded when sealed.

How calls reach SlateDB is in `bridge.py`, those that carry rows in `direct_calls.py`, what it is told in `settings.py`.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from shardyfusion._optional import needs
from shardyfusion.errors import InputDataError, ShardWriteError
from shardyfusion.layout import BINARY_TYPE, join_url
from shardyfusion.local_cache import file_sha256
from shardyfusion.manifest.models import ShardObject
from shardyfusion.shard_contract import SealedShard, ShardTarget
from shardyfusion.slatedb_adapter.bridge import Bridge
from shardyfusion.slatedb_adapter.direct_calls import MAX_LOWERED_BYTES, direct_calls
from shardyfusion.slatedb_adapter.reader import OpenDatabase
from shardyfusion.slatedb_adapter.rows import BATCH_BYTES, BATCH_ROWS, chunked, extreme_lengths, large_binary
from shardyfusion.slatedb_adapter.settings import (
    MAX_KEY_BYTES,
    Place,
    bulk_settings,
    check_deadline,
    local_place,
    place_of,
    reached,
    refusal,
)
from shardyfusion.storage import StoreAddress
from shardyfusion.storage.durable import sync_path
from shardyfusion.storage.s3 import ResolvedS3
from shardyfusion.type_defs import BackendName, require

if TYPE_CHECKING:
    import pyarrow as pa
    from slatedb.uniffi import Db

_EXTRA = "writer-dask-slatedb"
_ABORT_SECONDS = 10.0
_COUNT_CACHE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class _Factory:
    """What both ways of building share.

    Args:
        sst_bytes: Size of a sorted table. Up to five of them are held in memory by each shard being written.
        deadline_seconds: How long any one call into SlateDB may take before the attempt fails.
        binding: How rows go through the slatedb package. `"auto"`: by direct calls of its functions, once each process
            has tried them on an in-memory database, and if that fails as with `"shipped"`, which a warning in the log
            says once. `"shipped"`: by the package's own methods, several times slower. The shards are the same, and
            executions of one `run_id` may differ in it.
    """

    sst_bytes: int = 64 * 1024 * 1024
    deadline_seconds: float = 300.0
    binding: Literal["auto", "shipped"] = field(default="auto", metadata={"same_content": True})

    def __post_init__(self) -> None:
        require(self.binding in ("auto", "shipped"), f"binding {self.binding!r} must be 'auto' or 'shipped'")
        require(self.sst_bytes >= 1024 * 1024, f"sst_bytes {self.sst_bytes!r} must be at least 1048576")
        check_deadline(self.deadline_seconds)

    @property
    def backend(self) -> BackendName:
        return "slatedb"

    @property
    def max_key_bytes(self) -> int | None:
        return MAX_KEY_BYTES

    @property
    def min_key_bytes(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class SlateDbFactory(_Factory):
    """Shards as SlateDB databases, written straight to S3 or to a local directory."""

    def check(self, address: StoreAddress) -> None:
        self._reached(address)

    def open(self, target: ShardTarget) -> SlateDbAdapter:
        return DirectAdapter(target, self, self._reached(target.address))

    def _reached(self, address: StoreAddress) -> ResolvedS3 | None:
        needs("slatedb", extra=_EXTRA)
        s3 = reached(address)
        reason = refusal(address, s3)
        require(
            reason is None,
            f"SlateDbFactory cannot write to {address.url}: {reason}; use LocalSlateDbFactory or SqliteFactory",
        )
        return s3


@dataclass(frozen=True, kw_only=True)
class LocalSlateDbFactory(_Factory):
    """Shards as SlateDB databases, built in local scratch and uploaded to any store when sealed."""

    def check(self, address: StoreAddress) -> None:
        del address
        needs("slatedb", extra=_EXTRA)

    def open(self, target: ShardTarget) -> SlateDbAdapter:
        needs("slatedb", extra=_EXTRA)
        return LocalAdapter(target, self)


class SlateDbAdapter(ABC):
    """One shard being written. Subclasses say where the database is and how its objects become durable there.

    What `seal()` verifies: a fresh reader scans the whole closed database, which checks the checksum of every block,
    and counts its rows; every object is then read back from where it was built and recorded with its digest.
    """

    def __init__(self, target: ShardTarget, settings: _Factory) -> None:
        from slatedb.uniffi import DbBuilder

        self._target = target
        self._payload_bytes = 0
        self._largest_row = 0
        self._sealed: SealedShard | None = None
        self._db: Db | None = None
        self._closed = False
        self._bridge = Bridge(
            url=join_url(target.store.url, target.directory),
            db_id=target.db_id,
            deadline_seconds=settings.deadline_seconds,
            failure=ShardWriteError,
            impasse=lambda: self._full_disk(settings.sst_bytes),
        )
        with self._bridge.calling("create"):
            self._place = self._make_place()
            self._bridge = replace(self._bridge, endpoint=self._place.endpoint)
            builder = DbBuilder(self._place.path, self._place.store)
            builder.with_settings(bulk_settings(sst_bytes=settings.sst_bytes, retries=self._place.retries))
        self._direct = direct_calls() if settings.binding == "auto" else None
        self._db = self._bridge.run("create", builder.build)

    @abstractmethod
    def _make_place(self) -> Place:
        """Where the database is built."""

    @abstractmethod
    def _local_directory(self) -> Path | None:
        """Where on this machine the database is built, if it is."""

    def _full_disk(self, sst_bytes: int) -> str | None:
        """Why the next table cannot be written, if that is so."""
        directory = self._local_directory()
        if directory is None:
            return None
        with suppress(OSError):
            free = shutil.disk_usage(directory).free
            if free < sst_bytes:
                elsewhere = ", or set output.local_root to a larger disk" if directory == self._target.scratch else ""
                return f"the disk of {directory} is full ({free:,} bytes free); free some space{elsewhere}"
        return None

    @abstractmethod
    def _make_durable(self) -> None:
        """See to it that what SlateDB wrote to this machine's disk stays, if it is that what will be read."""

    @abstractmethod
    def _publish(self) -> tuple[ShardObject, ...]:
        """Make every object of the closed database durable at the target."""

    def write_arrow(self, batch: pa.RecordBatch) -> None:
        row_bytes = batch.nbytes // max(batch.num_rows, 1) + 1
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
        self._check_lengths(batch.column("key"), batch.column("value"))
        for start in range(0, batch.num_rows, rows):
            part = batch.slice(start, rows)
            self._put(part.column("key"), part.column("value"))
            self._payload_bytes += part.nbytes

    def write_batch(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        for chunk, held in chunked(pairs):
            keys, values = large_binary([key for key, _ in chunk]), large_binary([value for _, value in chunk])
            self._check_lengths(keys, values)
            self._put(keys, values)
            self._payload_bytes += held

    def _check_lengths(self, keys: pa.LargeBinaryArray, values: pa.LargeBinaryArray) -> None:
        if not len(keys):
            return
        shortest, longest = extreme_lengths(keys)
        largest = extreme_lengths(values)[1]
        # SlateDB 0.17 takes a longer key without a word, and then does not find it.
        if shortest < 1 or longest > MAX_KEY_BYTES:
            raise InputDataError(
                f"a key of {longest if shortest else 0} bytes cannot be stored in {self._bridge.url}: SlateDB takes "
                f"keys of 1 to {MAX_KEY_BYTES} bytes; use SqliteFactory",
                db_id=self._target.db_id,
            )
        if largest > MAX_LOWERED_BYTES:
            raise InputDataError(
                f"a value of {largest} bytes cannot be stored in {self._bridge.url}: {MAX_LOWERED_BYTES} is the most",
                db_id=self._target.db_id,
            )
        self._largest_row = max(self._largest_row, longest + largest)

    def _put(self, keys: pa.LargeBinaryArray, values: pa.LargeBinaryArray) -> None:
        from slatedb.uniffi import WriteBatch

        db = self._writable()
        with self._bridge.calling("write"):
            batch = WriteBatch()
            if self._direct is not None:
                self._direct.put_rows(batch, keys, values)
            else:
                for key, value in zip(keys.to_pylist(), values.to_pylist(), strict=True):
                    batch.put(key, value)
        self._bridge.run("write", lambda: db.write(batch))

    def seal(self) -> SealedShard:
        from slatedb.uniffi import FlushOptions, FlushType

        db = self._writable()
        everything = FlushOptions(flush_type=FlushType.MEM_TABLE)
        self._bridge.run("flush", lambda: db.flush_with_options(everything))
        self._bridge.run("close", db.shutdown)
        self._db = None
        with ThreadPoolExecutor(1) as pool:  # it waits for a disk while SlateDB reads
            durable = pool.submit(self._make_durable)
            rows = self._count_rows()
            durable.result()
        objects = self._publish()
        self._sealed = SealedShard(rows=rows, db_bytes=sum(found.size for found in objects), objects=objects)
        return self._sealed

    def _count_rows(self) -> int:
        database = OpenDatabase(self._bridge, self._place, cache_bytes=_COUNT_CACHE_BYTES)
        try:
            if self._direct is not None:
                return database.count(self._direct, row_bytes=self._largest_row)
            return sum(map(len, database.batches()))
        finally:
            database.close()

    def db_bytes(self) -> int:
        return self._sealed.db_bytes if self._sealed else self._payload_bytes

    def close(self) -> None:
        """Release the database. Without `seal()`, what it had stored already is removed, as far as that works."""
        if self._closed:
            return
        self._closed = True
        from slatedb.uniffi import CloseOptions

        db, self._db = self._db, None
        with suppress(Exception):  # it may hide no exception in flight
            if db is not None:
                without_flush = CloseOptions(flush_type=None)
                seconds = min(_ABORT_SECONDS, self._bridge.deadline_seconds)
                self._bridge.run(
                    "close",
                    lambda: db.shutdown_with_options(without_flush),
                    deadline_seconds=seconds,
                    if_late=self._remove_leftovers,
                )
            if self._sealed is None:  # not reached while the database, or its parent process, may still be writing
                self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """What was stored of an attempt that was never sealed, once its database writes no more."""
        self._target.store.delete(self._stored())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _stored(self) -> dict[str, int]:
        """What the target holds of this attempt: names and sizes."""
        return {info.name: info.size for info in self._target.store.list(f"{self._target.directory}/")}

    def _writable(self) -> Db:
        if self._db is None:
            raise ShardWriteError(f"the writer of {self._bridge.url} is closed", db_id=self._target.db_id)
        return self._db


class DirectAdapter(SlateDbAdapter):
    """Builds in the target's directory itself, which belongs to this attempt alone."""

    def __init__(self, target: ShardTarget, settings: _Factory, s3: ResolvedS3 | None) -> None:
        self._s3 = s3
        super().__init__(target, settings)

    def _make_place(self) -> Place:
        target = self._target
        if target.address.kind == "file":
            try:
                (target.address.path / target.directory).mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise ShardWriteError(f"cannot make {self._bridge.url}: {exc.strerror}", db_id=target.db_id) from exc
        return place_of(target.address, target.directory, self._s3)

    def _local_directory(self) -> Path | None:
        address = self._target.address
        return address.path if address.kind == "file" else None

    def _make_durable(self) -> None:
        address = self._target.address
        if address.kind == "file":  # SlateDB writes files without fsync
            files = [address.path / name for name in self._stored()]
            directories = {above for path in files for above in (path.parent, path.parent.parent)}
            for changed in (*files, *directories):
                sync_path(changed)

    def _publish(self) -> tuple[ShardObject, ...]:
        with self._target.checksumming():
            return tuple(
                ShardObject(path=name[len(self._target.directory) + 1 :], size=size, sha256=self._stored_sha256(name))
                for name, size in self._stored().items()
            )

    def _stored_sha256(self, name: str) -> str:
        target = self._target
        if target.address.kind == "file":
            return file_sha256(target.address.path / name)
        path = target.scratch / "read-back"
        target.store.download(name, path)
        try:
            return file_sha256(path)
        finally:
            path.unlink()


class LocalAdapter(SlateDbAdapter):
    """Builds in scratch, so that the store sees every object once and nothing before `seal()`."""

    def _make_place(self) -> Place:
        self._root = self._target.scratch / "slatedb"
        self._root.mkdir()
        return local_place(self._root)

    def _local_directory(self) -> Path | None:
        return self._target.scratch

    def _remove_leftovers(self) -> None:
        super()._remove_leftovers()
        # A database that closed late has made its directory anew, after the scratch was removed.
        shutil.rmtree(self._root, ignore_errors=True)
        with suppress(OSError):
            self._target.scratch.rmdir()

    def _make_durable(self) -> None:
        """Nothing: the store does that with what it is given."""

    def _publish(self) -> tuple[ShardObject, ...]:
        target = self._target
        with target.checksumming():
            objects = tuple(
                ShardObject(
                    path=path.relative_to(self._root).as_posix(), size=path.stat().st_size, sha256=file_sha256(path)
                )
                for path in sorted(self._root.rglob("*"))
                if path.is_file()
            )
        expected = {f"{target.directory}/{found.path}": found.size for found in objects}
        with target.uploading():
            for found in objects:
                name = f"{target.directory}/{found.path}"
                target.store.upload(name, self._root / found.path, content_type=BINARY_TYPE)
            stored = self._stored()
        if stored != expected:
            differing = sorted(name for name, _ in stored.items() ^ expected.items())
            raise ShardWriteError(f"{self._bridge.url} does not hold what was uploaded", objects=differing)
        return objects
