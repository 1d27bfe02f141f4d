"""Columns of Python objects as an expression declares them: what each holds does not depend on its neighbours."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from shardyfusion import CelShardedWriteConfig, CelType
from shardyfusion.errors import ConfigValidationError, InputDataError
from shardyfusion.routing.cel import distinct
from shardyfusion.routing.cel.columns import declared_column
from shardyfusion.routing.cel.program import compile_program


def objects(*values: Any) -> pd.Series[Any]:
    return pd.Series(values, dtype=object)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (CelType.UINT, [1, 2**63, 2**64 - 1]),
        (CelType.UINT, [None, 2**63]),
        (CelType.DOUBLE, [1, 2]),
        (CelType.DOUBLE, [1, 2.5, None]),
    ],
)
def test_integers_among_objects_are_of_the_declared_type(kind: CelType, values: list[Any]) -> None:
    assert declared_column(objects(*values), kind, "c").to_pylist() == values


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (CelType.UINT, [2**64]),
        (CelType.UINT, [-1, 2**63]),
        (CelType.UINT, [2**63, "x"]),
        (CelType.INT, [2**63]),
        (CelType.DOUBLE, [2**53 + 1]),
        (CelType.DOUBLE, ["x"]),
    ],
)
def test_objects_that_are_not_of_the_declared_type(kind: CelType, values: list[Any]) -> None:
    with pytest.raises(InputDataError, match=f"column 'c' is declared {kind.value} in cel_columns"):
        declared_column(objects(*values), kind, "c")


def test_a_routing_value_without_an_encoding_is_refused() -> None:
    with pytest.raises(ConfigValidationError, match="which routing value"):
        CelShardedWriteConfig(
            s3_prefix="memory://x/y", cel_expr="r", cel_columns={"r": "string"}, routing_values=["a", "\ud800"]
        )


def test_a_full_memo_answers_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "REMEMBERED_TUPLES", 2)
    program = compile_program("[i][0] + 1", {"i": CelType.INT})
    program.memo.values.update({(i,): i + 1 for i in range(3)})
    values, failed = distinct.evaluate_program(program, {"i": pa.array([2, 0, 1])}, 3)
    assert values.tolist() == [3, 1, 2]
    assert failed is None
