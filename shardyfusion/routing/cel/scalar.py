"""One row at a time: what readers route with, and what the columns of `arrays.py` must agree with."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from shardyfusion.routing.cel.check import type_of
from shardyfusion.routing.cel.functions import FUNCTIONS, EvaluationError
from shardyfusion.routing.cel.tree import Expr

Row = Mapping[str, Any]
Evaluate = Callable[[Row], Any]
Rows = Callable[[Row], list[Row]]
"""A macro's row for each element: the outer one, with its variable."""

LAZY = ("_&&_", "_||_", "_?_:_")
"""What may have a value although an argument has none."""


def outside(expr: Expr) -> Expr | None:
    """The first node that `arrays.py` does not evaluate: lists (but those that `in` looks into), maps and macros."""
    inner = expr.args
    if expr.kind == "call":
        known = expr.name in LAZY or expr.name == "@in" or (expr.name, type_of(expr.args[0]).name) in FUNCTIONS
        if expr.name == "@in" and expr.args[1].kind == "list":
            inner = (expr.args[0], *expr.args[1].args)
        if not known or type_of(expr).of:
            return expr
    elif expr.kind not in ("literal", "column") or (expr.kind == "literal" and expr.value is None):
        return expr
    return next((found for arg in inner if (found := outside(arg)) is not None), None)


def scalar_evaluator(expr: Expr) -> Evaluate:
    """A function from a row's columns to the value of a checked tree.

    It raises `EvaluationError` for a row that has no value. Lists and maps are Python's.
    """
    if expr.kind in ("column", "variable"):
        return itemgetter(expr.name)
    args = [scalar_evaluator(arg) for arg in expr.args]
    if expr.kind == "call":
        return _call(expr, args)
    return _OTHERS[expr.kind](expr, args)


def _call(expr: Expr, args: list[Evaluate]) -> Evaluate:
    if expr.name == "_?_:_":
        condition, chosen, other = args
        return lambda row: chosen(row) if condition(row) else other(row)
    if expr.name in LAZY:
        return _absorbing(*args, decisive=expr.name == "_||_")
    function = FUNCTIONS.get((expr.name, type_of(expr.args[0]).name)) or _OF_CONTAINERS[expr.name]
    if len(args) == 1:
        (argument,) = args
        return lambda row: function(argument(row))
    first, second = args
    return lambda row: function(first(row), second(row))


def _absorbing(first: Evaluate, second: Evaluate, *, decisive: bool) -> Evaluate:
    """`&&` and `||`: an error counts only where the other side does not decide."""

    def evaluate(row: Row) -> bool:
        try:
            value = first(row)
        except EvaluationError:
            if second(row) is decisive:
                return decisive
            raise
        return decisive if value is decisive else second(row)

    return evaluate


def _equal(first: Any, second: Any) -> bool:
    """Of values of one type. Python takes a NaN in a list for equal to itself."""
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(value, second[key]) for key, value in first.items())
    return first == second


def _unequal(first: Any, second: Any) -> bool:
    return not _equal(first, second)


def _is_in(wanted: Any, container: Any) -> bool:
    return wanted in container if isinstance(container, dict) else any(_equal(wanted, each) for each in container)


def _element(container: Any, at: Any) -> Any:
    if isinstance(container, dict):
        return _of_key(container, at)
    if not 0 <= at < len(container):
        raise EvaluationError(f"index {at} of a list of {len(container)}")
    return container[at]


def _of_key(container: dict[Any, Any], key: Any) -> Any:
    if key not in container:
        raise EvaluationError(f"a map has no key {key!r}")
    return container[key]


_OF_CONTAINERS: Mapping[str, Callable[..., Any]] = {
    "_+_": operator.add,
    "_==_": _equal,
    "_!=_": _unequal,
    "@in": _is_in,
    "_[_]": _element,
    "size": len,
}
"""What `FUNCTIONS` does not have: its first argument, or the container that it is looked for in, is a list or a map."""


def _literal(expr: Expr, args: list[Evaluate]) -> Evaluate:
    value = expr.value
    return lambda row: value


def _list(expr: Expr, args: list[Evaluate]) -> Evaluate:
    return lambda row: [element(row) for element in args]


def _map(expr: Expr, args: list[Evaluate]) -> Evaluate:
    pairs = list(zip(args[::2], args[1::2], strict=True))

    def evaluate(row: Row) -> dict[Any, Any]:
        made = {key(row): value(row) for key, value in pairs}
        if len(made) < len(pairs):
            raise EvaluationError("a map has a key twice")
        return made

    return evaluate


def _select(expr: Expr, args: list[Evaluate]) -> Evaluate:
    (container,) = args
    return lambda row: _of_key(container(row), expr.name)


def _has(expr: Expr, args: list[Evaluate]) -> Evaluate:
    (container,) = args
    return lambda row: expr.name in container(row)


def _macro(expr: Expr, args: list[Evaluate]) -> Evaluate:
    container, *said = args
    variable = str(expr.value)

    def rows(row: Row) -> list[Row]:
        return [{**row, variable: each} for each in container(row)]

    if expr.name == "filter":
        return _mapped(rows, [*said, itemgetter(variable)])
    return _MACROS[expr.name](rows, said)


def _quantifier(*, decisive: bool) -> Callable[[Rows, list[Evaluate]], Evaluate]:
    """`all` and `exists`, which are `&&` and `||` over the elements."""

    def macro(rows: Rows, said: list[Evaluate]) -> Evaluate:
        (condition,) = said

        def evaluate(row: Row) -> bool:
            failure: EvaluationError | None = None
            for each in rows(row):
                try:
                    if condition(each) is decisive:
                        return decisive
                except EvaluationError as exc:
                    failure = exc
            if failure is not None:
                raise failure
            return not decisive

        return evaluate

    return macro


def _exists_one(rows: Rows, said: list[Evaluate]) -> Evaluate:
    return lambda row: sum(said[0](each) for each in rows(row)) == 1


def _mapped(rows: Rows, said: list[Evaluate]) -> Evaluate:
    *conditions, value = said
    return lambda row: [value(each) for each in rows(row) if all(condition(each) for condition in conditions)]


_MACROS: Mapping[str, Callable[[Rows, list[Evaluate]], Evaluate]] = {
    "all": _quantifier(decisive=False),
    "exists": _quantifier(decisive=True),
    "exists_one": _exists_one,
    "map": _mapped,
}

_OTHERS: Mapping[str, Callable[[Expr, list[Evaluate]], Evaluate]] = {
    "literal": _literal,
    "list": _list,
    "map": _map,
    "select": _select,
    "has": _has,
    "macro": _macro,
}
