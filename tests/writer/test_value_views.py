"""Values as views: the same values in any order, wherever they lie, and however many bytes there are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.errors import ValueEncodingError
from shardyfusion.writer import value_views as views_module
from shardyfusion.writer.value_views import LONGEST, require_viewable, take_views, value_views, viewed_bytes

VALUES = st.lists(st.binary(max_size=40), max_size=30)


@given(values=VALUES, start=st.integers(0, 30), data=st.data())
def test_any_order_of_any_part_of_a_column(values: list[bytes], start: int, data: st.DataObject) -> None:
    part = values[start:]
    rows = data.draw(st.lists(st.integers(0, len(part) - 1), max_size=40)) if part else []
    views = take_views(value_views(pa.array(values, pa.large_binary())[start:]), np.array(rows, np.int64))
    views.validate(full=True)
    expected = [part[row] for row in rows]
    assert views.cast(pa.large_binary()).to_pylist() == expected
    assert viewed_bytes(views) == sum(map(len, expected))
    again = take_views(views[1:], np.arange(len(rows) - 1)[::-1]) if rows else views
    assert again.cast(pa.large_binary()).to_pylist() == expected[:0:-1]


@given(values=VALUES, most=st.integers(40, 120), start=st.integers(0, 30))
def test_a_buffer_too_large_for_views_is_several(values: list[bytes], most: int, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views_module, "LONGEST", most)
        column = pa.array(values, pa.large_binary())[start:]
        views = value_views(column)
        assert views.cast(pa.large_binary()).equals(column)
        assert all(buffer is None or buffer.size <= most for buffer in views.buffers()[2:])


def test_more_than_two_gibibytes() -> None:
    """With pages of zeros, which take no memory before they are written to."""
    rows, length = 3_000, 1 << 20
    data = np.zeros(rows * length, np.uint8)
    data[0], data[2_500 * length] = 1, 2
    ends = pa.py_buffer(np.arange(rows + 1) * length)
    column = pa.Array.from_buffers(pa.large_binary(), rows, [None, ends, pa.py_buffer(data)])
    require_viewable(column)
    views = value_views(column)
    assert viewed_bytes(views) == data.nbytes
    first, other = take_views(views, np.array([0, 2_500])).cast(pa.large_binary()).to_pylist()
    assert (first[:2], other[:2], len(first), len(other)) == (b"\1\0", b"\2\0", length, length)


def test_a_value_that_no_view_can_hold() -> None:
    data = np.zeros(LONGEST + 8, np.uint8)
    ends = np.array([0, 7, LONGEST + 8])
    column = pa.Array.from_buffers(pa.large_binary(), 2, [None, pa.py_buffer(ends), pa.py_buffer(data)])
    with pytest.raises(
        ValueEncodingError, match="a value has 2,147,483,648 bytes, and at most 2,147,483,647"
    ) as caught:
        require_viewable(column)
    assert caught.value.facts["row"] == 1


def test_a_value_too_long_is_an_error_for_views_too() -> None:
    """A damaged file may give such lengths."""
    ends = pa.py_buffer(np.array([0, LONGEST + 1]))
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(np.zeros(LONGEST + 1, np.uint8))])
    with pytest.raises(ValueEncodingError, match="a value has 2,147,483,648 bytes"):
        value_views(column)


@pytest.mark.parametrize(("rows", "kept"), [(4_000, 10_000_000), (9_000, 10_000_000)])
def test_a_small_part_of_a_column_does_not_keep_the_rest_in_memory(rows: int, kept: int) -> None:
    before = pa.total_allocated_bytes()
    column = pa.array([n.to_bytes(4, "big") * 250 for n in range(10_000)], pa.large_binary())
    views = value_views(column[500 : 500 + rows])
    expected = column[500 : 500 + rows].to_pylist()
    del column
    assert views.cast(pa.large_binary()).to_pylist() == expected
    own = sum(buffer.size for buffer in views.buffers()[2:])
    assert own == (1_000 * rows if rows < 5_000 else kept)
    assert pa.total_allocated_bytes() - before <= own + 64 * rows + 200_000
