"""Whole columns at a time: what writers route with. Independent of `functions.py` wherever that was possible.

Numbers and bools are NumPy arrays of exactly their type, text and bytes are Arrow arrays, and what is the same for all
rows is a `Constant`. A row that has no value is marked as failed; its place then holds anything. Why it failed is
asked of the scalar evaluator, for the first such row only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardyfusion.routing.cel.check import type_of
from shardyfusion.routing.cel.functions import FUNCTIONS, EvaluationError
from shardyfusion.routing.cel.scalar import LAZY, scalar_evaluator
from shardyfusion.routing.cel.tree import Expr
from shardyfusion.routing.hashing import bytes_digests, integer_digests
from shardyfusion.serde.columns import arrow_compute

pc: Any = arrow_compute()

Mask = npt.NDArray[np.bool_]
Failed = Mask | None
"""Which rows have no value; None for none of them."""

DTYPES: Mapping[str, type[np.generic]] = {"int": np.int64, "uint": np.uint64, "double": np.float64, "bool": np.bool_}
ARROW_TYPES = {"string": pa.large_string(), "bytes": pa.large_binary()}
_CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class Column:
    """A value for each row, or one for all of them (`constant`)."""

    values: Any
    failed: Failed = None
    constant: bool = False

    def spread(self, kind: str, rows: int) -> Any:
        """A value for each row."""
        if not self.constant:
            return self.values
        if kind in DTYPES:
            return np.full(rows, self.values, dtype=DTYPES[kind])
        return pa.repeat(pa.scalar(self.values, ARROW_TYPES[kind]), rows)


def evaluate_columns(expr: Expr, columns: Mapping[str, Any], rows: int) -> tuple[Any, Failed]:
    """The values of a checked tree with nothing `outside`, and which rows have none.

    `columns` are as this module's description says, each with `rows` elements and no nulls.
    """
    found = _Evaluation(columns, rows).column(expr)
    return found.spread(type_of(expr).name, rows), found.failed


class _Evaluation:
    def __init__(self, columns: Mapping[str, Any], rows: int) -> None:
        self._columns = columns
        self._rows = rows

    def column(self, expr: Expr) -> Column:
        if expr.kind == "column":
            return Column(self._columns[expr.name])
        if not any(node.kind == "column" for node in expr.walk()):
            return self._constant(expr)
        if expr.name in LAZY:
            return self._conditional(expr) if expr.name == "_?_:_" else self._absorbing(expr)
        if expr.name == "@in":
            return self._in(expr)
        kind = type_of(expr.args[0]).name
        args = [self.column(arg) for arg in expr.args]
        values, failed = self._call(expr.name, kind, args)
        return Column(values, _either(failed, *(arg.failed for arg in args)))

    def _constant(self, expr: Expr) -> Column:
        try:
            return Column(scalar_evaluator(expr)({}), constant=True)
        except EvaluationError:
            nothing = {"string": "", "bytes": b""}.get(type_of(expr).name, 0)
            return Column(nothing, np.ones(self._rows, dtype=bool), constant=True)

    def _call(self, name: str, kind: str, args: Sequence[Column]) -> tuple[Any, Failed]:
        vectorised = VECTORISED.get((name, kind))
        if vectorised is not None:
            with np.errstate(all="ignore"):
                return vectorised(*(arg.spread(kind, self._rows) for arg in args))
        if name in _PATTERNS and args[1].constant:
            return _PATTERNS[name](args[0].spread(kind, self._rows), args[1].values)
        return self._one_by_one(name, kind, [arg.spread(kind, self._rows) for arg in args])

    def _one_by_one(self, name: str, kind: str, args: Sequence[Any]) -> tuple[Any, Failed]:
        """What Arrow and NumPy have no counterpart for, once for each distinct value where there is one argument."""
        result = _RESULTS.get(name, name)
        if len(args) == 1:
            values = pa.array(args[0])
            encoded = values.dictionary_encode()
            found, failed = mapped(FUNCTIONS[name, kind], result, encoded.dictionary.to_pylist())
            at = encoded.indices.to_numpy()
            spread = found[at] if isinstance(found, np.ndarray) else found.take(encoded.indices)
            return spread, None if failed is None else failed[at]
        return mapped(FUNCTIONS[name, kind], result, *(pa.array(arg).to_pylist() for arg in args))

    def _bools(self, expr: Expr) -> tuple[Mask, Mask]:
        """The values of a bool, false where it failed, and where it did."""
        found = self.column(expr)
        failed = np.zeros(self._rows, dtype=bool) if found.failed is None else found.failed
        return found.spread("bool", self._rows) & ~failed, failed

    def _absorbing(self, expr: Expr) -> Column:
        """An error counts only where the other side does not decide."""
        (first, first_failed), (second, second_failed) = (self._bools(arg) for arg in expr.args)
        failed = first_failed | second_failed
        if expr.name == "_||_":
            values = first | second
            return Column(values, _some(failed & ~values))
        decided = (~first & ~first_failed) | (~second & ~second_failed)
        return Column(~decided, _some(failed & ~decided))

    def _conditional(self, expr: Expr) -> Column:
        chosen, failed = self._bools(expr.args[0])
        kind = type_of(expr).name
        sides = [self.column(arg) for arg in expr.args[1:]]
        first, second = (side.spread(kind, self._rows) for side in sides)
        values = np.where(chosen, first, second) if kind in DTYPES else pc.if_else(pa.array(chosen), first, second)
        for side, taken in zip(sides, (chosen, ~chosen), strict=True):
            if side.failed is not None:
                failed = failed | (side.failed & taken)
        return Column(_plain(values), _some(failed))

    def _in(self, expr: Expr) -> Column:
        kind = type_of(expr.args[0]).name
        wanted = self.column(expr.args[0])
        elements = [self.column(element) for element in expr.args[1].args]
        values = wanted.spread(kind, self._rows)
        constants = [element.values for element in elements if element.constant]
        found = np.zeros(self._rows, dtype=bool)
        if constants and kind in DTYPES:
            found |= np.isin(values, np.array(constants, dtype=DTYPES[kind]))
        elif constants:
            found |= _bits(pc.is_in(values, value_set=pa.array(constants, ARROW_TYPES[kind])))
        for element in elements:
            if not element.constant:
                found |= VECTORISED["_==_", kind](values, element.values)[0]
        return Column(found, _either(wanted.failed, *(element.failed for element in elements)))


def mapped(function: Callable[..., Any], result: str, *args: list[Any]) -> tuple[Any, Failed]:
    """What `function` makes of one row of the lists after the other: values of the type `result`."""
    values: list[Any] = []
    failed: list[int] = []
    nothing = {"string": "", "bytes": b""}.get(result, 0)
    for at, row in enumerate(zip(*args, strict=True)):
        try:
            values.append(function(*row))
        except EvaluationError:
            values.append(nothing)
            failed.append(at)
    mask = np.zeros(len(values), dtype=bool)
    mask[failed] = True
    made = np.array(values, DTYPES[result]) if result in DTYPES else pa.array(values, ARROW_TYPES[result])
    return made, _some(mask)


def _some(mask: Mask) -> Failed:
    return mask if mask.any() else None


def _either(*masks: Failed) -> Failed:
    present = [mask for mask in masks if mask is not None]
    if not present:
        return None
    return _some(np.logical_or.reduce(present))


def _bits(bools: Any) -> Mask:
    return bools.to_numpy(zero_copy_only=False)


def _plain(values: Any) -> Any:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _add_int(a: Any, b: Any) -> tuple[Any, Failed]:
    total = a + b
    return total, _some(((a ^ total) & (b ^ total)) < 0)


def _subtract_int(a: Any, b: Any) -> tuple[Any, Failed]:
    rest = a - b
    return rest, _some(((a ^ b) & (a ^ rest)) < 0)


def _multiply(a: Any, b: Any) -> tuple[Any, Failed]:
    """Wraps around where the product of the nearest doubles is beyond the bounds, or close to them and not equal."""
    product = a * b
    signed = a.dtype == np.int64
    limit = 2.0**63 if signed else 2.0**64
    estimate = a.astype(np.float64) * b.astype(np.float64)
    wrong = np.abs(estimate) > limit * 1.01
    close = np.flatnonzero(~wrong & (np.abs(estimate) > limit * 0.99))
    if len(close):
        exact = [int(x) * int(y) for x, y in zip(a[close], b[close], strict=True)]
        wrong[close] = [int(got) != true for got, true in zip(product[close], exact, strict=True)]
    return product, _some(wrong)


def _negate_int(a: Any) -> tuple[Any, Failed]:
    return -a, _some(a == np.iinfo(np.int64).min)


def _add_uint(a: Any, b: Any) -> tuple[Any, Failed]:
    total = a + b
    return total, _some(total < a)


def _subtract_uint(a: Any, b: Any) -> tuple[Any, Failed]:
    return a - b, _some(a < b)


def _safe_divisor(a: Any, b: Any) -> tuple[Any, Failed]:
    """The divisor with 1 where there is no result, and where that is."""
    failed = b == 0
    if a.dtype == np.int64:
        failed = failed | ((b == -1) & (a == np.iinfo(np.int64).min))
    return np.where(failed, b.dtype.type(1), b), _some(failed)


def _divide(a: Any, b: Any) -> tuple[Any, Failed]:
    divisor, failed = _safe_divisor(a, b)
    return (a - np.fmod(a, divisor)) // divisor, failed


def _remainder(a: Any, b: Any) -> tuple[Any, Failed]:
    divisor, failed = _safe_divisor(a, b)
    return np.fmod(a, divisor), failed


def _sure(function: Callable[..., Any]) -> Callable[..., tuple[Any, Failed]]:
    """Of what has a value for every row."""
    return lambda *args: (_plain(function(*args)), None)


def _compared(name: str) -> Callable[..., tuple[Any, Failed]]:
    return lambda *args: (_bits(pc.call_function(name, args)), None)


def _int_of_double(a: Any) -> tuple[Any, Failed]:
    inside = (a > -(2.0**63)) & (a < 2.0**63)
    return np.where(inside, a, 0).astype(np.int64), _some(~inside)


def _uint_of_double(a: Any) -> tuple[Any, Failed]:
    inside = (a >= 0) & (a < 2.0**64)
    return np.where(inside, a, 0).astype(np.uint64), _some(~inside)


def _int_of_uint(a: Any) -> tuple[Any, Failed]:
    return a.astype(np.int64), _some(a >= np.uint64(2**63))


def _uint_of_int(a: Any) -> tuple[Any, Failed]:
    return a.astype(np.uint64), _some(a < 0)


def _text(a: Any) -> Any:
    return pc.cast(pa.array(a), pa.large_string())


def _hash_integers(a: Any) -> tuple[Any, Failed]:
    failed = _some(a >= np.uint64(2**63)) if a.dtype == np.uint64 else None
    return integer_digests(a.view(np.int64)), failed


def _join(a: Any, b: Any) -> Any:
    return pc.binary_join_element_wise(a, b, pa.scalar("" if pa.types.is_large_string(a.type) else b"", a.type))


def _characters(a: Any) -> Any:
    return pc.utf8_length(a).to_numpy().astype(np.int64)


def _lengths(a: Any) -> Any:
    return pc.binary_length(a).to_numpy().astype(np.int64)


def _utf8(a: Any) -> Any:
    return a.cast(pa.large_binary())


def _same(a: Any) -> Any:
    return a


_NUMBERS = ("bool", "int", "uint", "double")
_COMPARISONS = {
    "_==_": (np.equal, "equal"),
    "_!=_": (np.not_equal, "not_equal"),
    "_<_": (np.less, "less"),
    "_<=_": (np.less_equal, "less_equal"),
    "_>_": (np.greater, "greater"),
    "_>=_": (np.greater_equal, "greater_equal"),
}

VECTORISED: Mapping[tuple[str, str], Callable[..., tuple[Any, Failed]]] = {
    ("_+_", "int"): _add_int,
    ("_-_", "int"): _subtract_int,
    ("_*_", "int"): _multiply,
    ("_/_", "int"): _divide,
    ("_%_", "int"): _remainder,
    ("-_", "int"): _negate_int,
    ("_+_", "uint"): _add_uint,
    ("_-_", "uint"): _subtract_uint,
    ("_*_", "uint"): _multiply,
    ("_/_", "uint"): _divide,
    ("_%_", "uint"): _remainder,
    ("_+_", "double"): _sure(np.add),
    ("_-_", "double"): _sure(np.subtract),
    ("_*_", "double"): _sure(np.multiply),
    ("_/_", "double"): _sure(np.divide),
    ("-_", "double"): _sure(np.negative),
    ("!_", "bool"): _sure(np.logical_not),
    **{(name, kind): _sure(of_numbers) for name, (of_numbers, _) in _COMPARISONS.items() for kind in _NUMBERS},
    **{(name, kind): _compared(of_bytes) for name, (_, of_bytes) in _COMPARISONS.items() for kind in ARROW_TYPES},
    **{("_+_", kind): _sure(_join) for kind in ARROW_TYPES},
    ("size", "string"): _sure(_characters),
    ("size", "bytes"): _sure(_lengths),
    **{(kind, kind): _sure(_same) for kind in (*_NUMBERS, *ARROW_TYPES)},
    ("int", "uint"): _int_of_uint,
    ("int", "double"): _int_of_double,
    ("uint", "int"): _uint_of_int,
    ("uint", "double"): _uint_of_double,
    ("double", "int"): _sure(np.float64),
    ("double", "uint"): _sure(np.float64),
    ("string", "int"): _sure(_text),
    ("string", "uint"): _sure(_text),
    ("string", "bool"): _sure(_text),
    ("bytes", "string"): _sure(_utf8),
    ("shard_hash", "int"): _hash_integers,
    ("shard_hash", "uint"): _hash_integers,
    ("shard_hash", "string"): _sure(bytes_digests),
    ("shard_hash", "bytes"): _sure(bytes_digests),
}
"""By name and the type of the first argument; arguments are spread over all rows."""

_RESULTS = {"startsWith": "bool", "endsWith": "bool", "contains": "bool", "matches": "bool"}
"""Of what is left to `_one_by_one`; a conversion has the name of its result."""


def _pattern(name: str) -> Callable[[Any, str], tuple[Any, Failed]]:
    return lambda texts, pattern: (_bits(pc.call_function(name, [texts], pc.MatchSubstringOptions(pattern))), None)


def _matches(texts: Any, pattern: str) -> tuple[Any, Failed]:
    try:
        FUNCTIONS["matches", "string"]("", pattern)
    except EvaluationError:
        return np.zeros(len(texts), dtype=bool), _some(np.ones(len(texts), dtype=bool))
    return _pattern("match_substring_regex")(texts, pattern)


_PATTERNS: Mapping[str, Callable[[Any, str], tuple[Any, Failed]]] = {
    "startsWith": _pattern("starts_with"),
    "endsWith": _pattern("ends_with"),
    "contains": _pattern("match_substring"),
    "matches": _matches,
}
"""Arrow compares with one pattern for all rows."""
