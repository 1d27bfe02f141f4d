"""Columns of a frame as an expression declares them: dtype check, then Arrow arrays of exactly that type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shardyfusion.errors import ConfigValidationError, InputDataError
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.serde.columns import ColumnKind, arrow_compute, arrow_kind, column_kind, not_arrow_errors, to_arrow
from shardyfusion.serde.keys import shown

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_KINDS: Mapping[CelType, ColumnKind] = {
    CelType.INT: "integer",
    CelType.UINT: "integer",
    CelType.DOUBLE: "float",
    CelType.BOOL: "boolean",
    CelType.STRING: "text",
    CelType.BYTES: "binary",
}
_DECLARE = {
    "integer": "int or uint",
    "float": "double",
    "boolean": "bool",
    "text": "string",
    "binary": "bytes",
}


def check_column_dtype(dtype: Any, kind: CelType, name: str) -> None:
    """Raise `ConfigValidationError` if no data of this dtype is of the declared type. Object columns pass: their data
    decides."""
    _check_kind(column_kind(dtype), dtype, kind, name, ConfigValidationError)


def check_key_column_dtype(dtype: Any, kind: CelType, name: str) -> None:
    """The same for the key column, where booleans are the integers that they are stored as."""
    found = column_kind(dtype)
    _check_kind("integer" if found == "boolean" else found, dtype, kind, name, ConfigValidationError)


def declared_column(column: pd.Series[Any] | pd.Index[Any], kind: CelType, name: str) -> pa.Array:
    """A column of a frame in the Arrow type that `arrow_type` gives. A NaN of a NumPy column is a null.

    Raises:
        InputDataError: it holds values that are not of the declared type.
    """
    try:
        array = _as_arrow(column, kind)
    except not_arrow_errors() as exc:
        raise InputDataError(
            f"column {name!r} is declared {kind.value} in cel_columns, and not all of its values are: {exc}",
            column=name,
        ) from exc
    if array.null_count < len(array):
        _check_kind(arrow_kind(array.type), array.type, kind, name, InputDataError)
    return _cast(array, kind, name)


def _as_arrow(column: pd.Series[Any] | pd.Index[Any], kind: CelType) -> pa.Array:
    """Python's integers among objects may be meant as unsigned or double, which a partition alone does not show."""
    import pyarrow as pa

    if column_kind(column.dtype) != "object":
        return to_arrow(column)
    try:
        array = to_arrow(column)
    except OverflowError:
        if kind is not CelType.UINT:
            raise
        return pa.array(column, pa.uint64(), from_pandas=True)
    return array.cast(pa.float64()) if kind is CelType.DOUBLE and arrow_kind(array.type) == "integer" else array


def declared_keys(keys: pa.Array, kind: CelType, name: str) -> pa.Array:
    """Keys as they are routed, in the Arrow type of their declared type. Text and its UTF-8 bytes are the same key."""
    found = arrow_kind(keys.type)
    texts = ("text", "binary")
    if found != _KINDS[kind] and not (found in texts and _KINDS[kind] in texts) and len(keys):
        _check_kind(found, keys.type, kind, name, InputDataError)
    return _cast(keys, kind, name)


def arrow_type(kind: CelType) -> pa.DataType:
    import pyarrow as pa

    return {
        CelType.INT: pa.int64(),
        CelType.UINT: pa.uint64(),
        CelType.DOUBLE: pa.float64(),
        CelType.BOOL: pa.bool_(),
        CelType.STRING: pa.large_string(),
        CelType.BYTES: pa.large_binary(),
    }[kind]


def _check_kind(found: ColumnKind, dtype: Any, kind: CelType, name: str, error: type[ConfigValidationError]) -> None:
    if found in ("object", _KINDS[kind]):
        return
    advice = f"declare it {_DECLARE[found]}" if found in _DECLARE else "convert it to a type that CEL has"
    raise error(
        f"column {name!r} is declared {kind.value} in cel_columns and has dtype {dtype}; {advice}, or cast the column",
        column=name,
    )


def _cast(array: pa.Array, kind: CelType, name: str) -> pa.Array:
    import pyarrow as pa

    wanted = arrow_type(kind)
    try:
        return array if array.type == wanted else array.cast(wanted)
    except pa.ArrowInvalid as exc:
        raise InputDataError(
            f"column {name!r} is declared {kind.value} in cel_columns, and holds {_example(array)}, which is none; "
            f"declare it {_other(kind)}, or mend the data",
            column=name,
        ) from exc


def _other(kind: CelType) -> str:
    return {CelType.INT: "uint", CelType.UINT: "int", CelType.STRING: "bytes"}.get(kind, "otherwise")


def _example(array: pa.Array) -> str:
    """The value that a cast refused: integers beyond the declared range, or bytes that are no UTF-8."""
    if arrow_kind(array.type) == "integer":
        bounds = arrow_compute().min_max(array).as_py()
        return shown(bounds["min"] if bounds["min"] < 0 else bounds["max"])
    return shown(next(value for value in array.drop_null().to_pylist() if not _is_utf8(value)))


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
