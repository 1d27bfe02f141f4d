"""A routing expression, compiled: its tree, what it gives, which columns it names, and how it is evaluated."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shardyfusion._optional import needs
from shardyfusion.errors import ConfigValidationError
from shardyfusion.routing.cel.check import compile_expression, type_of
from shardyfusion.routing.cel.scalar import Evaluate, outside, scalar_evaluator
from shardyfusion.routing.cel.tree import CelType, Expr
from shardyfusion.serde.keys import is_text
from shardyfusion.type_defs import require

EvaluationPath = Literal["vectorised", "memoised"]

_ROUTING_TYPES = ("int", "uint", "string", "bytes")


class Memo:
    """What a program gave for the tuples of columns that this process has met: up to a limit, shared by threads."""

    def __init__(self) -> None:
        self.values: dict[tuple[Any, ...], Any] = {}
        self.announced = False


@dataclass(frozen=True, kw_only=True)
class Program:
    """Made by `compile_program`. Pickled as its text and columns, and compiled again where it arrives.

    `columns` are those that the expression names, in the order of its declarations. `path` is `"vectorised"` where
    `arrays.py` evaluates all of it, else `"memoised"`: row by row, once for each distinct tuple of the columns, as far
    as `memo` remembers them.
    """

    expression: str
    columns: Mapping[str, CelType]
    tree: Expr = field(repr=False, compare=False)
    evaluate: Evaluate = field(repr=False, compare=False)
    result: str = field(compare=False)
    path: EvaluationPath = field(compare=False)
    memo: Memo = field(default_factory=Memo, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return compile_program, (self.expression, self.columns)


def compile_program(expression: str, columns: Mapping[str, CelType]) -> Program:
    """The program of an expression over `columns`; the same one for the same arguments within a process.

    Raises:
        ConfigValidationError: it is no expression, does not type-check, or gives what cannot name a shard.
        MissingExtraError: cel-python is not installed, or google-re2, which `matches` takes.
    """
    return _compiled(expression, tuple(columns.items()))


@functools.lru_cache(maxsize=32)  # few, as each may remember many tuples
def _compiled(expression: str, declared: tuple[tuple[str, CelType], ...]) -> Program:
    types = dict(declared)
    require(is_text(expression), f"cel_expr {expression!r} holds a lone surrogate")
    tree = compile_expression(expression, types)
    result = type_of(tree)
    if result.name not in _ROUTING_TYPES:
        raise ConfigValidationError(
            f"cel_expr {expression!r} gives {result}, which cannot name a shard; make it int, uint, string or bytes, "
            "for example with string(…) or … ? 1 : 0"
        )
    if any(node.name == "matches" for node in tree.walk()):
        needs("re2", extra="cel")
    named = {node.name for node in tree.walk() if node.kind == "column"}
    return Program(
        expression=expression,
        columns={name: kind for name, kind in types.items() if name in named},
        tree=tree,
        evaluate=scalar_evaluator(tree),
        result=result.name,
        path="vectorised" if outside(tree) is None else "memoised",
    )
