"""What SQLite finds in a finished file, by a connection that did not write it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    import apsw
    import pyarrow as pa

_FROM_A_BATCH = 64
_AT_MOST = 2_048
_LONGEST_KEY = 4_096  # longer ones are not remembered


class RowSample:
    """Some of the rows that were written, spread over all of them: their keys, and digests of their values."""

    def __init__(self) -> None:
        self._rows: list[tuple[bytes, int]] = []
        self._offered = 0
        self._every = 1

    def __len__(self) -> int:
        return len(self._rows)

    def offer(self, batch: pa.RecordBatch) -> None:
        """Remember some rows of a batch with columns `key` and `value`, the first and the last among them."""
        import numpy as np

        keys, values = batch.column("key"), batch.column("value")
        for row in np.linspace(0, len(keys) - 1, min(len(keys), _FROM_A_BATCH)).astype(int).tolist():
            self._offered += 1
            if self._offered % self._every == 0:
                key: bytes = keys[row].as_py()
                if len(key) <= _LONGEST_KEY:
                    self._rows.append((key, xxhash.xxh3_64_intdigest(values[row].as_buffer())))
        if len(self._rows) > _AT_MOST:  # from now on half as many
            self._rows = self._rows[::2]
            self._every *= 2

    def not_in(self, database: apsw.Connection) -> bytes | None:
        """The key of a row that SQLite does not find as it was written; None if all are there."""
        for key, digest in self._rows:
            row = database.execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchone()
            if row is None or not isinstance(row[0], bytes) or xxhash.xxh3_64_intdigest(row[0]) != digest:
                return key
        return None


def count_rows(database: apsw.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM kv").get)


@contextmanager
def opened(path: Path) -> Generator[apsw.Connection]:
    """A finished file, to read from."""
    import apsw

    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.pragma("mmap_size", path.stat().st_size)  # several times as fast as reading page by page
        connection.execute("BEGIN")  # else every query locks the file anew
        yield connection
    finally:
        connection.close()
