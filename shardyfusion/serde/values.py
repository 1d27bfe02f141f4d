"""How the columns of a row become the value bytes of its key: `ValueSpec` and its strategies.

The JSON text itself is made in `json_columns.py`, the row object for a user's encoder in `row_view.py`.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardyfusion.errors import ConfigValidationError, ValueEncodingError
from shardyfusion.serde.columns import arrow_kind, column_kind, is_null, not_arrow_errors, to_arrow
from shardyfusion.serde.function_fingerprint import function_fingerprint
from shardyfusion.serde.json_columns import encode_json_rows
from shardyfusion.serde.keys import shown
from shardyfusion.serde.row_view import Row, rows_of
from shardyfusion.type_defs import require

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class ValueSpec(ABC):
    """Which columns make a value, and how. Made by `binary_col`, `json_cols` and `callable_encoder`; picklable."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...] | None:
        """The columns that are needed; None for all."""

    @abstractmethod
    def encode_frame(self, frame: pd.DataFrame) -> pa.LargeBinaryArray:
        """One value per row, never null. Raises `ValueEncodingError` for data that cannot be stored."""

    @abstractmethod
    def describe(self) -> str:
        """One line that says what values are made of."""

    def fingerprint(self) -> str:
        """Equal for specs that make equal values, in any process; by it a rerun is recognised as the same request."""
        return repr(self)

    def check_columns(self, available: Sequence[str], dtypes: Mapping[str, Any]) -> None:
        """Raise `ConfigValidationError` for columns that are not there or can never be encoded."""
        wanted = tuple(available) if self.columns is None else self.columns
        for name in wanted:
            require(name in available, f"value column {name!r} is not in the frame; it has {_listed(available)}")
            require(list(available).count(name) == 1, f"the frame has more than one column {name!r}; rename them")
            reason = self._why_not(dtypes[name])
            if reason:
                raise ConfigValidationError(f"value column {name!r} has dtype {dtypes[name]}: {reason}", column=name)

    def _why_not(self, dtype: Any) -> str | None:
        """Why no data of this dtype can be encoded, or None."""
        return None

    @staticmethod
    def binary_col(name: str) -> ValueSpec:
        """The bytes of one column; text as UTF-8, missing values as `b""`."""
        require(_is_name(name), f"binary_col takes one column name, not {name!r}")
        return _BinaryColumn(name)

    @staticmethod
    def json_cols(cols: Sequence[str] | None = None) -> ValueSpec:
        """A JSON object of the named columns, or of all columns: names sorted, compact, ASCII.

        Missing and non-finite values are null, timestamps ISO 8601, durations ISO 8601, decimals strings.
        """
        return _JsonColumns(_column_names(cols, "json_cols") or None)

    @staticmethod
    def callable_encoder(fn: Callable[[Row], bytes], columns: Sequence[str] | None = None) -> ValueSpec:
        """What `fn(row)` returns, which must be bytes. `columns` limits what the row holds (and what is computed)."""
        require(callable(fn), f"callable_encoder takes a function of one row, not {fn!r}")
        return _CallableEncoder(fn, _column_names(columns, "callable_encoder") or None)


@dataclass(frozen=True)
class _BinaryColumn(ValueSpec):
    name: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def describe(self) -> str:
        return f"binary_col:{self.name}"

    def __repr__(self) -> str:
        return f"ValueSpec.binary_col({self.name!r})"

    def _why_not(self, dtype: Any) -> str | None:
        if column_kind(dtype) in ("text", "binary", "object"):
            return None
        return "binary_col takes bytes or text; use json_cols or callable_encoder, or convert the column"

    def encode_frame(self, frame: pd.DataFrame) -> pa.LargeBinaryArray:
        import pyarrow as pa

        column = frame[self.name]
        try:
            array = to_arrow(column)
        except not_arrow_errors():
            return self._encode_objects(column.tolist())
        if array.null_count < len(array) and arrow_kind(array.type) not in ("text", "binary"):
            return self._encode_objects(column.tolist())
        if array.null_count == len(array):
            return pa.array([b""] * len(array), type=pa.large_binary())
        array = array.cast(pa.large_binary())
        return array.fill_null(b"") if array.null_count else array

    def _encode_objects(self, values: Sequence[Any]) -> pa.LargeBinaryArray:
        """Columns that are no single Arrow type: mostly to name the value that is neither bytes nor text."""
        import pyarrow as pa

        encoded: list[bytes] = []
        for row, value in enumerate(values):
            try:
                encoded.append(_as_bytes(value))
            except (TypeError, UnicodeEncodeError) as exc:
                raise ValueEncodingError(
                    f"value column {self.name!r} holds {shown(value)} of type {type(value).__name__}; binary_col takes "
                    "bytes and text that has a UTF-8 form",
                    column=self.name,
                    row=row,
                ) from exc
        return pa.array(encoded, type=pa.large_binary())


