"""Serves one SlateDB shard straight from its store, or from a private copy where SlateDB cannot reach the store.

Nothing here writes to the store. How calls reach SlateDB is in `bridge.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardyfusion._optional import needs
from shardyfusion.errors import (
    ReaderStateError,
    ShardTimeoutError,
    ShardUnavailableError,
    ShardyfusionError,
    StorageError,
)
from shardyfusion.layout import join_url
from shardyfusion.local_cache import check_file
from shardyfusion.shard_contract import ShardSource
from shardyfusion.slatedb_adapter.bridge import Bridge
from shardyfusion.slatedb_adapter.direct_calls import DirectCalls
from shardyfusion.slatedb_adapter.settings import (
    MAX_KEY_BYTES,
    Place,
    block_cache,
    check_deadline,
    local_place,
    place_of,
    reached,
    reader_options,
    refusal,
    scan_options,
)
from shardyfusion.type_defs import BackendName, require

if TYPE_CHECKING:
    from slatedb.uniffi import DbIterator, DbReader, KeyValue, VersionedManifest

_KEYS_PER_CALL = 512
_GETS_AT_ONCE = 64
_FIRST_ROWS, _MOST_ROWS, _MOST_COUNTED = 4, 2048, 8192
_GROWTH = 8
_BATCH_BYTES = 4 * 1024 * 1024

_cache_ids = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class SlateDbReaderFactory:
    """Reads SlateDB shards.

    Args:
        deadline_seconds: How long any one call may take before the shard counts as unavailable.
        cache_bytes: Memory for blocks, shared by all shards that this process reads with this setting.
    """

    deadline_seconds: float = 30.0
    cache_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        check_deadline(self.deadline_seconds)
        require(self.cache_bytes > 0, f"cache_bytes {self.cache_bytes!r} must be positive")

    @property
    def backend(self) -> BackendName:
        return "slatedb"

    def open_reader(self, source: ShardSource) -> SlateDbReader:
        needs("slatedb", extra="read-slatedb")
        bridge = Bridge(
            url=join_url(source.store.url, source.directory),
            db_id=source.db_id,
            deadline_seconds=self.deadline_seconds,
            failure=ShardUnavailableError,
        )
        try:
            later = _check_stored(source, bridge)
            s3 = reached(source.address)
            if refusal(source.address, s3) is None:
                with bridge.calling("open"):
                    place = place_of(source.address, source.directory, s3)
                bridge = replace(bridge, endpoint=place.endpoint)
                return SlateDbReader(bridge, place, cache_bytes=self.cache_bytes, same_as=later)
            copy = _download(source)
        except (StorageError, OSError) as exc:
            passing = isinstance(exc, StorageError) and exc.retryable
            error = ShardTimeoutError if passing else ShardUnavailableError
            raise error(f"shard {source.db_id} cannot be read from {bridge.url}: {exc}") from exc
        try:
            with bridge.calling("open"):
                place = local_place(copy)
            return SlateDbReader(bridge, place, cache_bytes=self.cache_bytes, same_as=later, copy=copy)
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise


class SlateDbReader:
    """One open shard; any thread may use it, several at a time."""

    def __init__(
        self, bridge: Bridge, place: Place, *, cache_bytes: int, same_as: int | None, copy: Path | None = None
    ) -> None:
        self._bridge = bridge
        if same_as is not None:
            _check_later_manifest(bridge, place, same_as)
        self._database: OpenDatabase | None = OpenDatabase(bridge, place, cache_bytes=cache_bytes)
        # Also for a reader that is dropped and never closed.
        self._remove_copy = weakref.finalize(self, _remove_copy, copy, os.getpid())

    def get(self, key: bytes) -> bytes | None:
        reader = self._open().reader
        if not 0 < len(key) <= MAX_KEY_BYTES:  # SlateDB holds no such key, and refuses the question
            return None
        return self._bridge.run("read", lambda: reader.get(key))

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        reader = self._open().reader
        wanted = [key for key in keys if 0 < len(key) <= MAX_KEY_BYTES]
        found: dict[bytes, bytes] = {}
        for start in range(0, len(wanted), _KEYS_PER_CALL):
            chunk = wanted[start : start + _KEYS_PER_CALL]
            values = self._bridge.run("read", lambda chunk=chunk: _gather(reader, chunk))
            found.update((key, value) for key, value in zip(chunk, values, strict=True) if value is not None)
        return found

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        self._open()
        return self._scan()

    def _scan(self) -> Iterator[tuple[bytes, bytes]]:
        for batch in self._open().batches():
            for row in batch:
                yield row.key, row.value
            self._open()

    def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
            self._remove_copy()

    def _open(self) -> OpenDatabase:
        if self._database is None:
            raise ReaderStateError(f"the reader of shard {self._bridge.db_id} at {self._bridge.url} is closed")
        return self._database


class OpenDatabase:
    """A closed database, opened for reading in the one mode that writes nothing to the store."""

    def __init__(self, bridge: Bridge, place: Place, *, cache_bytes: int) -> None:
        from slatedb.uniffi import DbReaderBuilder, ReaderMode

        self._bridge = bridge
        with bridge.calling("open"):
            builder = DbReaderBuilder(place.path, place.store)
            # It is called: the binding has a class for every mode, and types them as something else.
            follow_latest: Any = ReaderMode.FOLLOW_LATEST
            builder.with_reader_mode(follow_latest())
            builder.with_options(reader_options(place.retries))
            builder.with_db_cache(block_cache(cache_bytes), next(_cache_ids))
        self.reader: DbReader = bridge.run("open", builder.build)

    def batches(self) -> Iterator[list[KeyValue]]:
        """All rows in ascending key order, in batches of at most a few megabytes, if no row is larger itself.

        SlateDB counts rows, not bytes: a batch is made for rows as large as the largest so far, and grows step by step.
        """
        rows = self._scan()
        size, largest = _FIRST_ROWS, 1
        while True:
            batch = self._bridge.run("scan", lambda size=size: rows.next_batch(size))
            yield batch
            if len(batch) < size:
                return
            largest = max(largest, max([len(row.key) + len(row.value) for row in batch]))
            size = max(1, min(_MOST_ROWS, size * _GROWTH, _BATCH_BYTES // largest))

    def count(self, direct: DirectCalls, *, row_bytes: int) -> int:
        """How many rows `batches` would yield: they are read all the same, but not lifted. None is over `row_bytes`."""
        rows = self._scan()
        size = max(1, min(_MOST_COUNTED, _BATCH_BYTES // max(row_bytes, 1)))
        total = 0
        while True:
            found = self._bridge.run("scan", lambda: direct.next_count(rows, size))
            total += found
            if found < size:
                return total

    def _scan(self) -> DbIterator:
        from slatedb.uniffi import KeyRange

        everything = KeyRange(start=None, start_inclusive=True, end=None, end_inclusive=False)
        options = scan_options()
        return self._bridge.run("scan", lambda: self.reader.scan_with_options(everything, options))

    def close(self) -> None:
        with suppress(ShardyfusionError):  # all that it held was memory
            self._bridge.run("close", self.reader.shutdown)


async def _gather(reader: DbReader, keys: Sequence[bytes]) -> list[bytes | None]:
    gate = asyncio.Semaphore(_GETS_AT_ONCE)

    async def get(key: bytes) -> bytes | None:
        async with gate:
            return await reader.get(key)

    return await asyncio.gather(*map(get, keys))


def _check_stored(source: ShardSource, bridge: Bridge) -> int | None:
    """Raise unless the store has what our manifest recorded.

    SlateDB's tables carry checksums, its manifest does not: a flipped bit there can make keys read as absent. So the
    recorded manifest is checked by digest. If there are later ones, the number of the recorded one is returned for
    `_check_later_manifest`.
    """
    if not source.objects:
        return None
    stored = {info.name[len(source.directory) + 1 :]: info.size for info in source.store.list(f"{source.directory}/")}
    for recorded in source.objects:
        if stored.get(recorded.path) != recorded.size:
            found = "missing" if recorded.path not in stored else f"of {stored[recorded.path]} bytes"
            raise ShardUnavailableError(
                f"shard {source.db_id}: {bridge.url}/{recorded.path} is {found}, recorded with {recorded.size}"
            )
    manifests = [found for found in source.objects if _is_manifest(found.path)]
    if not manifests:
        raise ShardUnavailableError(f"shard {source.db_id} at {bridge.url} is recorded without a manifest of SlateDB")
    newest = max(manifests, key=lambda found: found.path)
    body = source.store.get(f"{source.directory}/{newest.path}").body
    if hashlib.sha256(body).hexdigest() != newest.sha256:
        raise ShardUnavailableError(f"shard {source.db_id}: {bridge.url}/{newest.path} is not what was recorded")
    return int(Path(newest.path).stem) if any(path > newest.path for path in stored if _is_manifest(path)) else None


def _is_manifest(path: str) -> bool:
    return path.startswith("manifest/") and path.endswith(".manifest")


def _check_later_manifest(bridge: Bridge, place: Place, recorded: int) -> None:
    """Readers of other versions leave new manifests behind, which may differ in their checkpoints and nothing else."""
    from slatedb.uniffi import AdminBuilder

    with bridge.calling("open"):
        admin = AdminBuilder(place.path, place.store).build()
    ours = bridge.run("open", lambda: admin.read_manifest(recorded))
    latest = bridge.run("open", lambda: admin.read_manifest(None))
    if ours is None or latest is None or _contents(ours) != _contents(latest):
        raise ShardUnavailableError(
            f"shard {bridge.db_id} at {bridge.url} was changed after it was published; publish it anew"
        )


def _contents(manifest: VersionedManifest) -> dict[str, object]:
    return {name: value for name, value in vars(manifest).items() if name not in ("id", "checkpoints")}


def _remove_copy(copy: Path | None, owner: int) -> None:
    if copy is not None and os.getpid() == owner:  # a forked child drops the reader of its parent
        shutil.rmtree(copy, ignore_errors=True)


def _download(source: ShardSource) -> Path:
    """A private copy of all objects of the shard, in a new directory that the reader removes."""
    cache = source.cache()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(prefix=f"slatedb-{source.db_id:05d}-", dir=cache))
    recorded = {found.path: found for found in source.objects}
    try:
        for info in source.store.list(f"{source.directory}/"):
            name = info.name[len(source.directory) + 1 :]
            path = copy / name
            path.parent.mkdir(parents=True, exist_ok=True)
            source.store.download(info.name, path)
            sha256 = recorded[name].sha256 if name in recorded else None
            check_file(path, sha256=sha256, size=info.size, url=join_url(source.store.url, info.name))
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return copy
