"""Rows as JSON: bytes equal to `json.dumps(row, sort_keys=True, separators=(",", ":"))`, assembled column by column.

Every column becomes a column of JSON fragments; one Arrow join per frame puts them between the names. What JSON cannot
write is given a form here: missing values and non-finite numbers are null, times are ISO 8601, decimals are strings.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, cast

from shardyfusion.errors import ValueEncodingError
from shardyfusion.serde.columns import (
    arrow_compute,
    arrow_kind,
    column_kind,
    is_null,
    not_arrow_errors,
    python_values,
    to_arrow,
)
from shardyfusion.serde.keys import shown

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_PLAIN_TEXT = r"[^ !#-\[\]-~]"  # matches what json.dumps escapes: quote, backslash, and all but printable ASCII
_UTC = ("UTC", "Etc/UTC", "+00:00")


def encode_json_rows(frame: pd.DataFrame, names: Iterable[str]) -> pa.LargeBinaryArray:
    """One JSON object per row with the columns `names`."""
    import pyarrow as pa

    pc = arrow_compute()
    pieces: list[Any] = []
    for name in sorted(names):
        start = f"{',' if pieces else '{'}{encode_basestring_ascii(str(name))}:"
        pieces += [pa.scalar(start, pa.large_string()), json_fragments(frame[name], str(name))]
    if not pieces:
        return pa.array([b"{}"] * len(frame), type=pa.large_binary())
    end, nothing = pa.scalar("}", pa.large_string()), pa.scalar("", pa.large_string())
    return pc.binary_join_element_wise(*pieces, end, nothing).cast(pa.large_binary())


def json_fragments(column: pd.Series[Any], name: str) -> pa.LargeStringArray:
    """The JSON text of every value of one column, never null."""
    import pandas as pd

    if column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) != "string":
        return _fragments_one_by_one(column.tolist(), name)
    try:
        array = to_arrow(column)
    except not_arrow_errors():
        return _fragments_one_by_one(column.tolist(), name)
    by_kind: dict[str, Callable[[pa.Array], pa.Array | None]] = {
        "integer": _plain_fragments,
        "boolean": _plain_fragments,
        "float": _float_fragments,
        "text": _text_fragments,
        "temporal": _timestamp_fragments,
    }
    vectorised = by_kind.get(arrow_kind(array.type))
    fragments = vectorised(array) if vectorised else None
    if fragments is None:
        return _fragments_one_by_one(_exact_values(column, name), name)
    return fragments.fill_null("null") if fragments.null_count else fragments


def _plain_fragments(array: pa.Array) -> pa.LargeStringArray:
    """Integers and booleans: Arrow writes them as JSON does."""
    import pyarrow as pa

    return array.cast(pa.large_string())


def _text_fragments(array: pa.LargeStringArray) -> pa.LargeStringArray:
    import pyarrow as pa

    pc = arrow_compute()
    quote, nothing = pa.scalar('"', pa.large_string()), pa.scalar("", pa.large_string())
    fragments = pc.binary_join_element_wise(quote, array, quote, nothing)
    special = pc.match_substring_regex(array, _PLAIN_TEXT)
    if pc.any(special).as_py():
        special = special.fill_null(False)
        escaped = list(map(encode_basestring_ascii, array.filter(special).to_pylist()))
        fragments = pc.replace_with_mask(fragments, special, pa.array(escaped, type=pa.large_string()))
    return fragments


def _float_fragments(array: pa.Array) -> pa.LargeStringArray:
    """`float.__repr__` of every value. Arrow writes the same shortest digits, but whole numbers without `.0`, and it
    changes to exponents elsewhere: numbers outside [1e-4, 1e10) are left to Python."""
    import numpy as np
    import pyarrow as pa

    pc = arrow_compute()
    array = array.cast(pa.float64())
    numbers = array.to_numpy(zero_copy_only=False)  # nulls are NaN here
    size = np.abs(numbers)
    finite, whole = np.isfinite(numbers), numbers == np.trunc(numbers)
    fragments = array.cast(pa.large_string())
    if whole.any():
        dot = pc.if_else(pa.array(whole), pa.scalar(".0", pa.large_string()), pa.scalar("", pa.large_string()))
        fragments = pc.binary_join_element_wise(fragments, dot, pa.scalar("", pa.large_string()))
    odd = finite & (size != 0) & ~((size >= 1e-4) & (size < 1e10))
    if odd.any():
        texts = pa.array(list(map(repr, numbers[odd].tolist())), type=pa.large_string())
        fragments = pc.replace_with_mask(fragments, pa.array(odd), texts)
    return fragments if finite.all() else pc.if_else(pa.array(finite), fragments, pa.scalar("null", pa.large_string()))


def _timestamp_fragments(array: pa.Array) -> pa.LargeStringArray | None:
    """`pd.Timestamp.isoformat()` of naive and UTC timestamps: as few of 0, 6 or 9 digits as are exact. None for other
    temporal types and time zones."""
    import numpy as np
    import pyarrow as pa

    pc = arrow_compute()
    kind = array.type
    if not pa.types.is_timestamp(kind) or kind.tz not in (None, *_UTC):
        return None
    text, nothing = pa.large_string(), pa.scalar("", pa.large_string())
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    ticks = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if len(ticks) and (ticks.min() // per_second < -62135596800 or ticks.max() // per_second > 253402300799):
        return None  # outside the years 1 to 9999
    seconds = np.floor_divide(ticks, per_second)
    fragments = pa.array(seconds).cast(pa.timestamp("s")).cast(text)
    below = ticks - seconds * per_second
    if below.any():
        nanos = below * (10**9 // per_second)
        for unit, ticks_of_unit, shown_where in (("us", 1_000, nanos != 0), ("ns", 1, nanos % 1_000 != 0)):
            if shown_where.any():
                moments = seconds[shown_where] * (10**9 // ticks_of_unit) + nanos[shown_where] // ticks_of_unit
                exact = pa.array(moments).cast(pa.timestamp(unit)).cast(text)
                fragments = pc.replace_with_mask(fragments, pa.array(shown_where), exact)
    fragments = pc.replace_substring(fragments, " ", "T", max_replacements=1)
    quote, end = pa.scalar('"', text), pa.scalar('+00:00"' if kind.tz else '"', text)
    fragments = pc.binary_join_element_wise(quote, fragments, end, nothing)
    return pc.if_else(array.is_valid(), fragments, pa.scalar("null", text)) if array.null_count else fragments


def _exact_values(column: pd.Series[Any], name: str) -> list[Any]:
    import pyarrow as pa

    try:
        array = to_arrow(column) if column_kind(column.dtype) == "temporal" else None
        if array is not None and array.type == pa.time64("ns"):
            return array.cast(pa.time64("us")).to_pylist()  # fails where that would lose something
        return python_values(column)
    except (*not_arrow_errors(), KeyError) as exc:  # a map with one key twice, a time with nanoseconds
        raise ValueEncodingError(f"value column {name!r} of type {column.dtype} has no exact JSON form: {exc}") from exc


def _fragments_one_by_one(values: Iterable[Any], name: str) -> pa.LargeStringArray:
    """The general case: one call of the encoder per value."""
    import pyarrow as pa

    fragments: list[str] = []
    for row, value in enumerate(values):
        try:
            fragments.append("null" if value is None else encode_json_value(value))
        except (TypeError, ValueError, RecursionError) as exc:
            raise ValueEncodingError(
                f"value column {name!r} holds {shown(value)}, which has no JSON form: {exc}", column=name, row=row
            ) from exc
    return pa.array(fragments, type=pa.large_string())


def encode_json_value(value: Any) -> str:
    """One value as JSON text. Raises TypeError or ValueError for what has no JSON form."""
    try:
        return _encode(value)
    except ValueError:
        return _encode(_without_nan(value))  # NaN or infinity somewhere inside: rare enough to pay twice


def _without_nan(value: Any) -> Any:
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {_finite_name(name): _without_nan(item) for name, item in items}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in cast("list[Any]", value)]
    return _without_nan(_json_form(value))


def _finite_name(name: Any) -> Any:
    """json.dumps names a non-finite member `NaN` or `Infinity`, which is valid as a name."""
    return json.dumps(name) if isinstance(name, float) and not math.isfinite(name) else name


def _json_form(value: Any) -> Any:
    """What is written for a value that json does not know."""
    import numpy as np
    import pandas as pd

    if is_null(value):
        return None
    if isinstance(value, np.ndarray):
        return list(cast("Any", value)) if value.dtype.kind in "mM" else value.tolist()
    if isinstance(value, np.datetime64):
        return pd.Timestamp(value).isoformat()
    if isinstance(value, (dt.timedelta, np.timedelta64)):
        return pd.Timedelta(value).isoformat()
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else None
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, np.floating):
        return float(value)  # `item()` of a long double is that long double
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError("JSON cannot carry bytes; use binary_col, or decode the column to text")
    raise TypeError(f"{type(value).__name__} is not JSON serializable; convert the column, or use callable_encoder")


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_json_form).encode
