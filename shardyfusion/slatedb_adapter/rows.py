"""Rows as a batch of SlateDB takes them: so many at once, as Arrow columns, and how long they are."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 4096
BATCH_BYTES = 8 * 1024 * 1024


def extreme_lengths(column: pa.LargeBinaryArray) -> tuple[int, int]:
    """Of the shortest and the longest element of a column that has some."""
    import pyarrow.compute as pc

    extremes = pc.call_function("min_max", [pc.call_function("binary_length", [column])])
    return extremes["min"].as_py(), extremes["max"].as_py()


def large_binary(elements: list[bytes]) -> pa.LargeBinaryArray:
    """Byte strings and nothing else as a column: pyarrow alone would take text and None as well."""
    import pyarrow as pa

    offsets = array("q", accumulate(map(len, elements), initial=0))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(elements))]
    return pa.Array.from_buffers(pa.large_binary(), len(elements), buffers)


def chunked(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[list[tuple[bytes, bytes]], int]]:
    """Pairs in lists of bounded size, each with its bytes."""
    chunk: list[tuple[bytes, bytes]] = []
    held = 0
    for pair in pairs:
        chunk.append(pair)
        held += len(pair[0]) + len(pair[1])
        if len(chunk) >= BATCH_ROWS or held >= BATCH_BYTES:
            yield chunk, held
            chunk, held = [], 0
    if chunk:
        yield chunk, held
