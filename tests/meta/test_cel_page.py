"""docs/cel.md says what cel-python makes of an expression and what we make of it: both are tried."""

from __future__ import annotations

import ast
import re
from typing import Any

import celpy
import pytest

from shardyfusion.errors import ConfigValidationError
from shardyfusion.routing.cel.check import compile_expression
from shardyfusion.routing.cel.functions import EvaluationError
from shardyfusion.routing.cel.scalar import scalar_evaluator
from tests.meta.test_docs import DOCS

TABLE = re.compile(r"^<!-- departures -->\n\n((?:\|.*\n)+)", re.MULTILINE)
ROWS = [
    [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for table in TABLE.findall((DOCS / "cel.md").read_text())
    for line in table.splitlines()[2:]
]


def ours(text: str) -> Any:
    try:
        evaluate = scalar_evaluator(compile_expression(text, {}))
    except ConfigValidationError:
        return "refused"
    try:
        return evaluate({})
    except EvaluationError:
        return "an error"


def theirs(text: str) -> Any:
    environment = celpy.Environment()
    try:
        return environment.program(environment.compile(text)).evaluate({})
    except (celpy.CELEvalError, celpy.CELParseError):
        return "an error"


@pytest.mark.parametrize(("expression", "python", "here"), ROWS)
def test_departures_are_as_listed(expression: str, python: str, here: str) -> None:
    text = expression.strip("`")
    for stated, found in ((python, theirs(text)), (here, ours(text))):
        wanted = ast.literal_eval(stated.strip("`")) if stated.startswith("`") else stated
        assert found == wanted


def test_there_is_a_list() -> None:
    assert len(ROWS) > 10
    assert all(python != here for _, python, here in ROWS if python != "an error")
