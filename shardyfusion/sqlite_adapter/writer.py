"""Builds one shard as a SQLite file in local scratch, and uploads it when sealed.

SQLite itself writes every page. Reading is in `reader.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from shardyfusion._optional import needs
from shardyfusion.errors import InputDataError, MissingExtraError, ShardWriteError
from shardyfusion.layout import SQLITE_FILE, SQLITE_TYPE, join_url
from shardyfusion.local_cache import file_sha256
from shardyfusion.manifest.models import ShardObject
from shardyfusion.shard_contract import SealedShard, ShardTarget
from shardyfusion.storage import StoreAddress
from shardyfusion.type_defs import BackendName, require

if TYPE_CHECKING:
    import apsw
    import numpy as np
    import pyarrow as pa

_EXTRA = "writer-dask-sqlite"
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_TABLE = "CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID"
_PRAGMAS = ("journal_mode=OFF", "synchronous=OFF", "cache_size=-2000", "locking_mode=EXCLUSIVE", "temp_store=MEMORY")
_INSERT_PAIR = "INSERT OR REPLACE INTO kv VALUES (?, ?)"

# A run of rows is one blob of all keys and values, and one int64 per row: offset, key length and value length in it,
# 21 bits each. SQLite cuts the blob apart by itself, without the GIL; a join of two arrays would be quadratic.
_BITS = 21
_RUN_BYTES = (1 << _BITS) - 1
_INSERT_RUN = f"""
    INSERT OR REPLACE INTO kv
    SELECT substr(?1, (value >> {2 * _BITS}) + 1, (value >> {_BITS}) & {_RUN_BYTES}),
           substr(?1, (value >> {2 * _BITS}) + ((value >> {_BITS}) & {_RUN_BYTES}) + 1, value & {_RUN_BYTES})
    FROM carray(?2)"""  # noqa: S608 - only our own constants


@dataclass(frozen=True, kw_only=True)
class SqliteFactory:
    """Shards as SQLite files `shard.db` with one table `kv`.

    Args:
        page_size: Bytes of a database page. Larger ones suit values of several kilobytes.
    """

    page_size: int = 4096

    def __post_init__(self) -> None:
        require(self.page_size in _PAGE_SIZES, f"page_size {self.page_size!r} must be one of {_PAGE_SIZES}")

    @property
    def backend(self) -> BackendName:
        return "sqlite"

    @property
    def max_key_bytes(self) -> int | None:
        return None

    @property
    def min_key_bytes(self) -> int:
        return 0

    def check(self, address: StoreAddress) -> None:
        """Any store will do; only the packages have to be there."""
        del address
        needs("pyarrow", extra=_EXTRA)
        if not hasattr(needs("apsw", extra=_EXTRA), "carray"):
            raise MissingExtraError("this apsw was built without carray; run: pip install --force-reinstall apsw")

    def open(self, target: ShardTarget) -> SqliteAdapter:
        needs("apsw", extra=_EXTRA)
        return SqliteAdapter(target, page_size=self.page_size)


class SqliteAdapter:
    """One shard being written, in one transaction of a private file.

    Invariant: the connection is open until `seal()` or `close()`, and the target holds nothing before `seal()`.
    """

    def __init__(self, target: ShardTarget, *, page_size: int) -> None:
        import apsw

        self._target = target
        self._name = f"{target.directory}/{SQLITE_FILE}"
        self._url = join_url(target.store.url, self._name)
        self._path = target.scratch / SQLITE_FILE
        self._page_size = page_size
        self._sealed_bytes: int | None = None
        self._connection: apsw.Connection | None = None
        with self._translated("create"):
            self._connection = apsw.Connection(str(self._path))
            for pragma in (f"page_size={page_size}", *_PRAGMAS):
                self._connection.pragma(*pragma.split("="))
            self._connection.execute(_TABLE)
            self._connection.execute("BEGIN")

    def write_arrow(self, batch: pa.RecordBatch) -> None:
        import apsw

        connection = self._writable()
        with self._translated("write"):
            for rows, blob, packed in _runs(batch):
                if packed is None:
                    pair = (rows.column("key")[0].as_py(), rows.column("value")[0].as_py())
                    connection.execute(_INSERT_PAIR, pair)
                else:
                    bound = apsw.carray(packed, flags=apsw.SQLITE_CARRAY_INT64)
                    connection.execute(_INSERT_RUN, (blob, bound))

    def write_batch(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        connection = self._writable()
        with self._translated("write"):
            connection.executemany(_INSERT_PAIR, pairs)

    def seal(self) -> SealedShard:
        """Commit, count the rows in the closed file, upload it, and see that it arrived."""
        connection = self._writable()
        with self._translated("commit"):
            connection.execute("COMMIT")
            connection.close()
            self._connection = None
            rows = _count_rows(str(self._path))
        size = self._path.stat().st_size
        self._target.store.upload(self._name, self._path, content_type=SQLITE_TYPE)
        stored = self._target.store.head(self._name)
        if stored is None or stored.size != size:
            found = "nothing" if stored is None else f"{stored.size} bytes"
            raise ShardWriteError(f"uploaded {size} bytes to {self._url}, and the store then had {found}")
        self._sealed_bytes = size
        sealed = ShardObject(path=SQLITE_FILE, size=size, sha256=file_sha256(self._path))
        return SealedShard(rows=rows, db_bytes=size, objects=(sealed,))

    def db_bytes(self) -> int:
        if self._connection is None:
            return self._sealed_bytes or 0
        return int(self._connection.pragma("page_count")) * self._page_size

    def close(self) -> None:
        """Drop the connection; without `seal()` nothing was published, and the scratch is the caller's to remove."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may hide no exception in flight, and nothing of value is lost
                connection.close(True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _writable(self) -> apsw.Connection:
        if self._connection is None:
            raise ShardWriteError(f"the writer of {self._url} is closed", db_id=self._target.db_id)
        return self._connection

    @contextmanager
    def _translated(self, verb: str) -> Generator[None]:
        import apsw

        try:
            yield
        except apsw.TooBigError as exc:
            raise InputDataError(f"a row of {self._url} is larger than SQLite's limit of 1,000,000,000 bytes") from exc
        except apsw.FullError as exc:
            raise ShardWriteError(
                f"cannot {verb} {self._path} for {self._url}: the disk is full ({exc}); free some space, or set "
                "output.local_root to a larger disk",
                db_id=self._target.db_id,
            ) from exc
        except apsw.Error as exc:
            raise ShardWriteError(
                f"cannot {verb} {self._path} for {self._url}: {exc}", db_id=self._target.db_id
            ) from exc


def _count_rows(path: str) -> int:
    """Rows of the finished file, by a connection that did not write them."""
    import apsw

    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        (rows,) = next(connection.execute("SELECT count(*) FROM kv"))
        return int(rows)
    finally:
        connection.close()


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, pa.Buffer | bytes, np.ndarray | None]]:
    """Cut a batch into runs of less than 2 MiB: their rows, their bytes as one blob, and where each row is in it.

    A row that is larger by itself comes alone, with None for the latter.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    key_ends, value_ends = _offsets(batch.column("key")), _offsets(batch.column("value"))
    row_ends = key_ends + value_ends
    nothing = pa.scalar(b"", pa.large_binary())
    start = 0
    while start < batch.num_rows:
        stop = int(np.searchsorted(row_ends, row_ends[start] + _RUN_BYTES, side="right")) - 1
        if stop <= start:
            yield batch.slice(start, 1), b"", None
            start += 1
            continue
        rows = batch.slice(start, stop - start)
        joined = pc.call_function("binary_join_element_wise", [rows.column("key"), rows.column("value"), nothing])
        packed = (row_ends[start:stop] - row_ends[start]) << (2 * _BITS)
        packed |= np.diff(key_ends[start : stop + 1]) << _BITS
        packed |= np.diff(value_ends[start : stop + 1])
        # A blob without any byte would make substr() give NULL.
        yield rows, joined.buffers()[2] if row_ends[stop] > row_ends[start] else b"\0", packed
        start = stop


def _offsets(column: pa.Array[Any]) -> np.ndarray:
    """Where each value of a `large_binary` array starts, and the last one ends; without a copy."""
    import numpy as np

    return np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, column.offset * 8)
