"""What functions and operators there are, and for which types: the language's standard library, and `shard_hash`.

https://github.com/google/cel-spec/blob/master/doc/langdef.md, "List of Standard Definitions". Numbers of two types do
not mix. Protocol buffers, `dyn`, `type`, timestamps and durations are left out: docs/decisions/0013-cel-evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardyfusion.routing.cel.tree import (
    BOOL,
    BYTES,
    DOUBLE,
    INT,
    STRING,
    UINT,
    Type,
    list_of,
    map_of,
)

_A, _B = Type("a"), Type("b")
UNKNOWN = Type("?")
"""Of the elements of an empty list: any type will do."""


@dataclass(frozen=True)
class Overload:
    """One set of argument types, with the type of the result. `a` and `b` are the same type wherever they stand."""

    params: tuple[Type, ...]
    result: Type
    method: bool = False


def _same(*kinds: Type) -> list[Overload]:
    return [Overload((kind, kind), kind) for kind in kinds]


def _to(result: Type, *kinds: Type) -> list[Overload]:
    return [Overload((kind,), result) for kind in kinds]


def _both(overloads: Sequence[Overload]) -> list[Overload]:
    """As a function and as a method."""
    return [Overload(each.params, each.result, method) for each in overloads for method in (False, True)]


_ORDERED = [Overload((kind, kind), BOOL) for kind in (BOOL, INT, UINT, DOUBLE, STRING, BYTES)]
_TEXT_TEST = [Overload((STRING, STRING), BOOL, method=True)]

SIGNATURES: Mapping[str, Sequence[Overload]] = {
    "_?_:_": [Overload((BOOL, _A, _A), _A)],
    "_&&_": [Overload((BOOL, BOOL), BOOL)],
    "_||_": [Overload((BOOL, BOOL), BOOL)],
    "!_": [Overload((BOOL,), BOOL)],
    "-_": _to(INT, INT) + _to(DOUBLE, DOUBLE),
    "_+_": _same(INT, UINT, DOUBLE, STRING, BYTES, list_of(_A)),
    "_-_": _same(INT, UINT, DOUBLE),
    "_*_": _same(INT, UINT, DOUBLE),
    "_/_": _same(INT, UINT, DOUBLE),
    "_%_": _same(INT, UINT),
    "_==_": [Overload((_A, _A), BOOL)],
    "_!=_": [Overload((_A, _A), BOOL)],
    "_<_": _ORDERED,
    "_<=_": _ORDERED,
    "_>_": _ORDERED,
    "_>=_": _ORDERED,
    "@in": [Overload((_A, list_of(_A)), BOOL), Overload((_A, map_of(_A, _B)), BOOL)],
    "_[_]": [Overload((list_of(_A), INT), _A), Overload((map_of(_A, _B), _A), _B)],
    "size": _both(_to(INT, STRING, BYTES, list_of(_A), map_of(_A, _B))),
    "contains": _TEXT_TEST,
    "startsWith": _TEXT_TEST,
    "endsWith": _TEXT_TEST,
    "matches": _both(_TEXT_TEST[:1]),
    "int": _to(INT, INT, UINT, DOUBLE, STRING),
    "uint": _to(UINT, UINT, INT, DOUBLE, STRING),
    "double": _to(DOUBLE, DOUBLE, INT, UINT, STRING),
    "string": _to(STRING, STRING, INT, UINT, DOUBLE, BOOL, BYTES),
    "bytes": _to(BYTES, BYTES, STRING),
    "bool": _to(BOOL, BOOL, STRING),
    "shard_hash": _to(UINT, INT, UINT, STRING, BYTES),
}


def resolve(overloads: Sequence[Overload], arguments: Sequence[Type]) -> Type | None:
    """The result's type of the overload that takes such arguments; None if there is none."""
    for overload in overloads:
        bound: dict[str, Type] = {}
        if len(overload.params) == len(arguments) and all(
            _fits(param, argument, bound) for param, argument in zip(overload.params, arguments, strict=True)
        ):
            return _substitute(overload.result, bound)
    return None


def common(first: Type, second: Type) -> Type | None:
    """The type of what is either of these: both are the same, but for elements of empty lists."""
    if first in (UNKNOWN, second):
        return second
    if second == UNKNOWN:
        return first
    if first.name != second.name or len(first.of) != len(second.of):
        return None
    parts = [common(*pair) for pair in zip(first.of, second.of, strict=True)]
    known = tuple(part for part in parts if part is not None)
    return Type(first.name, known) if len(known) == len(parts) and parts else None


def _fits(param: Type, argument: Type, bound: dict[str, Type]) -> bool:
    if param in (_A, _B):
        joint = common(bound.get(param.name, UNKNOWN), argument)
        if joint is not None:
            bound[param.name] = joint
        return joint is not None
    if argument == UNKNOWN or param == argument:
        return True
    return (
        param.name == argument.name
        and len(param.of) == len(argument.of)
        and all(_fits(*pair, bound) for pair in zip(param.of, argument.of, strict=True))
    )


def _substitute(result: Type, bound: Mapping[str, Type]) -> Type:
    return bound.get(result.name, Type(result.name, tuple(_substitute(part, bound) for part in result.of)))
