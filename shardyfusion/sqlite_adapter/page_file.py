"""The file of a database as numbered pages: which number comes next, and where a page is written.

What the pages hold is decided in `cells.py` and `pages.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

LOCK_BYTE = 1 << 30
"""SQLite locks this byte of a file, and never uses the page that it is in."""

_HEADER_BYTES = 100
_CHANGE_COUNTER, _PAGE_COUNT, _VALID_FOR = 24, 28, 92


class PageFile:
    """An existing database to which pages are appended, from page `first` on.

    Invariant: the numbers that were given out are consecutive, but for the page of `LOCK_BYTE`.
    """

    def __init__(self, path: Path, page_size: int, first: int) -> None:
        self.page_size = page_size
        self._locked = LOCK_BYTE // page_size + 1
        self._given = first - 1
        self._file = path.open("r+b", buffering=0)

    @property
    def page_count(self) -> int:
        return self._given

    def take(self, count: int) -> npt.NDArray[np.int64]:
        """The next `count` page numbers, in ascending order."""
        import numpy as np

        numbers = np.arange(self._given + 1, self._given + 1 + count)
        if self._given < self._locked <= self._given + count:
            numbers += numbers >= self._locked
        if count:
            self._given = int(numbers[-1])
        return numbers

    def write(self, numbers: npt.NDArray[np.int64], pages: pa.Buffer) -> None:
        """Write the pages with these numbers of one `take`, which lie back to back in `pages`."""
        view = memoryview(pages).cast("B")
        below = int(numbers.searchsorted(self._locked))
        for start, stop in ((0, below), (below, len(numbers))):
            if start < stop:
                place = (int(numbers[start]) - 1) * self.page_size
                self._write_at(place, view[start * self.page_size : stop * self.page_size])

    def write_header(self) -> None:
        """Tell SQLite that the file has changed, and how many pages it has now."""
        header = os.pread(self._file.fileno(), _HEADER_BYTES, 0)
        counter = int.from_bytes(header[_CHANGE_COUNTER : _CHANGE_COUNTER + 4], "big") + 1
        changed = counter.to_bytes(4, "big")
        self._write_at(_CHANGE_COUNTER, memoryview(changed))
        self._write_at(_PAGE_COUNT, memoryview(self._given.to_bytes(4, "big")))
        self._write_at(_VALID_FOR, memoryview(changed))  # the page count counts only if this equals the counter

    def close(self) -> None:
        self._file.close()

    def _write_at(self, place: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._file.fileno(), data, place)
            data, place = data[written:], place + written