@dataclass(frozen=True)
class _JsonColumns(ValueSpec):
    names: tuple[str, ...] | None

    @property
    def columns(self) -> tuple[str, ...] | None:
        return self.names

    def describe(self) -> str:
        return f"json_cols:{'all' if self.names is None else ','.join(self.names)}"

    def __repr__(self) -> str:
        return f"ValueSpec.json_cols({'' if self.names is None else list(self.names)})"

    def check_columns(self, available: Sequence[str], dtypes: Mapping[str, Any]) -> None:
        super().check_columns(available, dtypes)
        strange = [name for name in self.names or available if not _is_name(name)]
        require(not strange, f"json_cols needs text as column names; rename {_listed(strange)}")

    def _why_not(self, dtype: Any) -> str | None:
        kind = column_kind(dtype)
        if kind == "binary":
            return "JSON cannot carry bytes; use binary_col or callable_encoder, or name the other columns in json_cols"
        return "it has no JSON form; convert the column, or name the others" if kind == "unsupported" else None

    def encode_frame(self, frame: pd.DataFrame) -> pa.LargeBinaryArray:
        return encode_json_rows(frame, list(frame.columns) if self.names is None else self.names)


@dataclass(frozen=True)
class _CallableEncoder(ValueSpec):
    fn: Callable[[Row], object]
    names: tuple[str, ...] | None

    @property
    def columns(self) -> tuple[str, ...] | None:
        return self.names

    def describe(self) -> str:
        return f"callable_encoder:{getattr(self.fn, '__qualname__', type(self.fn).__qualname__)}"

    def fingerprint(self) -> str:
        return f"{self!r}:{function_fingerprint(self.fn)}"

    def __repr__(self) -> str:
        limited = "" if self.names is None else f", columns={list(self.names)}"
        return f"ValueSpec.callable_encoder({getattr(self.fn, '__qualname__', self.fn)}{limited})"

    def encode_frame(self, frame: pd.DataFrame) -> pa.LargeBinaryArray:
        import pyarrow as pa

        encoded: list[bytes] = []
        for at, row in enumerate(rows_of(frame, list(frame.columns) if self.names is None else self.names)):
            try:
                value = self.fn(row)
            except Exception as exc:
                where = traceback.extract_tb(exc.__traceback__)[:2][-1]  # after our own call: the line in `fn`
                raise ValueEncodingError(
                    f"{self.describe()} failed: {type(exc).__name__}: {exc}",
                    row=at,
                    raised_at=f"{where.filename}:{where.lineno}",
                ) from exc
            if not isinstance(value, bytes):
                raise ValueEncodingError(
                    f"{self.describe()} returned {type(value).__name__}; it must return bytes", row=at
                )
            encoded.append(value)
        return pa.array(encoded, type=pa.large_binary())


def _as_bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if is_null(value):
        return b""
    raise TypeError(type(value).__name__)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name)


def _column_names(columns: Sequence[str] | None, where: str) -> tuple[str, ...]:
    require(not _is_name(columns), f"{where} takes a list of column names, not {columns!r}")
    names = tuple(columns or ())
    require(len(set(names)) == len(names), f"{where} names a column twice: {_listed(names)}")
    return names


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names)) or "no columns"
