"""Rows into the table `kv` by SQLite's own INSERT: in any order, and the last write of a key wins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shardyfusion.sqlite_adapter.cells import joined, offsets

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# Nobody else sees the file before it is complete, and what a crash leaves of it is not used.
UNSAFE_PRAGMAS = ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "temp_store=MEMORY")
_CACHE = "cache_size=-2000"
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


class InsertWriter:
    """One transaction on an existing file. Errors are apsw's."""

    def __init__(self, path: Path) -> None:
        import apsw

        self._connection = apsw.Connection(str(path))
        for pragma in (*UNSAFE_PRAGMAS, _CACHE):
            self._connection.pragma(*pragma.split("="))
        self._connection.execute("BEGIN")

    @property
    def page_count(self) -> int:
        return int(self._connection.pragma("page_count"))

    def write_arrow(self, batch: pa.RecordBatch) -> None:
        """Insert rows with columns `key` and `value`, both `large_binary` without nulls."""
        import apsw

        for rows, blob, packed in _runs(batch):
            if packed is None:
                pair = (rows.column("key")[0].as_py(), rows.column("value")[0].as_py())
                self._connection.execute(_INSERT_PAIR, pair)
            else:
                bound = apsw.carray(packed, flags=apsw.SQLITE_CARRAY_INT64)
                self._connection.execute(_INSERT_RUN, (blob, bound))

    def write_pairs(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._connection.executemany(_INSERT_PAIR, pairs)

    def finish(self) -> None:
        """Commit, and close the file."""
        self._connection.execute("COMMIT")
        self._connection.close()

    def close(self) -> None:
        with suppress(Exception):  # it may hide no exception in flight, and nothing of value is lost
            self._connection.close(True)


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, pa.Buffer | bytes, np.ndarray | None]]:
    """Cut a batch into runs of less than 2 MiB: their rows, their bytes as one blob, and where each row is in it.

    A row that is larger by itself comes alone, with None for the latter.
    """
    import numpy as np

    key_ends, value_ends = offsets(batch.column("key")), offsets(batch.column("value"))
    row_ends = key_ends + value_ends
    start = 0
    while start < batch.num_rows:
        stop = int(np.searchsorted(row_ends, row_ends[start] + _RUN_BYTES, side="right")) - 1
        if stop <= start:
            yield batch.slice(start, 1), b"", None
            start += 1
            continue
        rows = batch.slice(start, stop - start)
        packed = (row_ends[start:stop] - row_ends[start]) << (2 * _BITS)
        packed |= np.diff(key_ends[start : stop + 1]) << _BITS
        packed |= np.diff(value_ends[start : stop + 1])
        # A blob without any byte would make substr() give NULL.
        blob = joined([rows.column("key"), rows.column("value")]).buffers()[2]
        yield rows, blob if row_ends[stop] > row_ends[start] else b"\0", packed
        start = stop
