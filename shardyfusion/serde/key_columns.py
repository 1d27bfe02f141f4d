"""Whole columns of keys: dtype check, stored bytes, and what is wrong with the keys, as data.

One key at a time is `keys.py`. Nothing here raises for bad data: the caller stops the write for all partitions at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardyfusion.errors import ConfigValidationError
from shardyfusion.serde.columns import (
    ColumnKind,
    arrow_compute,
    arrow_kind,
    column_kind,
    is_null,
    not_arrow_errors,
    to_arrow,
)
from shardyfusion.serde.keys import KeyEncoding, shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

_MAX_ROUTABLE = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class KeyProblems:
    """What is wrong with the keys of some rows: counts, and one example with its reason."""

    rows: int = 0
    nulls: int = 0
    invalid: int = 0
    example: str | None = None
    reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.nulls or self.invalid)

    def __add__(self, other: KeyProblems) -> KeyProblems:
        """Both together; the example is the first one there is."""
        first = self if self.invalid else other
        return KeyProblems(
            rows=self.rows + other.rows,
            nulls=self.nulls + other.nulls,
            invalid=self.invalid + other.invalid,
            example=first.example,
            reason=first.reason,
        )

    def describe(self, column_name: str) -> str:
        """One sentence for an error message; empty without problems."""
        parts: list[str] = []
        if self.nulls:
            parts.append(f"{self.nulls} of {self.rows} keys are null")
        if self.invalid:
            parts.append(
                f"{self.invalid} of {self.rows} keys cannot be used, for example {self.example}: {self.reason}"
            )
        return f"key column {column_name!r}: {'; '.join(parts)}" if parts else ""


@dataclass(frozen=True, kw_only=True)
class EncodedKeys:
    """One column of keys. Without problems, `values` (int64, large_string or large_binary: what is routed) and
    `stored` (large_binary: what a shard holds) have one item per row and no nulls; otherwise they may be empty."""

    values: pa.Array
    stored: pa.LargeBinaryArray
    problems: KeyProblems


def check_key_dtype(dtype: Any, encoding: KeyEncoding, column_name: str) -> None:
    """Raise `ConfigValidationError` if no data of this dtype can be a key. Object columns pass: their data decides."""
    kind = column_kind(dtype)
    reason = None if kind == "object" else _mismatch(kind, encoding)
    if reason:
        raise ConfigValidationError(f"key column {column_name!r} has dtype {dtype}: {reason}", column=column_name)


def encode_key_column(
    column: pd.Series[Any] | pd.Index[Any], encoding: KeyEncoding, *, min_bytes: int = 0, max_bytes: int | None = None
) -> EncodedKeys:
    """Stored bytes and routable values of a key column.

    `min_bytes` and `max_bytes` bound the stored length, as the storage engine demands.
    """
    try:
        array = to_arrow(column)
    except not_arrow_errors():
        return _encode_mixed(column, encoding, min_bytes, max_bytes)
    kind = arrow_kind(array.type)
    nulls, reason = array.null_count, _mismatch(kind, encoding)
    array = array.drop_null() if nulls else array
    if reason and len(array):
        problems = _problems(len(column), nulls, len(array), array[0].as_py(), reason)
        return EncodedKeys(values=array[:0], stored=_no_bytes(), problems=problems)
    if encoding.integer_width is not None:
        numbers = array.to_numpy(zero_copy_only=False) if kind in ("integer", "boolean") else _no_numbers()
        return _encode_numbers(numbers, encoding, rows=len(column), nulls=nulls)
    texts = array if kind in ("text", "binary") else _no_bytes()
    return _encode_texts(texts, rows=len(column), nulls=nulls, min_bytes=min_bytes, max_bytes=max_bytes)


def big_endian(values: npt.NDArray[np.int64], width: int) -> pa.LargeBinaryArray:
    """Non-negative integers as `width` bytes each, high byte first."""
    import numpy as np
    import pyarrow as pa

    data = pa.py_buffer(values.astype(f">u{width}"))
    offsets = pa.py_buffer(np.arange(0, width * (len(values) + 1), width, dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), len(values), [None, offsets, data], null_count=0)


def _mismatch(kind: ColumnKind, encoding: KeyEncoding) -> str | None:
    """Why a column of this kind cannot be stored in this encoding, and what to do about it."""
    integers = encoding.integer_width is not None
    if kind in ("integer", "boolean"):
        return None if integers else f"key_encoding {encoding} takes text or bytes; use KeyEncoding.U64BE or U32BE"
    if kind in ("text", "binary"):
        if not integers:
            return None
        return (
            f"key_encoding {encoding} takes integers; use KeyEncoding.{'UTF8' if kind == 'text' else 'RAW'}, or cast "
            "the column to int64 (Dask turns object columns of integers into text)"
        )
    if kind == "float":
        return "floats cannot be keys; cast the column to int64 (missing values turn integers into floats)"
    return f"{kind} values cannot be keys; convert the column to integers, text or bytes"


def _problems(rows: int, nulls: int, invalid: int, example: object, reason: str) -> KeyProblems:
    return KeyProblems(rows=rows, nulls=nulls, invalid=invalid, example=shown(example), reason=reason)


def _no_bytes() -> pa.LargeBinaryArray:
    import pyarrow as pa

    return pa.array([], type=pa.large_binary())


def _no_numbers() -> npt.NDArray[np.int64]:
    import numpy as np

    return np.zeros(0, dtype=np.int64)


def _out_of_range(key: int, encoding: KeyEncoding) -> str | None:
    width = encoding.integer_width or 8
    if key < 0:
        return f"key_encoding {encoding} takes no negative integers"
    if width == 4 and key >= 2**32:
        return "key_encoding u32be ends at 2^32-1; use KeyEncoding.U64BE"
    if key > _MAX_ROUTABLE:
        return "integers from 2^63 on cannot be routed to a shard; use text keys"
    return None


def _encode_numbers(numbers: npt.NDArray[Any], encoding: KeyEncoding, *, rows: int, nulls: int) -> EncodedKeys:
    import numpy as np
    import pyarrow as pa

    width = encoding.integer_width or 8
    problems = KeyProblems(rows=rows, nulls=nulls)
    top = _MAX_ROUTABLE if width == 8 else 2**32 - 1
    if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) > top):
        bad = (numbers > top) if numbers.dtype.kind == "u" else (numbers < 0) | (numbers > top)
        example = int(numbers[int(bad.argmax())])
        reason = _out_of_range(example, encoding) or ""
        problems, numbers = _problems(rows, nulls, int(bad.sum()), example, reason), numbers[~bad]
    values = numbers.astype(np.int64, copy=False)
    return EncodedKeys(values=pa.array(values), stored=big_endian(values, width), problems=problems)


def _encode_texts(array: pa.Array, *, rows: int, nulls: int, min_bytes: int, max_bytes: int | None) -> EncodedKeys:
    import numpy as np
    import pyarrow as pa

    stored = array.cast(pa.large_binary())
    problems = KeyProblems(rows=rows, nulls=nulls)
    lengths = arrow_compute().binary_length(stored).to_numpy(zero_copy_only=False)
    bad = (lengths < min_bytes) | (lengths > (np.iinfo(np.int64).max if max_bytes is None else max_bytes))
    if bad.any():
        at = int(bad.argmax())
        limits = f"at least {min_bytes}" if lengths[at] < min_bytes else f"at most {max_bytes}"
        reason = f"the key is {lengths[at]} bytes long and this storage engine takes {limits}"
        problems = _problems(rows, nulls, int(bad.sum()), array[at].as_py(), reason)
        array, stored = array.filter(pa.array(~bad)), stored.filter(pa.array(~bad))
    return EncodedKeys(values=array, stored=stored, problems=problems)


def _encode_mixed(
    column: pd.Series[Any] | pd.Index[Any], encoding: KeyEncoding, min_bytes: int, max_bytes: int | None
) -> EncodedKeys:
    """Object columns that are no single Arrow type (integers from 2^63 on, bools among integers, stray types),
    one value at a time: this is where bad values are found and named."""
    import numpy as np
    import pyarrow as pa

    good: list[Any] = []
    nulls, stray = 0, KeyProblems()
    for key in column.tolist():
        if is_null(key):
            nulls += 1
            continue
        plain = key.item() if isinstance(key, (np.integer, np.bool_)) else key
        try:
            stored = encoding.encode(plain)
            reason = _out_of_range(plain, encoding) if isinstance(plain, int) else None
        except ConfigValidationError as exc:
            stored, reason = b"", exc.message
        if reason:
            stray += _problems(0, 0, 1, plain, reason)
        else:
            good.append(stored if encoding.integer_width is None else int(plain))
    if encoding.integer_width is not None:
        encoded = _encode_numbers(np.array(good, dtype=np.int64), encoding, rows=len(column), nulls=nulls)
    else:
        texts = pa.array(good, type=pa.large_binary())
        encoded = _encode_texts(texts, rows=len(column), nulls=nulls, min_bytes=min_bytes, max_bytes=max_bytes)
    return EncodedKeys(values=encoded.values, stored=encoded.stored, problems=encoded.problems + stray)
