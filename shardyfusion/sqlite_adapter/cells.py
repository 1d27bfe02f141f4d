"""Rows as cells of SQLite's index B-trees: one record each, the rest of a long one in a chain of overflow pages.

How cells are put into pages is decided in `pages.py`. The terms are those of https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from shardyfusion.sqlite_adapter.page_file import PageFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Integers: TypeAlias = npt.NDArray[np.int64]
    Bytes: TypeAlias = npt.NDArray[np.uint8]
    Strings: TypeAlias = pa.LargeBinaryArray

LONGEST_RECORD = 1_000_000_000
"""What SQLite takes at most, unless it was built otherwise."""

_MOST_ENTRIES = 1 << 16


class RecordTooLongError(Exception):
    """A row is longer than `LONGEST_RECORD`."""


class CellFormat:
    """Makes cells for the pages of one file."""

    def __init__(self, file: PageFile) -> None:
        self._file = file
        self._overflow = file.page_size - 4
        self._most_local = (file.page_size - 12) * 64 // 255 - 23
        self._least_local = (file.page_size - 12) * 32 // 255 - 23
        self._headers = _HeaderTable()

    def cells(self, keys: Strings, values: Strings) -> Strings:
        """The cell of each row, as on a leaf. What a cell does not hold itself is written to the file here.

        Raises:
            RecordTooLongError: before anything is written.
        """
        import numpy as np

        key_lengths, value_lengths = np.diff(offsets(keys)), np.diff(offsets(values))
        if _equal(key_lengths) and _equal(value_lengths):
            headers, payloads = _headers(key_lengths[:1], value_lengths[:1])
            _check(payloads)
            cells = _joined_equal(bytes_of(headers), (keys, int(key_lengths[0])), (values, int(value_lengths[0])))
        else:
            headers, payloads = self._headers.look_up(key_lengths, value_lengths)
            _check(payloads)
            cells = joined([headers, keys, values])
        if int(payloads.max()) <= self._most_local:
            return cells
        return self._spilled(cells, np.broadcast_to(payloads, len(keys)))

    def _spilled(self, cells: Strings, payloads: Integers) -> Strings:
        """Cells of which those that are too long have their end on overflow pages, which are written here."""
        import numpy as np
        import pyarrow as pa

        long = payloads > self._most_local
        kept = self._least_local + (payloads - self._least_local) % self._overflow
        kept = np.where(long, np.where(kept <= self._most_local, kept, self._least_local), payloads)
        chain = -(-(payloads - kept) // self._overflow)  # pages of each row

        # The same bytes, cut into pieces: of each row the part that stays, then one piece for each of its pages.
        starts, ends = offsets(cells)[:-1], offsets(cells)[1:]
        stays = np.cumsum(chain + 1) - chain - 1
        number = np.arange(len(cells) + int(chain.sum())) - np.repeat(stays, chain + 1)
        edges = np.append(np.repeat(ends - (payloads - kept), chain + 1) + (number - 1) * self._overflow, ends[-1])
        edges[stays] = starts
        on_page = number > 0

        pages = self._file.take(int(chain.sum()))
        following = np.append(pages[1:], 0)
        following[np.cumsum(chain)[long] - 1] = 0
        unused = np.where(on_page, self._overflow - np.diff(edges), 0)
        image = joined(
            [
                strings(ends_of(4 * on_page), big_endian(following)),
                strings(edges, bytes_of(cells), on_page),
                strings(ends_of(unused), np.zeros(int(unused.sum()), np.uint8)),
            ]
        )
        self._file.write(pages, image.buffers()[2])

        local = strings(edges, bytes_of(cells)).take(pa.array(stays))
        first_pages = pages[(np.cumsum(chain) - chain)[long]]
        return joined([local, strings(ends_of(4 * long), big_endian(first_pages))])


def _check(payloads: Integers) -> None:
    longest = int(payloads.max())
    if longest > LONGEST_RECORD:
        raise RecordTooLongError(f"a record of {longest:,} bytes is longer than {LONGEST_RECORD:,}")


def _equal(lengths: Integers) -> bool:
    return bool(lengths.min() == lengths.max())


def _joined_equal(header: Bytes, *columns: tuple[Strings, int]) -> Strings:
    """`joined`, for rows that all have this header and columns of these lengths: several times as fast."""
    import numpy as np

    rows, at = len(columns[0][0]), len(header)
    width = at + sum(length for _, length in columns)
    cells = np.empty((rows, width), np.uint8)
    cells[:, :at] = header
    for column, length in columns:
        if length:
            source = np.ndarray(rows, f"V{length}", bytes_of(column), int(offsets(column)[0]))
            np.ndarray(rows, f"V{length}", cells, at, (width,))[:] = source
        at += length
    return strings(np.arange(rows + 1) * width, cells)


class _HeaderTable:
    """The headers of rows of all lengths seen so far: to look them up takes a fifth of the time of making them."""

    def __init__(self) -> None:
        self._keys = self._values = range(0)
        self._table: tuple[Strings, Integers] | None = None
        self._rows = 0

    def look_up(self, key_lengths: Integers, value_lengths: Integers) -> tuple[Strings, Integers]:
        """`_headers`, from a table of all lengths in a range as soon as more rows were seen than it has entries."""
        import numpy as np
        import pyarrow as pa

        self._rows += len(key_lengths)
        keys, values = _widened(self._keys, key_lengths), _widened(self._values, value_lengths)
        if self._table is None or (keys, values) != (self._keys, self._values):
            if len(keys) * len(values) > min(self._rows, _MOST_ENTRIES):
                return _headers(key_lengths, value_lengths)
            self._keys, self._values = keys, values
            self._table = _headers(np.repeat(np.array(keys), len(values)), np.tile(np.array(values), len(keys)))
        places = (key_lengths - keys.start) * len(values) + (value_lengths - values.start)
        headers, payloads = self._table
        return headers.take(pa.array(places)), payloads[places]


def _widened(known: range, lengths: Integers) -> range:
    """The range with these lengths in it too."""
    lowest, highest = int(lengths.min()), int(lengths.max())
    return range(min(known.start, lowest), max(known.stop, highest + 1)) if known else range(lowest, highest + 1)


def _headers(key_lengths: Integers, value_lengths: Integers) -> tuple[Strings, Integers]:
    """What comes before the key in each cell, and how long the record is: its header, key and value."""
    import numpy as np

    key_types, value_types = 2 * key_lengths + 12, 2 * value_lengths + 12  # a BLOB of so many bytes
    key_type_sizes, value_type_sizes = _varint_sizes(key_types), _varint_sizes(value_types)
    header_sizes = 1 + key_type_sizes + value_type_sizes  # at most 11, so that their own varint is one byte
    payloads = header_sizes + key_lengths + value_lengths
    payload_sizes = _varint_sizes(payloads)
    ends = ends_of(payload_sizes + header_sizes)
    headers = np.empty(int(ends[-1]), np.uint8)
    at = ends[:-1] + payload_sizes
    _put_varints(headers, ends[:-1], payloads, payload_sizes)
    headers[at] = header_sizes
    _put_varints(headers, at + 1, key_types, key_type_sizes)
    _put_varints(headers, at + 1 + key_type_sizes, value_types, value_type_sizes)
    return strings(ends, headers), payloads


def _varint_sizes(values: Integers) -> Integers:
    import numpy as np

    sizes, bits, largest = np.ones(len(values), np.int64), 7, int(values.max())
    while largest >> bits:
        sizes += values >= 1 << bits
        bits += 7
    return sizes


def _put_varints(target: Bytes, at: Integers, values: Integers, sizes: Integers) -> None:
    """Seven bits in each byte, the highest first; all bytes but the last have their top bit set."""
    fewest, most = int(sizes.min()), int(sizes.max())
    last = at + sizes - 1
    for place in range(most):
        groups = values >> 7 * place & 127 | (128 if place else 0)
        if place < fewest:
            target[last - place] = groups
        else:
            longer = sizes > place
            target[last[longer] - place] = groups[longer]


# -- Arrow's byte strings on numpy's arrays ----------------------------------------------------------------------------


def offsets(column: pa.Array[Any]) -> Integers:
    """Where each value of a `large_binary` array starts, and the last one ends; without a copy."""
    import numpy as np

    return np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, column.offset * 8)


def bytes_of(column: pa.Array[Any]) -> Bytes:
    """What `offsets` point into; without a copy."""
    import numpy as np

    return np.frombuffer(column.buffers()[2] or b"", np.uint8)


def strings(ends: Integers, data: Bytes, present: npt.NDArray[np.bool_] | None = None) -> Strings:
    """A `large_binary` array; without a copy. Those that are not `present` are null."""
    import numpy as np
    import pyarrow as pa

    validity = None if present is None else pa.py_buffer(np.packbits(present, bitorder="little"))
    buffers = [validity, pa.py_buffer(ends), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(ends) - 1, buffers)


def ends_of(lengths: npt.NDArray[np.integer]) -> Integers:
    """Offsets of strings of these lengths that lie back to back."""
    import numpy as np

    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def big_endian(numbers: Integers) -> Bytes:
    """Four bytes for each number."""
    import numpy as np

    return numbers.astype(">u4").view(np.uint8)


def joined(columns: Sequence[Strings]) -> Strings:
    """What the columns hold, row by row and back to back in one buffer, without what is null. It is C++, without the
    GIL."""
    import pyarrow as pa
    import pyarrow.compute as pc

    nothing = pa.scalar(b"", pa.large_binary())
    return pc.call_function("binary_join_element_wise", [*columns, nothing], pc.JoinOptions(null_handling="skip"))
