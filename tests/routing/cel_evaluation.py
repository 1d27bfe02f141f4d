"""Evaluating an expression over rows in both of our ways, which must agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shardyfusion.routing.cel.arrays import ARROW_TYPES, DTYPES, evaluate_columns
from shardyfusion.routing.cel.check import compile_expression, type_of
from shardyfusion.routing.cel.functions import EvaluationError
from shardyfusion.routing.cel.scalar import Evaluate, outside, scalar_evaluator
from shardyfusion.routing.cel.tree import CelType

Rows = Sequence[Mapping[str, Any]]

FAILED = "this row has no value"


def as_columns(columns: Mapping[str, str], rows: Rows) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, kind in columns.items():
        values = [row[name] for row in rows]
        made[name] = np.array(values, DTYPES[kind]) if kind in DTYPES else pa.array(values, ARROW_TYPES[kind])
    return made


def evaluated(text: str, columns: Mapping[str, str], rows: Rows) -> list[Any]:
    """The value of each row, or `FAILED`, as the scalar evaluator finds it; the columns must give the same."""
    tree = compile_expression(text, {name: CelType(kind) for name, kind in columns.items()})
    assert outside(tree) is None
    of_row = scalar_evaluator(tree)
    found = [value_or_failed(of_row, row) for row in rows]
    values, failed = evaluate_columns(tree, as_columns(columns, rows), len(rows))
    kind = type_of(tree).name
    assert values.dtype == DTYPES[kind] if kind in DTYPES else values.type == ARROW_TYPES[kind]
    listed = values.tolist() if isinstance(values, np.ndarray) else values.to_pylist()
    assert len(listed) == len(rows)
    if failed is not None:
        assert failed.any()
        listed = [FAILED if wrong else value for value, wrong in zip(listed, failed, strict=True)]
    for row, value, of_columns in zip(rows, found, listed, strict=True):
        assert same(value, of_columns), f"{text} over {dict(row)}: {value!r} alone, {of_columns!r} in columns"
    return found


def value_or_failed(evaluate: Evaluate, row: Mapping[str, Any]) -> Any:
    try:
        return evaluate(row)
    except EvaluationError:
        return FAILED


def google_evaluator(text: str, columns: Mapping[str, str]) -> Evaluate:
    """What Google's C++ engine makes of a row."""
    cel = pytest.importorskip("cel_expr_python.cel", reason="needs Google's engine: pip install cel-expr-python")
    types = {name: getattr(cel.Type, kind.upper()) for name, kind in columns.items()}
    compiled = cel.NewEnv(variables=types).compile(text)

    def evaluate(row: Mapping[str, Any]) -> Any:
        try:
            result = compiled.eval(data=dict(row))
        except RuntimeError:  # a key that a map has twice
            return FAILED
        value = result.value()
        if str(result.type()) == "ERROR":
            return FAILED
        return bytes(value) if isinstance(value, bytearray) else value

    return evaluate


def same(first: Any, second: Any) -> bool:
    """Equal and of one type; NaNs are alike, the zeros are not."""
    if isinstance(first, float) and isinstance(second, float):
        if math.isnan(first) or math.isnan(second):
            return math.isnan(first) and math.isnan(second)
        return first == second and math.copysign(1, first) == math.copysign(1, second)
    return type(first) is type(second) and first == second
