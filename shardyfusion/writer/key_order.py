"""The order of stored keys, which is that of their bytes. Equal keys stay in the order in which they came."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardyfusion.serde.columns import arrow_compute

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

_WORDS = 2
"""Keys that differ in so many 8-byte words are sorted as integers, which numpy does several times as fast as Arrow
compares bytes; of longer ones Arrow needs to look at the first bytes only."""

_DIGIT = 16
"""Bits of a digit: numpy sorts 16-bit integers by counting them."""

_SAMPLE = 1_024


def key_order(keys: pa.LargeBinaryArray) -> npt.NDArray[np.int64]:
    """The positions of `keys`, in ascending order of the keys: a stable sort."""
    import numpy as np

    if len(keys) < 2:
        return np.arange(len(keys))
    offsets = np.frombuffer(keys.buffers()[1], dtype=np.int64, count=len(keys) + 1, offset=keys.offset * 8)
    shared = _shared_prefix(keys)
    lengths = np.diff(offsets)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if longest == shared:
        return np.arange(len(keys))
    if longest - shared > 8 * _WORDS:
        return arrow_compute().array_sort_indices(keys).to_numpy().astype(np.int64)
    data, words = keys.buffers()[2], -(-(longest - shared) // 8)
    if shortest == longest >= 8:
        columns = [_word_of_equals(data, offsets, longest, shared + 8 * word) for word in range(words)]
    else:
        columns = _words(data, offsets[:-1] + shared, lengths - shared, words)
    if shortest < longest:  # of two keys that are equal up to the zeros behind them, the shorter one is the lesser
        columns.append(lengths.view(np.uint64))
    return _order_by(columns)


def _shared_prefix(keys: pa.LargeBinaryArray) -> int:
    """How many bytes all keys begin with alike."""
    ends = arrow_compute().min_max(keys).as_py()
    pairs = enumerate(zip(ends["min"], ends["max"], strict=False))
    return next((at for at, (low, high) in pairs if low != high), len(ends["min"]))


def _word_of_equals(data: pa.Buffer, offsets: npt.NDArray[np.int64], length: int, begin: int) -> npt.NDArray[np.uint64]:
    """Of keys of one length, at least 8: the bytes from `begin` as big-endian integers, filled up with zeros."""
    import numpy as np

    missing = max(0, begin + 8 - length)
    at = int(offsets[0]) + begin - missing
    word = np.ndarray((len(offsets) - 1,), dtype=">u8", buffer=data, offset=at, strides=(length,)).astype(np.uint64)
    if missing:
        word <<= np.uint64(8 * missing)
    return word


def _words(
    data: pa.Buffer | None, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], count: int
) -> list[npt.NDArray[np.uint64]]:
    """What follows the shared prefix, as big-endian integers of 8 bytes, filled up with zeros."""
    import numpy as np

    masks = np.array([0, *(2**64 - 2 ** (64 - 8 * n) for n in range(1, 9))], dtype=np.uint64)
    given = np.frombuffer(data or b"", dtype=np.uint8)
    padded = np.zeros(int((starts + lengths).max()) + 8 * count, dtype=np.uint8)
    used = padded[: len(padded) - 8 * count]
    used[:] = given[: len(used)]
    anywhere = np.ndarray((len(padded) - 7,), dtype=">u8", buffer=padded.data, strides=(1,))
    return [
        anywhere[starts + 8 * word].astype(np.uint64) & masks[np.clip(lengths - 8 * word, 0, 8)]
        for word in range(count)
    ]


def _order_by(columns: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.int64]:
    """The stable order by integers of several columns, the most significant first.

    The two highest digits, or all of the first column, decide for nearly all rows of most data: the rest is looked at
    only where they do not.
    """
    import numpy as np

    aligned, bits = _aligned(columns[0])
    halves = aligned.view("<u4").reshape(-1, 2)
    digits = aligned.view("<u2").reshape(-1, 4)[:, 4 - -(-bits // _DIGIT) :]
    leading = halves[:, 1]
    if bits > 2 * _DIGIT and _seems_to_decide(leading):
        digits = digits[:, -2:]
    elif bits > 2 * _DIGIT:
        leading = aligned
    order = _radix_order(digits)
    if len(columns) == 1 and (leading is aligned or bits <= 2 * _DIGIT):
        return order
    ascending = leading[order]
    edge = np.zeros(1, dtype=bool)
    equal = np.concatenate([edge, ascending[1:] == ascending[:-1], edge])
    undecided = np.flatnonzero(equal[1:] | equal[:-1])
    if len(undecided):
        rows = order[undecided]
        order[undecided] = rows[np.lexsort([column[rows] for column in reversed(columns)])]
    return order


def _seems_to_decide(column: npt.NDArray[np.uint32]) -> bool:
    """Whether a sample of it holds nothing twice."""
    import numpy as np

    sample = column[:: -(-len(column) // _SAMPLE)]
    return len(np.unique(sample)) == len(sample)


def _radix_order(digits: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """The stable order by the digits of each row, of which the least significant is the first."""
    import numpy as np

    order: npt.NDArray[np.int64] | None = None
    for digit in digits.T:
        known = digit if order is None else digit[order]
        next_order = np.argsort(known, kind="stable")
        order = next_order if order is None else order[next_order]
    return np.arange(len(digits)) if order is None else order


def _aligned(column: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], int]:
    """Integers in the same order, as far to the left as can be, and of how many upper bits it is a matter.

    Bits above the highest that differs do not matter; nor do those of a single byte, which text has many of: they are
    left out where that saves a digit.
    """
    import numpy as np

    differing = int(np.bitwise_or.reduce(column)) ^ int(np.bitwise_and.reduce(column))
    widths = [(differing >> 8 * byte & 0xFF).bit_length() for byte in range(8)]
    bits, fewer = differing.bit_length(), sum(widths)
    if -(-bits // _DIGIT) > -(-fewer // _DIGIT):
        column, bits = _without_constant_bits(column, widths), fewer
    return column << np.uint64(min(64 - bits, 63)), bits


def _without_constant_bits(column: npt.NDArray[np.uint64], widths: list[int]) -> npt.NDArray[np.uint64]:
    """Of each byte, the lowest first, only so many lower bits."""
    import numpy as np

    squeezed, spare = np.zeros_like(column), np.empty_like(column)
    at = 0
    for byte, width in enumerate(widths):
        if width:
            np.right_shift(column, np.uint64(8 * byte), out=spare)
            spare &= np.uint64(2**width - 1)
            spare <<= np.uint64(at)
            squeezed |= spare
            at += width
    return squeezed
