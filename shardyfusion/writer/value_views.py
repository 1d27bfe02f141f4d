"""Values that stay where they were read, as Arrow's binary views, until they are written in the order of their keys.

Rows are put in order twice: by shard, and then by key. A view is 16 bytes, whatever the value, so that the bytes
themselves are copied once, at the end. The layout of views is that of
https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardyfusion.errors import ValueEncodingError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

LONGEST = 2**31 - 1
"""A view says with 31 bits where in its buffer a value is, and how long it is."""


def require_viewable(values: pa.LargeBinaryArray) -> None:
    """`ValueEncodingError` if a value is longer than `LONGEST`."""
    import numpy as np

    offsets = _offsets(values)
    if offsets[-1] - offsets[0] > LONGEST:
        lengths = np.diff(offsets)
        row = int(lengths.argmax())
        if lengths[row] > LONGEST:
            raise ValueEncodingError(
                f"a value has {lengths[row]:,} bytes, and at most {LONGEST:,} can be written; store it elsewhere, "
                "and where it is in the snapshot",
                row=row,
            )


def value_views(values: pa.LargeBinaryArray) -> pa.BinaryViewArray:
    """The same values, which are without nulls. Those of a small part of a buffer are copied: views would keep all of
    it in memory.

    Raises:
        ValueEncodingError: see `require_viewable`.
    """
    import numpy as np
    import pyarrow as pa

    data, offsets = values.buffers()[2], _offsets(values)
    if data is None:
        return values.cast(pa.binary_view())
    is_part = 2 * int(offsets[-1] - offsets[0]) < data.size
    if data.size <= LONGEST and not is_part:
        return values.cast(pa.binary_view())
    require_viewable(values)
    parts, start = [pa.array([], pa.binary_view())], 0
    while start < len(values):
        stop = int(np.searchsorted(offsets, offsets[start] + LONGEST, side="right")) - 1
        ends = pa.py_buffer(offsets[start : stop + 1] - offsets[start])
        part = data.slice(int(offsets[start]), int(offsets[stop] - offsets[start]))
        buffers = [None, ends, pa.py_buffer(part.to_pybytes()) if is_part else part]
        parts.append(pa.Array.from_buffers(pa.large_binary(), stop - start, buffers).cast(pa.binary_view()))
        start = stop
    return pa.concat_arrays(parts)


def take_views(views: pa.BinaryViewArray, rows: npt.NDArray[np.int64]) -> pa.BinaryViewArray:
    """The views at these positions: pyarrow's own `take` does not know views."""
    import pyarrow as pa

    _, _, *data = views.buffers()
    taken = _words(views).take(rows, axis=0)
    return pa.Array.from_buffers(pa.binary_view(), len(rows), [None, pa.py_buffer(taken), *data], null_count=0)


def viewed_bytes(views: pa.BinaryViewArray) -> int:
    """Bytes of all values."""
    import numpy as np

    return int(_words(views)[:, 0].sum(dtype=np.int64))


def _offsets(values: pa.LargeBinaryArray) -> npt.NDArray[np.int64]:
    import numpy as np

    return np.frombuffer(values.buffers()[1], np.int64, len(values) + 1, values.offset * 8)


def _words(views: pa.BinaryViewArray) -> npt.NDArray[np.int32]:
    """A row of four for each view, of which the first is the length of the value."""
    import numpy as np

    return np.frombuffer(views.buffers()[1], np.int32, 4 * len(views), 16 * views.offset).reshape(-1, 4)
