"""The `sfmix64-1` digest: did exactly the same (key, value) rows come out that went in, in whatever order?

A row's hash is a pure function of its key and value bytes; a digest is the sum of hashes modulo 2^64. It detects loss,
doubling and exchange of values, not an adversary. `docs/row-digest.md` is the specification, with vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

NAME = "sfmix64-1"
MASK = 2**64 - 1

_GOLDEN = 0x9E3779B97F4A7C15
_KEY_FACTOR = 0xD6E8FEB86659FD93
_CHUNK_ROWS = 1 << 13
_CHUNK_BYTES = 1 << 20  # small enough to stay in the processor's cache
_BLOCK_WORDS = 1 << 16  # longer byte strings are summed in blocks of so many words


def mix(x: int) -> int:
    """The finaliser of SplitMix64: a bijection of 64-bit integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def row_hash(key: bytes, value: bytes) -> int:
    """The hash of one row: the definition that `row_hashes` must agree with."""
    return mix((_bytes_hash(key) * _KEY_FACTOR + _bytes_hash(value)) & MASK)


def _bytes_hash(data: bytes) -> int:
    total = (len(data) + 1) * _GOLDEN
    for i in range(0, len(data), 8):
        word = int.from_bytes(data[i : i + 8], "little")
        total += (word ^ (word >> 29)) * (mix(((i // 8 + 1) * _GOLDEN) & MASK) | 1)
    return mix(total & MASK)


def format_digest(total: int) -> str:
    """A digest as it is stored, e.g. `sfmix64-1:00ff…`."""
    return f"{NAME}:{total & MASK:016x}"


def parse_digest(text: str) -> int:
    """The inverse of `format_digest`."""
    return int(text.removeprefix(f"{NAME}:"), 16)


def row_hashes(keys: pa.LargeBinaryArray, values: pa.LargeBinaryArray) -> npt.NDArray[np.uint64]:
    """The hash of every row of two `large_binary` columns without nulls."""
    hashes = _bytes_hashes(keys)
    _multiply_add(hashes, _bytes_hashes(values))
    return hashes


def digest_by_shard(
    hashes: npt.NDArray[np.uint64], shards: npt.NDArray[np.integer], num_dbs: int
) -> npt.NDArray[np.uint64]:
    """The digest of the rows of every shard, as `num_dbs` integers."""
    import numpy as np

    totals = np.zeros(num_dbs, dtype=np.uint64)
    for start in range(0, len(hashes), 1 << 20):  # so many 32-bit halves add up exactly in a float64
        part, where = hashes[start : start + (1 << 20)], shards[start : start + (1 << 20)]
        low = np.bincount(where, weights=part & np.uint64(0xFFFFFFFF), minlength=num_dbs)
        high = np.bincount(where, weights=part >> np.uint64(32), minlength=num_dbs)
        totals += low.astype(np.uint64) + (high.astype(np.uint64) << np.uint64(32))
    return totals


def digest_total(hashes: npt.NDArray[np.uint64]) -> int:
    """The digest of all rows."""
    import numpy as np

    return int(hashes.sum(dtype=np.uint64))


def _multiply_add(hashes: npt.NDArray[np.uint64], value_hashes: npt.NDArray[np.uint64]) -> None:
    """hashes = mix(hashes * factor + value_hashes), in place and chunk by chunk."""
    import numpy as np

    for start in range(0, len(hashes), _CHUNK_ROWS):
        part = hashes[start : start + _CHUNK_ROWS]
        part *= np.uint64(_KEY_FACTOR)
        part += value_hashes[start : start + _CHUNK_ROWS]
        _mix_in_place(part)


def _mix_in_place(x: npt.NDArray[np.uint64]) -> None:
    import numpy as np

    shifted = np.right_shift(x, np.uint64(30))
    x ^= shifted
    x *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(x, np.uint64(27), out=shifted)
    x ^= shifted
    x *= np.uint64(0x94D049BB133111EB)
    np.right_shift(x, np.uint64(31), out=shifted)
    x ^= shifted


@lru_cache(maxsize=64)
def _factors(start: int, stop: int) -> npt.NDArray[np.uint64]:
    """The odd factors of the words from `start` to `stop`."""
    import numpy as np

    factors = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    _mix_in_place(factors)
    return factors | np.uint64(1)


class _Scratch(threading.local):
    """Room to calculate in, of each thread, for as long as that lives: where memory that is freed goes back to the
    system at once, as on Dask's workers, new memory costs more than the calculation."""

    _words: npt.NDArray[np.uint64] | None = None

    def two_tables(self, rows: int, words: int) -> npt.NDArray[np.uint64]:
        """Tables of so many rows, with anything in them."""
        import numpy as np

        size = 2 * rows * words
        if self._words is None or len(self._words) < size:
            self._words = np.empty(size, dtype="<u8")
        return self._words[:size].reshape(2, rows, words)


_scratch = _Scratch()


def _bytes_hashes(array: pa.LargeBinaryArray) -> npt.NDArray[np.uint64]:
    import numpy as np

    rows = len(array)
    if not rows:
        return np.zeros(0, dtype=np.uint64)
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[array.offset : array.offset + rows + 1]
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)
    lengths = np.diff(offsets)
    if lengths.min() == lengths.max():
        length = int(lengths[0])
        hashes = np.full(rows, (length + 1) * _GOLDEN & MASK, dtype=np.uint64)
        _add_equal_lengths(hashes, data[offsets[0] : offsets[-1]], length)
    else:
        hashes = (lengths.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
        for start, stop in _chunks(offsets):
            part = data[offsets[start] : offsets[stop]]
            _add_any_lengths(hashes[start:stop], part, offsets[start:stop] - offsets[start], lengths[start:stop])
    for start in range(0, rows, _CHUNK_ROWS):
        _mix_in_place(hashes[start : start + _CHUNK_ROWS])
    return hashes


def _chunks(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of rows that hold about `_CHUNK_BYTES` together, at least one row each."""
    import numpy as np

    start, rows = 0, len(offsets) - 1
    while start < rows:
        full = int(np.searchsorted(offsets, offsets[start] + _CHUNK_BYTES, side="right")) - 1
        stop = max(start + 1, min(full, start + 8 * _CHUNK_ROWS, rows))
        yield start, stop
        start = stop


def _add_equal_lengths(sums: npt.NDArray[np.uint64], data: npt.NDArray[np.uint8], length: int) -> None:
    """Rows of one length, copied into zero-padded words a chunk at a time."""
    import numpy as np

    if length > 8 * _BLOCK_WORDS:
        for row in range(len(sums)):
            sums[row : row + 1] += _long_sum(data[row * length : (row + 1) * length])
        return
    words = -(-length // 8)
    if not words:
        return
    step = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // (8 * words)))
    padded, spare = _scratch.two_tables(min(step, len(sums)), words)
    as_bytes = padded.view(np.uint8)
    as_bytes[:, length:] = 0
    for start in range(0, len(sums), step):
        stop = min(start + step, len(sums))
        as_bytes[: stop - start, :length] = data[start * length : stop * length].reshape(stop - start, length)
        sums[start:stop] += _word_sums(padded[: stop - start], _factors(0, words), spare[: stop - start])


def _add_any_lengths(
    sums: npt.NDArray[np.uint64],
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> None:
    """Rows of several lengths: those with equally many words together, read as unaligned words and masked."""
    import numpy as np

    if len(sums) == 1 and len(data) > 8 * _BLOCK_WORDS:
        sums += _long_sum(data)
        return
    spare = np.zeros(len(data) + 8, dtype=np.uint8)
    spare[: len(data)] = data
    any_offset = np.ndarray((len(data) + 1,), dtype="<u8", buffer=spare.data, strides=(1,))
    counts = (lengths + 7) >> 3
    order = np.argsort(counts, kind="stable")
    ends = np.flatnonzero(np.diff(counts[order], append=-1)) + 1
    begin = 0
    for end in ends.tolist():
        rows = order[begin:end]
        begin, words = end, int(counts[rows[0]])
        if not words:
            continue
        table = any_offset[starts[rows, None] + np.arange(0, 8 * words, 8)]
        unused = (8 * words - lengths[rows]).astype(np.uint64) * np.uint64(8)
        table[:, -1] &= np.uint64(MASK) >> unused
        sums[rows] += _word_sums(table, _factors(0, words))


def _long_sum(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The words of one long byte string, block by block, as an array of one: scalars would warn of the overflow."""
    import numpy as np

    total = np.zeros(1, dtype=np.uint64)
    for start in range(0, len(data), 8 * _BLOCK_WORDS):
        part = data[start : start + 8 * _BLOCK_WORDS]
        padded = np.zeros((1, -(-len(part) // 8) * 8), dtype=np.uint8)
        padded[0, : len(part)] = part
        words = padded.view("<u8")
        total += _word_sums(words, _factors(start // 8, start // 8 + words.shape[1]))
    return total


def _word_sums(
    words: npt.NDArray[np.uint64], factors: npt.NDArray[np.uint64], spare: npt.NDArray[np.uint64] | None = None
) -> npt.NDArray[np.uint64]:
    """Per row, the sum of (w ^ w >> 29) * factor modulo 2^64. `spare` is room for as many words."""
    import numpy as np

    folded = np.right_shift(words, np.uint64(29), out=spare)
    folded ^= words
    return np.dot(folded, factors)
