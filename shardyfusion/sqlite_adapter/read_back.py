"""What SQLite finds in a finished file, by a connection that did not write it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from shardyfusion.sqlite_adapter.cells import offsets

if TYPE_CHECKING:
    import apsw
    import numpy as np
    import numpy.typing as npt
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

        rows = np.linspace(0, len(batch) - 1, min(len(batch), _FROM_A_BATCH)).astype(int)
        for key, value in zip(_at(batch.column("key"), rows), _at(batch.column("value"), rows), strict=True):
            self._offered += 1
            if self._offered % self._every == 0 and len(key) <= _LONGEST_KEY:
                self._rows.append((bytes(key), xxhash.xxh3_64_intdigest(value)))
        if len(self._rows) > _AT_MOST:  # from now on half as many
            self._rows = self._rows[::2]
            self._every *= 2

    def not_in(self, database: apsw.Connection) -> bytes | None:
        """The key of a row that SQLite does not find as it was written; None if all are there."""
        import apsw

        if not self._rows:
            return None
        unseen = dict(self._rows)
        keys = apsw.carray(tuple(unseen))
        for key, value in database.execute("SELECT value, v FROM carray(?) LEFT JOIN kv ON k = value", (keys,)):
            digest = unseen.pop(key, None)  # none: there are two
            if digest is None or not isinstance(value, bytes) or xxhash.xxh3_64_intdigest(value) != digest:
                return key
        return next(iter(unseen), None)


def _at(column: pa.LargeBinaryArray, rows: npt.NDArray[np.int64]) -> list[memoryview]:
    """The bytes in these rows, without a copy."""
    data, ends = memoryview(column.buffers()[2] or b""), offsets(column)
    return [data[start:end] for start, end in zip(ends[rows].tolist(), ends[rows + 1].tolist(), strict=True)]


def count_rows(database: apsw.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM kv").get)


@contextmanager
def opened(path: Path) -> Generator[apsw.Connection]:
    """A finished file, to read from: nobody changes it, so that it need not be locked."""
    import apsw

    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(f"{path.absolute().as_uri()}?immutable=1", flags=flags)
    try:
        connection.pragma("mmap_size", path.stat().st_size)  # several times as fast as reading page by page
        yield connection
    finally:
        connection.close()
