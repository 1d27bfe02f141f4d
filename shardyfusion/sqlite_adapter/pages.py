"""Builds a B-tree of ascending rows page by page, many pages at a time: several times as fast as SQLite's own inserts.

It continues a file with one empty table, made by SQLite. Cells are made in `cells.py`, pages are written in
`page_file.py`; rows that do not ascend are left to SQLite, see `inserts.py`.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING

from shardyfusion.sqlite_adapter.cells import CellFormat, big_endian, bytes_of, joined, offsets, strings
from shardyfusion.sqlite_adapter.page_file import PageFile

if TYPE_CHECKING:
    import pyarrow as pa

    from shardyfusion.sqlite_adapter.cells import Integers, Strings

_ROOT = 2
_INTERIOR, _LEAF = 0x02, 0x0A
_CHUNK_BYTES = 4 << 20  # small enough to stay in the processor's cache from the first copy to the last
_CHUNK_ROWS = 1 << 16


class PageWriter:
    """Appends rows in ascending order of their keys to the empty table of a file that `can_continue`.

    What it holds in memory does not grow with the rows. Until `finish()` SQLite sees the empty table. After an error
    the file is worth nothing.
    """

    def __init__(self, path: Path, page_size: int) -> None:
        self._file = PageFile(path, page_size, first=_ROOT + 1)
        self._format = CellFormat(self._file)
        self._leaves = _Level(self._file, height=0)
        self._last_key: bytes | None = None

    @staticmethod
    def can_continue(content: bytes, page_size: int) -> bool:
        """Whether the content of a file is what SQLite makes of an empty table without rowids, and nothing more.

        SQLite can be built or loaded with extensions so that it reserves bytes of every page, or keeps pages of its
        own in between.
        """
        header, root = content[:100], content[page_size:]
        return (
            len(content) == _ROOT * page_size
            and header[:16] == b"SQLite format 3\0"
            and header[18:21] == b"\x01\x01\x00"  # no write-ahead log, nothing reserved
            and header[32:40] == bytes(8)  # no free pages
            and header[52:56] == bytes(4)  # no pointer maps
            and root[:5] == bytes([_LEAF, 0, 0, 0, 0])
        )

    @property
    def page_count(self) -> int:
        return self._file.page_count

    def append(self, batch: pa.RecordBatch) -> bool:
        """Add rows; False, and nothing is done, if their keys do not ascend from the last one.

        Raises:
            RecordTooLongError: a row is longer than SQLite takes.
            OSError: the file cannot be written, because the disk is full for example.
        """
        import numpy as np

        keys, values = batch.column("key"), batch.column("value")
        if len(keys) == 0:
            return True
        if not self._ascends(keys):
            return False
        row_ends = offsets(keys) + offsets(values)
        start = 0
        while start < len(keys):
            full = int(np.searchsorted(row_ends, row_ends[start] + _CHUNK_BYTES, side="right")) - 1
            stop = min(max(full, start + 1), start + _CHUNK_ROWS)
            self._leaves.add(self._format.cells(keys[start:stop], values[start:stop]))
            start = stop
        self._last_key = keys[-1].as_py()
        return True

    def finish(self) -> None:
        """Write what is left, so that the file is a complete database, and close it."""
        level, last_page = self._leaves, 0
        while level is not None and not level.is_empty:
            last_page = level.finish(last_page)
            level = level.above
        self._file.write_header()
        self.close()

    def close(self) -> None:
        self._file.close()

    def _ascends(self, keys: Strings) -> bool:
        import pyarrow.compute as pc

        if self._last_key is not None and keys[0].as_py() <= self._last_key:
            return False
        rising = pc.call_function("greater", [keys[1:], keys[:-1]])
        return len(rising) == 0 or pc.call_function("all", [rising]).as_py()


class _Level:
    """The pages of the tree that are equally far from the leaves, of which those of `height` 0 are.

    Cells come in ascending order; on all levels but the leaves each begins with the page of the smaller keys. In an
    index B-tree every row is stored once: of the cells that come, one page takes as many as fit, the next cell goes to
    the level above, to separate that page from the one after it, and so on.

    Invariant: a page is written only when a cell for the page after it is there, since no page may be empty.
    """

    def __init__(self, file: PageFile, *, height: int) -> None:
        self._file = file
        self._height = height
        self._header = 12 if height else 8
        self._child = 4 if height else 0
        self._waiting: list[Strings] = []
        self._waiting_bytes = 0
        self.above: _Level | None = None

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def add(self, cells: Strings) -> None:
        self._waiting.append(cells)
        self._waiting_bytes += cells.nbytes
        if self._waiting_bytes < _CHUNK_BYTES:
            return
        cells = _concatenated(self._waiting)
        starts, stops = _cut(_filled(cells), self._file.page_size - self._header)
        if len(starts):
            self._write(cells, starts, stops, self._file.take(len(starts)))
            cells = cells[int(stops[-1]) + 1 :]
        self._waiting, self._waiting_bytes = [cells], cells.nbytes

    def finish(self, last_child: int) -> int:
        """Write what is left, the last page with `last_child` on its right. Returns the number of that page."""
        import numpy as np

        cells = _concatenated(self._waiting)
        starts, stops = _cut_all(_filled(cells), self._file.page_size - self._header)
        is_root = len(starts) == 1 and self.above is None
        numbers = np.array([_ROOT]) if is_root else self._file.take(len(starts))
        self._write(cells, starts, stops, numbers, last_child)
        return int(numbers[-1])

    def _write(
        self, cells: Strings, starts: Integers, stops: Integers, numbers: Integers, last_child: int | None = None
    ) -> None:
        """Write pages of the cells from `starts` to `stops`, and give those in between to the level above. There is
        one behind the last page too, unless that has a `last_child`."""
        import numpy as np
        import pyarrow as pa

        ends, content = offsets(cells), bytes_of(cells)
        counts = stops - starts
        tops = self._file.page_size - (ends[stops] - ends[starts])  # where the cells begin in their page
        separators = len(stops) if last_child is None else len(stops) - 1

        headers = np.zeros((len(starts), self._header), np.uint8)
        headers[:, 0] = _INTERIOR if self._height else _LEAF
        headers[:, 3], headers[:, 4] = counts >> 8, counts & 255
        headers[:, 5], headers[:, 6] = tops >> 8, tops & 255
        if self._height:  # the child of the separator is the last of the page before it
            headers[:separators, 8:] = content[ends[stops[:separators], None] + np.arange(4)]
            headers[separators:, 8:] = big_endian(np.array([last_child or 0]))
        pointers = np.delete(ends[: stops[-1]], stops[:-1]) + np.repeat(tops - ends[starts], counts)
        unused = tops - self._header - 2 * counts
        # Three strings for each page: its cells, the child of the separator behind it, that separator.
        edges = np.empty(3 * len(starts) + 1, np.int64)
        edges[:-1:3], edges[1::3] = ends[starts], ends[stops]
        edges[2::3] = np.minimum(ends[stops] + self._child, ends[-1])
        edges[-1] = ends[min(stops[-1] + 1, len(cells))]
        is_page = np.arange(len(edges) - 1) % 3 == 0
        image = joined(
            [
                strings(_every_third(np.full(len(starts), self._header)), headers),
                strings(_every_third(2 * counts), pointers.astype(">u2").view(np.uint8)),
                strings(_every_third(unused), np.zeros(int(unused.sum()), np.uint8)),
                strings(edges, content, is_page),
            ]
        )
        self._file.write(numbers, image.buffers()[2])
        if separators:
            if self.above is None:
                self.above = _Level(self._file, height=self._height + 1)
            rising = strings(edges, content).take(pa.array(np.arange(2, 3 * separators, 3)))
            children = strings(4 * np.arange(separators + 1), big_endian(numbers[:separators]))
            self.above.add(joined([children, rising]))


def _cut_all(filled: Integers, room: int) -> tuple[Integers, Integers]:
    """`_cut`, and then pages for all the cells behind the last separator too."""
    import numpy as np

    starts, stops = _cut(filled, room)
    start, rows = int(stops[-1]) + 1 if len(stops) else 0, len(filled) - 1
    if filled[rows] - filled[start] <= room:
        return np.append(starts, start), np.append(stops, rows)
    # One cell too many for one page; no cell takes more than a quarter of a page, so it can be cut about the middle.
    middle = int(np.searchsorted(filled, (filled[start] + filled[rows]) // 2, side="right")) - 1
    return np.append(starts, [start, middle + 1]), np.append(stops, [middle, rows])


def _cut(filled: Integers, room: int) -> tuple[Integers, Integers]:
    """Where pages start and stop: each as full as can be, a cell between any two, and at least two behind the last.

    `filled` says where each cell would begin in a page without end, and the last one end; `room` is what a page has.
    """
    import numpy as np

    sizes = np.diff(filled)
    smallest, largest, rows = int(sizes.min()), int(sizes.max()), len(sizes)
    if smallest == largest:
        each = room // largest
        starts = np.arange(max(0, (rows - 1) // (each + 1))) * (each + 1)
        return starts, starts + each
    fewest, most = room // largest, room // smallest + 1
    # What follows the end fits into no page, so that the loop need not look for the end.
    view = np.append(filled, np.full(most, 2**62)).data
    start, found = 0, [-1]
    while True:
        stop = bisect_right(view, view[start] + room, start + fewest, start + most) - 1
        if stop > rows - 2:
            break
        found.append(stop)
        start = stop + 1
    stops = np.array(found)
    return stops[:-1] + 1, stops[1:]


def _filled(cells: Strings) -> Integers:
    """Where in a page without end each cell would begin, and the last one end: two bytes of a pointer go with each."""
    import numpy as np

    return offsets(cells) + 2 * np.arange(len(cells) + 1)


def _concatenated(cells: list[Strings]) -> Strings:
    import pyarrow as pa

    return cells[0] if len(cells) == 1 else pa.concat_arrays(cells)


def _every_third(lengths: Integers) -> Integers:
    """Offsets of strings of which the first of each three has a length, and the others are empty."""
    import numpy as np

    ends = np.zeros(3 * len(lengths) + 1, np.int64)
    ends[1::3] = ends[2::3] = ends[3::3] = np.cumsum(lengths)
    return ends
