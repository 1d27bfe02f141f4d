"""Hash routing (docs/format.md, section 7): shard = xxh3_64(canonical bytes of the key) mod num_dbs.

The scalar side is the xxhash package, the vectorised side for integers is our own arithmetic: independent on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardyfusion.errors import ConfigValidationError
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.serde.keys import shown, type_hint
from shardyfusion.type_defs import KeyInput, RoutingContext, require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

HASH_ALGORITHM = "xxh3_64"

_CHUNK_ROWS = 1 << 15  # 256 KiB of digests stay in the processor's cache
_SECRET = 0xC73AB174C5ECD5A2  # bytes 8..16 of XXH3's default secret, XOR bytes 16..24
_PRIME = 0x9FB21C651E98DF25
_SECRET_LOW = 0x6782737BEA4239B9  # bytes 24..32 XOR bytes 32..40
_SECRET_HIGH = 0xAF56BC3B0996523A  # bytes 40..48 XOR bytes 48..56
_PRIME_AVALANCHE = 0x165667919E3779F9
_CLOSED_LENGTHS = (9, 16)
"""Of these, XXH3 is a closed formula of the first and the last 8 bytes, and `bytes_digests` has it in columns."""


def canonical_bytes(key: object) -> bytes:
    """What is hashed: integers as 8 bytes little-endian two's complement, text as UTF-8, bytes as they are."""
    if isinstance(key, int):
        try:
            return int(key).to_bytes(8, "little", signed=True)
        except OverflowError as exc:
            raise ConfigValidationError(f"key {key} cannot be routed: integers must lie in [-2^63, 2^63)") from exc
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError as exc:
            raise ConfigValidationError(f"key {shown(key)} holds a lone surrogate and cannot be routed") from exc
    if isinstance(key, (bytes, bytearray)):
        return bytes(key)
    raise ConfigValidationError(
        f"key {shown(key)} of type {type(key).__name__} cannot be routed; keys are int, str or bytes{type_hint(key)}"
    )


@dataclass(frozen=True)
class HashRouter:
    """Spreads keys evenly over `num_dbs` shards; needs nothing but the key."""

    num_dbs: int

    def __post_init__(self) -> None:
        require(self.num_dbs > 0, f"num_dbs must be positive, not {self.num_dbs}")

    @property
    def context_columns(self) -> Mapping[str, CelType]:
        return {}

    def route(self, key: KeyInput, context: RoutingContext | None = None) -> int:
        """The shard of one key. `context` plays no part in hash routing."""
        import xxhash

        return xxhash.xxh3_64_intdigest(canonical_bytes(key)) % self.num_dbs

    def route_arrow(self, keys: pa.Array, columns: Mapping[str, pa.Array]) -> npt.NDArray[np.int64]:
        """The shards of a column of keys: integers, text or bytes, without nulls."""
        import numpy as np
        import pyarrow as pa

        kind = keys.type
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return _modulo(integer_digests(_as_int64(keys)), self.num_dbs)
        if pa.types.is_large_binary(kind) or pa.types.is_large_string(kind):
            return _modulo(bytes_digests(keys), self.num_dbs)
        if pa.types.is_null(kind) and not len(keys):
            return np.zeros(0, dtype=np.int64)
        raise ConfigValidationError(
            f"keys of type {kind} cannot be routed; keys are integers, large_string or large_binary"
        )


def _as_int64(keys: pa.Array) -> npt.NDArray[np.int64]:
    import numpy as np

    numbers: npt.NDArray[Any] = keys.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind == "u" and len(numbers) and int(numbers.max()) >= 2**63:
        raise ConfigValidationError(f"key {int(numbers.max())} cannot be routed: integers must lie in [-2^63, 2^63)")
    return numbers.astype(np.int64, copy=False)


def integer_digests(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """XXH3-64 with seed 0 of 8-byte inputs, which is a closed formula."""
    import numpy as np

    digests = np.empty(len(keys), dtype=np.uint64)
    spare = np.empty(min(len(keys), _CHUNK_ROWS), dtype=np.uint64)
    for start in range(0, len(keys), _CHUNK_ROWS):
        x = digests[start : start + _CHUNK_ROWS]
        t = spare[: len(x)]
        _rotate(keys[start : start + _CHUNK_ROWS].view(np.uint64), 32, x, t)
        x ^= np.uint64(_SECRET)
        folded = x.copy()
        for bits in (49, 24):
            rotated = np.empty_like(x)
            _rotate(folded, bits, rotated, t)
            x ^= rotated
        x *= np.uint64(_PRIME)
        np.right_shift(x, np.uint64(35), out=t)
        t += np.uint64(8)
        x ^= t
        x *= np.uint64(_PRIME)
        np.right_shift(x, np.uint64(28), out=t)
        x ^= t
    return digests


def _rotate(x: npt.NDArray[np.uint64], bits: int, out: npt.NDArray[np.uint64], spare: npt.NDArray[np.uint64]) -> None:
    import numpy as np

    np.left_shift(x, np.uint64(bits), out=out)
    np.right_shift(x, np.uint64(64 - bits), out=spare)
    out |= spare


def bytes_digests(keys: pa.Array) -> npt.NDArray[np.uint64]:
    """XXH3-64 with seed 0 of text or bytes: of some lengths in columns, of others one by one."""
    import numpy as np
    import pyarrow as pa
    import xxhash

    array = keys.cast(pa.large_binary())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets or bytes(8), np.int64, len(array) + 1, array.offset * 8)
    lengths = np.diff(ends)
    closed = (lengths >= _CLOSED_LENGTHS[0]) & (lengths <= _CLOSED_LENGTHS[1])
    digests = np.empty(len(array), np.uint64)
    if closed.any():
        # Eight bytes from anywhere, as a little-endian number.
        words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
        rows = np.flatnonzero(closed)
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = rows[start : start + _CHUNK_ROWS]
            first, size = ends[part], lengths[part]
            digests[part] = _closed_digests(words[first], words[first + size - 8], size.view(np.uint64))
    if not closed.all():
        others = array.filter(pa.array(~closed)).to_pylist()
        digests[~closed] = np.fromiter(map(xxhash.xxh3_64_intdigest, others), np.uint64, len(others))
    return digests


def _closed_digests(
    low: npt.NDArray[np.uint64], high: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Of 9 to 16 bytes, given the first 8, the last 8, and how many there are."""
    import numpy as np

    low = low ^ np.uint64(_SECRET_LOW)
    high = high ^ np.uint64(_SECRET_HIGH)
    digests = lengths + low.byteswap()
    digests += high
    digests += _folded_product(low, high)
    digests ^= digests >> np.uint64(37)
    digests *= np.uint64(_PRIME_AVALANCHE)
    digests ^= digests >> np.uint64(32)
    return digests


def _folded_product(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The two halves of the product of 128 bits, XORed."""
    import numpy as np

    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_low, a_high, b_low, b_high = a & mask, a >> half, b & mask, b >> half
    cross, other = a_low * b_high, a_high * b_low
    carry = (a_low * b_low) >> half
    carry += cross & mask
    carry += other & mask
    folded = a_high * b_high
    folded += cross >> half
    folded += other >> half
    folded += carry >> half
    folded ^= a * b
    return folded


def _modulo(digests: npt.NDArray[np.uint64], num_dbs: int) -> npt.NDArray[np.int64]:
    import numpy as np

    for start in range(0, len(digests), _CHUNK_ROWS):
        digests[start : start + _CHUNK_ROWS] %= np.uint64(num_dbs)
    return digests.view(np.int64)
