"""Builds one shard as a SQLite file in local scratch, and uploads it when sealed.

Rows that ascend are written as pages (`pages.py`), others by SQLite (`inserts.py`). Reading is in `reader.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from shardyfusion._optional import needs
from shardyfusion.errors import InputDataError, MissingExtraError, ShardCoverageError, ShardWriteError
from shardyfusion.layout import SQLITE_FILE, SQLITE_TYPE, join_url
from shardyfusion.local_cache import file_sha256
from shardyfusion.manifest.models import ShardObject
from shardyfusion.shard_contract import SealedShard, ShardTarget
from shardyfusion.sqlite_adapter.cells import RecordTooLongError
from shardyfusion.sqlite_adapter.inserts import UNSAFE_PRAGMAS, InsertWriter
from shardyfusion.sqlite_adapter.pages import PageWriter
from shardyfusion.sqlite_adapter.read_back import RowSample, count_rows, opened
from shardyfusion.storage import StoreAddress
from shardyfusion.type_defs import BackendName, require

if TYPE_CHECKING:
    import apsw
    import pyarrow as pa

_EXTRA = "writer-dask-sqlite"
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_TABLE = "CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID"
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    """One shard being written to a private file: as pages while keys ascend, by SQLite's inserts ever after.

    Invariants: the target holds nothing before `seal()`. `_pages` or `_inserts` is open, never both; none is after
    `seal()`, `close()` or an error that leaves the file worthless.
    """

    def __init__(self, target: ShardTarget, *, page_size: int) -> None:
        self._target = target
        self._name = f"{target.directory}/{SQLITE_FILE}"
        self._url = join_url(target.store.url, self._name)
        self._path = target.scratch / SQLITE_FILE
        self._page_size = page_size
        self._sealed_bytes: int | None = None
        self._pages: PageWriter | None = None
        self._inserts: InsertWriter | None = None
        self._sample = RowSample()
        with self._translated("create"):
            if PageWriter.can_continue(_create(self._path, page_size), page_size):
                self._pages = PageWriter(self._path, page_size)
            else:
                self._inserts = InsertWriter(self._path)

    def write_arrow(self, batch: pa.RecordBatch) -> None:
        with self._translated("write"):
            if self._pages is None or not self._appended(self._pages, batch):
                self._inserting().write_arrow(batch)

    def write_batch(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        with self._translated("write"):
            inserts = self._inserting()
        with self._translated("write", os_errors=False):  # those would be of the caller's own iterable
            inserts.write_pairs(pairs)

    def seal(self) -> SealedShard:
        """Complete the file, look for its rows there, upload it, and see that it arrived."""
        with self._translated("commit"):
            if self._inserts is None:
                self._finish_pages()
            else:
                self._inserts.finish()
                self._inserts = None
            with opened(self._path) as database:
                self._look_for_sample(database)
                rows = count_rows(database)
        size = self._path.stat().st_size
        with self._target.checksumming():
            sha256 = file_sha256(self._path)
        with self._target.uploading():
            self._target.store.upload(self._name, self._path, content_type=SQLITE_TYPE)
            stored = self._target.store.head(self._name)
        if stored is None or stored.size != size:
            found = "nothing" if stored is None else f"{stored.size} bytes"
            raise ShardWriteError(f"uploaded {size} bytes to {self._url}, and the store then had {found}")
        self._sealed_bytes = size
        sealed = ShardObject(path=SQLITE_FILE, size=size, sha256=sha256)
        return SealedShard(rows=rows, db_bytes=size, objects=(sealed,))

    def db_bytes(self) -> int:
        """Bytes of the pages so far; up to a few megabytes of rows may not be in pages yet."""
        writer = self._pages or self._inserts
        return (self._sealed_bytes or 0) if writer is None else writer.page_count * self._page_size

    def close(self) -> None:
        """Close the file; without `seal()` nothing was published, and the scratch is the caller's to remove."""
        for writer in (self._pages, self._inserts):
            if writer is not None:
                writer.close()
        self._pages = self._inserts = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _appended(self, pages: PageWriter, batch: pa.RecordBatch) -> bool:
        try:
            appended = pages.append(batch)
        except BaseException:
            self.close()
            raise
        if appended:
            self._sample.offer(batch)
        return appended

    def _inserting(self) -> InsertWriter:
        """SQLite takes over what there is, for good."""
        if self._inserts is None:
            self._finish_pages()
            with opened(self._path) as database:
                self._look_for_sample(database)
            self._sample = RowSample()  # from now on rows may be replaced
            self._inserts = InsertWriter(self._path)
        return self._inserts

    def _finish_pages(self) -> None:
        if self._pages is None:
            raise ShardWriteError(f"the writer of {self._url} is closed", db_id=self._target.db_id)
        try:
            self._pages.finish()
        finally:
            self.close()

    def _look_for_sample(self, database: apsw.Connection) -> None:
        """Let SQLite look for some of the rows that it did not write itself."""
        key = self._sample.not_in(database)
        if key is not None:
            raise ShardCoverageError(
                f"{self._path} for {self._url} does not hold the row of the key {key[:64].hex()} (hex) as it was "
                "written; nothing was published",
                db_id=self._target.db_id,
            )

    @contextmanager
    def _translated(self, verb: str, *, os_errors: bool = True) -> Generator[None]:
        import apsw

        try:
            yield
        except (apsw.TooBigError, RecordTooLongError) as exc:
            raise InputDataError(f"a row of {self._url} is larger than SQLite's limit of 1,000,000,000 bytes") from exc
        except (apsw.Error, OSError) as exc:
            if isinstance(exc, OSError) and not os_errors:
                raise
            problem = f"cannot {verb} {self._path} for {self._url}: "
            if isinstance(exc, apsw.FullError) or (isinstance(exc, OSError) and exc.errno in _FULL):
                problem += f"the disk is full ({exc}); free some space, or set output.local_root to a larger disk"
            else:
                problem += str(exc)
            raise ShardWriteError(problem, db_id=self._target.db_id) from exc


_empty: dict[int, bytes] = {}
"""By page size, what SQLite has made of the empty table: it makes it once in each process."""


def _create(path: Path, page_size: int) -> bytes:
    """A database with the empty table; returns what is in its file."""
    if page_size not in _empty:
        _let_sqlite_create(path, page_size)
        _empty[page_size] = path.read_bytes()
    path.write_bytes(_empty[page_size])
    return _empty[page_size]


def _let_sqlite_create(path: Path, page_size: int) -> None:
    import apsw

    connection = apsw.Connection(str(path))
    try:
        for pragma in (f"page_size={page_size}", *UNSAFE_PRAGMAS):
            connection.pragma(*pragma.split("="))
        connection.execute(_TABLE)
    finally:
        connection.close()
