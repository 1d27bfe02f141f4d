"""pandas columns as Arrow arrays, and what a dtype says about a column before any data is touched.

What keys and values are made of these arrays is decided in `key_columns.py`, `values.py` and `json_columns.py`.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ColumnKind = Literal[
    "integer", "boolean", "float", "text", "binary", "temporal", "decimal", "nested", "object", "unsupported"
]
"""`object` means that only the data can tell."""

_UNKNOWN_CATEGORIES = "__UNKNOWN_CATEGORIES__"  # how Dask marks categories that only the data knows
_SAMPLE = 5
_LONGEST_LITERAL = 2_000
_PYTHON_WORDS = re.compile(r"\b(?:Decimal|Timestamp|Timedelta|UUID|array|datetime\.\w+|nan|inf|None|True|False)\b")
_NUMBERS_APART = re.compile(r"\[\s*[-+\d.e]+(?:\s+[-+\d.e]+)*\s*\]")


def column_kind(dtype: Any) -> ColumnKind:
    """What a pandas dtype holds. Categorical and dictionary columns count as what their categories are."""
    import pandas as pd

    if isinstance(dtype, pd.CategoricalDtype):
        categories: Any = dtype.categories  # None where a dtype was made without them
        categories = () if categories is None else categories
        unknown = len(categories) == 0 or _UNKNOWN_CATEGORIES in categories
        return "object" if unknown else column_kind(categories.dtype)
    if isinstance(dtype, pd.ArrowDtype):
        return arrow_kind(dtype.pyarrow_dtype)
    if isinstance(dtype, pd.StringDtype):
        return "text"
    if isinstance(dtype, (pd.PeriodDtype, pd.IntervalDtype, pd.SparseDtype)):
        return "unsupported"
    by_code: dict[str, ColumnKind] = {"i": "integer", "u": "integer", "b": "boolean", "f": "float", "O": "object"}
    return by_code.get(dtype.kind, "temporal" if dtype.kind in "mM" else "unsupported")


def arrow_kind(kind: pa.DataType) -> ColumnKind:
    """What an Arrow type holds."""
    import pyarrow.types as pat

    if pat.is_dictionary(kind):
        return arrow_kind(kind.value_type)
    tests: list[tuple[ColumnKind, tuple[Any, ...]]] = [
        ("integer", (pat.is_integer,)),
        ("boolean", (pat.is_boolean,)),
        ("float", (pat.is_floating,)),
        ("text", (pat.is_string, pat.is_large_string, pat.is_string_view)),
        ("binary", (pat.is_binary, pat.is_large_binary, pat.is_binary_view, pat.is_fixed_size_binary)),
        ("temporal", (pat.is_temporal,)),
        ("decimal", (pat.is_decimal,)),
        ("nested", (pat.is_nested,)),
        ("object", (pat.is_null,)),
    ]
    for name, checks in tests:
        if any(check(kind) for check in checks):
            return name
    return "unsupported"


def to_arrow(column: pd.Series[Any] | pd.Index[Any]) -> pa.Array:
    """A column as one Arrow array: every spelling of a missing value is null, dictionaries are decoded, and text and
    bytes are `large_string` and `large_binary`.

    Raises what pyarrow raises for object columns that are no single Arrow type: see `not_arrow_errors`.
    """
    import pyarrow as pa

    array = pa.array(column, from_pandas=True)
    chunks: list[pa.Array] = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    plain = [_widen(chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk) for chunk in chunks]
    if len(plain) == 1:
        return plain[0]
    return pa.concat_arrays(plain) if plain else _widen(pa.array([], type=array.type))


def arrow_compute() -> Any:
    """`pyarrow.compute`, whose functions are made at import time and unknown to type checkers."""
    import pyarrow.compute

    return pyarrow.compute


def not_arrow_errors() -> tuple[type[Exception], ...]:
    """What `to_arrow` raises for an object column that is no single Arrow type."""
    import pyarrow as pa

    return (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError)


def _widen(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    wide = {"text": pa.large_string(), "binary": pa.large_binary()}.get(arrow_kind(array.type))
    return array if wide is None or array.type == wide else array.cast(wide)


def is_null(value: object) -> bool:
    """Whether one value of an object column is missing: None, NaN of any float type, pd.NA or NaT."""
    import numpy as np
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT:
        return True
    return isinstance(value, (float, np.floating, np.datetime64, np.timedelta64)) and bool(value != value)


def python_values(column: pd.Series[Any]) -> list[Any]:
    """A column as Python values: integers stay integers, timestamps are `pd.Timestamp`, missing values are None.

    Two exceptions: a missing value of a NumPy float column is the float NaN that it is, and object columns are as is.
    """
    import pandas as pd

    kind = column_kind(column.dtype)
    if kind == "nested":
        return to_arrow(column).to_pylist(maps_as_pydicts="strict")
    values = column.tolist()
    if column.dtype == object:
        return values
    if kind == "float":
        return [None if value is pd.NA else value for value in values]
    missing = column.isna().to_numpy()
    if missing.any():
        return [None if gone else value for value, gone in zip(values, missing.tolist(), strict=True)]
    return values


def looks_converted(column: pd.Series[Any]) -> str | None:
    """Why a text column seems to hold Python objects that were turned into text, or None.

    Dask turns object columns into text (`dataframe.convert-string`) before this library sees them: lists, dicts and
    arrays arrive as their `str()`. Only the first few values are looked at, and only whole columns of such text count.
    Decimals and UTF-8 bytes arrive as plain text, which nothing can tell from text.
    """
    if column_kind(column.dtype) != "text":
        return None
    sample = [text for text in column.head(1_000).dropna().head(_SAMPLE).tolist() if isinstance(text, str)]
    if not sample or not all(_is_literal(text) for text in sample):
        return None
    return f"values such as {sample[0][:60]!r} look like Python lists, dicts or arrays that were turned into text"


def _is_literal(text: str) -> bool:
    """Whether `text` is what `str()` makes of a list, dict, tuple, set or array. JSON text mostly is not."""
    if len(text) > _LONGEST_LITERAL or text[:1] + text[-1:] not in ("[]", "{}", "()"):
        return False
    try:
        return repr(ast.literal_eval(text)) == text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return bool(_NUMBERS_APART.fullmatch(text) or _PYTHON_WORDS.search(text))
