"""The order of stored keys, which is that of their bytes. Equal keys stay in the order in which they came."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardyfusion.serde.columns import arrow_compute

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

_WORDS = 2
"""Keys that differ in so many 8-byte words are sorted as integers, which numpy does twice as fast as Arrow compares
bytes; of longer ones Arrow needs to look at the first bytes only."""


def key_order(keys: pa.LargeBinaryArray) -> npt.NDArray[np.int64]:
    """The positions of `keys`, in ascending order of the keys: a stable sort."""
    import numpy as np

    if len(keys) < 2:
        return np.arange(len(keys))
    offsets = np.frombuffer(keys.buffers()[1], dtype=np.int64, count=len(keys) + 1, offset=keys.offset * 8)
    shared = _shared_prefix(keys)
    lengths = np.diff(offsets) - shared
    longest = int(lengths.max())
    if longest == 0:
        return np.arange(len(keys))
    if longest > 8 * _WORDS:
        return arrow_compute().array_sort_indices(keys).to_numpy().astype(np.int64)
    words = _words(keys.buffers()[2], offsets[:-1] + shared, lengths, -(-longest // 8))
    # Of two keys that are equal up to the zeros behind them, the shorter one is the lesser.
    columns = [*([lengths] if lengths.min() < longest else []), *reversed(words)]
    order = np.argsort(columns[0], kind="stable")
    for column in columns[1:]:
        order = order[np.argsort(column[order], kind="stable")]
    return order


def _shared_prefix(keys: pa.LargeBinaryArray) -> int:
    """How many bytes all keys begin with alike."""
    ends = arrow_compute().min_max(keys).as_py()
    pairs = enumerate(zip(ends["min"], ends["max"], strict=False))
    return next((at for at, (low, high) in pairs if low != high), len(ends["min"]))


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
