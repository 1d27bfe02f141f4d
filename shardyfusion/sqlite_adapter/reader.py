"""Serves one SQLite shard from a local file: in place for a local store, else downloaded first.

Which shard a key belongs to is decided elsewhere. Only the standard library is needed.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from shardyfusion.errors import ReaderStateError, ShardTimeoutError, ShardUnavailableError, StorageError
from shardyfusion.layout import SQLITE_FILE, join_url
from shardyfusion.local_cache import check_file, fetch
from shardyfusion.shard_contract import ShardSource
from shardyfusion.type_defs import BackendName, require, require_type

_KEYS_PER_QUERY = 500
_GET = "SELECT v FROM kv WHERE k = ?"
_SCAN = "SELECT k, v FROM kv ORDER BY k"
_IS_TABLE = "SELECT 1 FROM sqlite_master WHERE name = 'kv' AND type = 'table' AND upper(sql) LIKE 'CREATE TABLE%'"


@dataclass(frozen=True, kw_only=True)
class SqliteReaderFactory:
    """Reads SQLite shards.

    Args:
        mmap_bytes: How much of a shard may be mapped into memory; 0 reads by system calls instead.
        cache_bytes: SQLite's own page cache per shard, for what is not mapped.
        verify_local: Also check the digest of shards that are read in place from a local store, once per process.
            (A downloaded shard is always checked.)
    """

    mmap_bytes: int = 256 * 1024 * 1024
    cache_bytes: int = 8 * 1024 * 1024
    verify_local: bool = True

    def __post_init__(self) -> None:
        for name, expected in (("mmap_bytes", int), ("cache_bytes", int), ("verify_local", bool)):
            require_type(getattr(self, name), expected, name)
        require(self.mmap_bytes >= 0, f"mmap_bytes {self.mmap_bytes!r} must not be negative")
        require(self.cache_bytes >= 1024, f"cache_bytes {self.cache_bytes!r} must be at least 1024")

    @property
    def backend(self) -> BackendName:
        return "sqlite"

    def open_reader(self, source: ShardSource) -> SqliteReader:
        name = f"{source.directory}/{SQLITE_FILE}"
        url = join_url(source.store.url, name)
        path = self._local_file(source, name, url)
        try:
            return SqliteReader(path, url=url, db_id=source.db_id, settings=self)
        except ShardUnavailableError:
            if path.exists():
                raise
        # A reader of a later snapshot, which shares the cache, has removed the file since.
        return SqliteReader(self._local_file(source, name, url), url=url, db_id=source.db_id, settings=self)

    def _local_file(self, source: ShardSource, name: str, url: str) -> Path:
        recorded = next((found for found in source.objects if found.path == SQLITE_FILE), None)
        size, sha256 = (recorded.size, recorded.sha256) if recorded else (None, None)
        try:
            if source.address.kind != "file":
                cache = source.cache()
                return fetch(source.store, name, cache=cache, sha256=sha256, size=size, identity=source.identity)
            path = source.address.path / name
            check_file(path, sha256=sha256 if self.verify_local else None, size=size, url=url)
        except (StorageError, OSError) as exc:
            passing = isinstance(exc, StorageError) and exc.retryable
            error = ShardTimeoutError if passing else ShardUnavailableError
            raise error(f"shard {source.db_id} cannot be read from {url}: {exc}") from exc
        return path


class SqliteReader:
    """One open shard; any thread may use it, but one at a time."""

    def __init__(self, path: Path, *, url: str, db_id: int, settings: SqliteReaderFactory) -> None:
        self._url = url
        self._db_id = db_id
        self._connection: sqlite3.Connection | None = None
        with self._translated():
            # immutable: no locks and no look at the file's age, which is a third of the time of a lookup.
            uri = f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        try:
            with self._translated():
                self._prepare(connection, settings)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        # A reader that is dropped without close() leaves nothing open behind, and no ResourceWarning.
        self._release = weakref.finalize(self, connection.close)
        self._release.atexit = False  # a daemon thread may still be inside SQLite then, and would crash the process

    def _prepare(self, connection: sqlite3.Connection, settings: SqliteReaderFactory) -> None:
        # The file may come from anywhere: no code that its schema names is run, and `kv` is nothing but a table.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute(f"PRAGMA mmap_size = {settings.mmap_bytes:d}")
        connection.execute(f"PRAGMA cache_size = -{settings.cache_bytes // 1024:d}")
        connection.execute("BEGIN")  # held open: a transaction per lookup would cost more than the lookup
        if connection.execute(_IS_TABLE).fetchone() is None:
            raise ShardUnavailableError(f"shard {self._db_id} at {self._url} has no table kv")
        connection.execute(_GET, (b"",)).fetchone()

    def get(self, key: bytes) -> bytes | None:
        connection = self._connection or self._open()
        try:  # not `_translated`, which would be a fifth of the time of a lookup
            row = connection.execute(_GET, (key,)).fetchone()
        except sqlite3.Error as exc:
            raise self._unreadable(exc) from exc
        return None if row is None else self._as_bytes(row[0])

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        with self._translated():
            connection = self._open()
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                chunk = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(chunk))
                rows = connection.execute(f"SELECT k, v FROM kv WHERE k IN ({marks})", chunk)  # noqa: S608
                found.update(rows)
        for key, value in found.items():
            if type(value) is not bytes:
                found[key] = self._as_bytes(value)
        return found

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        self._open()
        return self._scan()

    def _scan(self) -> Iterator[tuple[bytes, bytes]]:
        with self._translated():
            # Row by row: rows of any size may follow, and fetching many at once is hardly faster.
            for key, value in self._open().execute(_SCAN):
                yield self._as_bytes(key), self._as_bytes(value)
                self._open()

    def close(self) -> None:
        if self._connection is not None:
            self._connection = None
            self._release()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ReaderStateError(f"the reader of shard {self._db_id} at {self._url} is closed")
        return self._connection

    def _as_bytes(self, stored: object) -> bytes:
        """Other writers store what a user's encoder returned, text included."""
        if isinstance(stored, bytes):
            return stored
        if isinstance(stored, str):
            return stored.encode()
        kind = type(stored).__name__
        raise ShardUnavailableError(f"shard {self._db_id} at {self._url} holds a {kind}; only bytes and text are read")

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise self._unreadable(exc) from exc

    def _unreadable(self, exc: Exception) -> ShardUnavailableError:
        return ShardUnavailableError(f"shard {self._db_id} at {self._url} cannot be read: {exc}")
