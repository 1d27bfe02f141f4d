"""A program gives the same by all of its ways: columns at a time, once for each distinct tuple, and row by row."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardyfusion.errors import ConfigValidationError
from shardyfusion.routing.cel import distinct
from shardyfusion.routing.cel.columns import arrow_type
from shardyfusion.routing.cel.distinct import distinct_tuples, evaluate_program
from shardyfusion.routing.cel.program import Memo, Program, compile_program
from shardyfusion.routing.cel.tree import CelType
from tests.routing.cel_evaluation import FAILED, Rows, same, value_or_failed
from tests.routing.cel_expressions import COLUMNS, ROWS, expressions, with_containers

COLUMN_TYPES = {name: CelType(kind) for name, kind in COLUMNS.items()}


def arrow_columns(columns: Mapping[str, CelType], rows: Rows) -> dict[str, pa.Array]:
    return {name: pa.array([row[name] for row in rows], arrow_type(kind)) for name, kind in columns.items()}


def listed(program: Program, rows: Rows) -> list[Any]:
    values, failed = evaluate_program(program, arrow_columns(program.columns, rows), len(rows))
    found = values.tolist() if isinstance(values, np.ndarray) else values.to_pylist()
    assert len(found) == len(rows)
    return found if failed is None else [FAILED if no else value for value, no in zip(found, failed, strict=True)]


def in_every_way(text: str, columns: Mapping[str, CelType], rows: Rows) -> list[Any]:
    """The value of each row alone, or `FAILED`; every way over columns must give the same."""
    program = compile_program(text, columns)
    alone = [value_or_failed(program.evaluate, row) for row in rows]
    paths = ["memoised"] if program.path == "memoised" else ["vectorised", "memoised"]
    for path in paths:
        for row, value, found in zip(rows, alone, listed(replace(program, path=path), rows), strict=True):
            assert same(value, found), f"{text} over {dict(row)}: {value!r} alone, {found!r} {path}"
    return alone


def test_published_vectors(shared: Path) -> None:
    """Evaluated by Google's C++ engine; every row twice, in another order, so that tuples repeat."""
    published = json.loads((shared / "vectors/cel.json").read_text())
    for each in published["expressions"]:
        columns = {name: CelType(kind) for name, kind in each["columns"].items()}
        rows = [
            {name: int(row[name]) if kind in ("int", "uint") else row[name] for name, kind in columns.items()}
            for row in published["rows"]
        ]
        wanted = [_published(result) for result in each["results"]]
        found = in_every_way(each["expr"], columns, [*rows, *reversed(rows)])
        assert found == [*wanted, *reversed(wanted)], each["expr"]


def _published(result: Any) -> Any:
    if not isinstance(result, dict):
        return result
    return FAILED if "error" in result else int(result["int"])


_quietly = settings(deadline=None, suppress_health_check=list(HealthCheck))
_ROUTING_KINDS = ("int", "uint", "string", "bytes")
_ANY = st.sampled_from(_ROUTING_KINDS).flatmap(expressions) | st.sampled_from(("int", "string")).flatmap(
    with_containers
)
_REPEATED = st.lists(st.integers(0, 50), min_size=1, max_size=30)


@given(_ANY, ROWS, _REPEATED)
@settings(_quietly, max_examples=300)
def test_every_way_agrees(text: str, rows: Rows, order: list[int]) -> None:
    in_every_way(text, COLUMN_TYPES, [rows[at % len(rows)] for at in order] if rows else [])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(_ANY, ROWS, _REPEATED)
@settings(_quietly, max_examples=10_000)
def test_every_way_agrees_ten_thousand_times(text: str, rows: Rows, order: list[int]) -> None:
    in_every_way(text, COLUMN_TYPES, [rows[at % len(rows)] for at in order] if rows else [])


def test_only_what_is_named_is_a_column() -> None:
    program = compile_program("s + string(i)", COLUMN_TYPES)
    assert program.columns == {"i": CelType.INT, "s": CelType.STRING}
    assert compile_program("[7].map(i, i)[0]", COLUMN_TYPES).columns == {}, "a variable of a macro is none"


@pytest.mark.parametrize(("text", "path"), [("i % 8", "vectorised"), ("[i, 8][0]", "memoised")])
def test_a_program_travels_as_its_text(text: str, path: str) -> None:
    program = compile_program(text, COLUMN_TYPES)
    assert program.path == path
    packed = pickle.dumps(program)
    assert len(packed) < 500
    assert pickle.loads(packed) == program
    assert listed(pickle.loads(packed), [{"i": 7}]) == [7]


@pytest.mark.parametrize("text", ["d", "p", "[i]", "{'a': i}", "null"])
def test_what_names_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigValidationError, match="cannot name a shard"):
        compile_program(text, COLUMN_TYPES)


def test_what_lies_outside_is_evaluated_once_for_each_distinct_tuple(monkeypatch: pytest.MonkeyPatch) -> None:
    program = compile_program("[i, 2][0] + size(s)", COLUMN_TYPES)
    seen: list[Any] = []

    def evaluate(row: Mapping[str, Any]) -> Any:
        seen.append((row["i"], row["s"]))
        return program.evaluate(row)

    rows = [{"i": number % 3, "s": "ab"[: number % 2]} for number in range(600)]
    watched = replace(program, evaluate=evaluate, memo=Memo())
    for part in (rows, rows[:100], rows[3:]):
        assert listed(watched, part) == [row["i"] + len(row["s"]) for row in part]
    assert sorted(seen) == sorted({(row["i"], row["s"]) for row in rows})


def test_what_is_remembered_is_told_apart_by_its_bits() -> None:
    program = compile_program("[string(d)][0]", COLUMN_TYPES)
    rows = [{"d": value} for value in (0.0, -0.0, float("nan"), 0.0)]
    for part in (rows[:1], rows[1:2], rows):
        assert listed(program, part) == [{"0.0": "0", "-0.0": "-0", "nan": "nan"}[str(row["d"])] for row in part]


def test_an_error_is_not_remembered_as_a_value() -> None:
    program = compile_program("[i / (i - 1)][0]", COLUMN_TYPES)
    for part in ([{"i": 1}], [{"i": 2}, {"i": 1}], [{"i": 1}]):
        assert listed(program, part) == [FAILED if row["i"] == 1 else 2 for row in part]


def test_tuples_are_told_apart_by_their_bits() -> None:
    doubles = pa.array([0.0, -0.0, float("nan"), 0.0, float("nan"), -0.0])
    codes, firsts = distinct_tuples([doubles, pa.array([True] * 6)], 6)
    assert codes.tolist() == [0, 1, 2, 0, 2, 1]
    assert firsts.tolist() == [0, 1, 2]


def announcements(text: str, rows: Rows, caplog: pytest.LogCaptureFixture, parts: int) -> list[str]:
    program = replace(compile_program(text, COLUMN_TYPES), memo=Memo())
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for part in range(parts):
            share = rows[part::parts]
            assert listed(program, share) == [row["i"] for row in share]
    return caplog.messages


@pytest.mark.parametrize("parts", [1, 4])
def test_many_tuples_are_announced_once(
    parts: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(distinct, "REMEMBERED_TUPLES", 99)
    rows = [{"i": number} for number in range(99)]
    assert announcements("[i][0]", rows * 4, caplog, parts) == []
    (message,) = announcements("[i][0]", [*rows * 4, {"i": 99}, *rows], caplog, parts)
    assert "more than 99 of them" in message
    assert re.search(r"will take about \d+\.\d s, and a million about \d+ s", message)
