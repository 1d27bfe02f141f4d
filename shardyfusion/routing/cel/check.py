"""The static type check: what it passes cannot fail for its types, whatever the rows hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from shardyfusion.errors import ConfigValidationError
from shardyfusion.routing.cel.parse import parse, refused
from shardyfusion.routing.cel.signatures import SIGNATURES, UNKNOWN, common, resolve
from shardyfusion.routing.cel.tree import BOOL, STRING, CelType, Expr, Type, list_of, map_of


def compile_expression(text: str, columns: Mapping[str, CelType]) -> Expr:
    """The typed tree of an expression over `columns`.

    Raises:
        ConfigValidationError: it is no expression, or Google's checker would refuse it, or it uses what we leave out
            (`signatures.py`); the message has the line and column.
    """
    scope = {name: Type(kind.value) for name, kind in columns.items()}
    try:
        return _Checker(text).typed(parse(text), scope)
    except RecursionError:
        raise refused(text, parse(text).at, "it is nested too deeply") from None


class _Checker:
    def __init__(self, text: str) -> None:
        self._text = text

    def typed(self, expr: Expr, scope: Mapping[str, Type], variables: frozenset[str] = frozenset()) -> Expr:
        """The same node with the types of itself and all below. `variables` are the names that macros have bound."""
        if expr.kind == "literal":
            return expr
        if expr.kind == "column":
            return self._name(expr, scope, variables)
        if expr.kind == "macro":
            return self._macro(expr, scope, variables)
        expr = replace(expr, args=tuple(self.typed(arg, scope, variables) for arg in expr.args))
        rule: Callable[[Expr], Type] = getattr(self, f"_type_of_{expr.kind}")
        return replace(expr, type=rule(expr))

    def _name(self, expr: Expr, scope: Mapping[str, Type], variables: frozenset[str]) -> Expr:
        if expr.name not in scope:
            known = ", ".join(scope) or "none"
            raise self._refused(expr, f"{expr.name!r} is not declared; cel_columns are {known}")
        kind = "variable" if expr.name in variables else "column"
        return replace(expr, kind=kind, type=scope[expr.name])

    def _macro(self, expr: Expr, scope: Mapping[str, Type], variables: frozenset[str]) -> Expr:
        over = self.typed(expr.args[0], scope, variables)
        element = self._element(over, expr)
        inner, bound = {**scope, str(expr.value): element}, variables | {str(expr.value)}
        said = [self.typed(arg, inner, bound) for arg in expr.args[1:]]
        conditions = said[:-1] if expr.name == "map" else said
        for condition in conditions:
            if condition.type != BOOL:
                raise self._refused(condition, f"what {expr.name}() asks must be bool, not {condition.type}")
        result = {"map": list_of(type_of(said[-1])), "filter": list_of(element)}.get(expr.name, BOOL)
        return replace(expr, args=(over, *said), type=result)

    def _element(self, over: Expr, macro: Expr) -> Type:
        kind = type_of(over)
        if kind.name not in ("list", "map"):
            raise self._refused(over, f"{macro.name}() goes over a list or a map, not {kind}")
        return kind.of[0]

    def _type_of_list(self, expr: Expr) -> Type:
        return list_of(self._joint(expr, expr.args, "elements of one list"))

    def _type_of_map(self, expr: Expr) -> Type:
        keys = self._joint(expr, expr.args[::2], "keys of one map")
        if keys.name not in ("int", "uint", "bool", "string", UNKNOWN.name):
            raise self._refused(expr, f"keys of a map are int, uint, bool or string, not {keys}")
        return map_of(keys, self._joint(expr, expr.args[1::2], "values of one map"))

    def _joint(self, expr: Expr, args: tuple[Expr, ...], what: str) -> Type:
        joint = UNKNOWN
        for arg in args:
            wider = common(joint, type_of(arg))
            if wider is None:
                raise self._refused(arg, f"{what} must be of one type here, and this is {arg.type} after {joint}")
            joint = wider
        return joint

    def _type_of_select(self, expr: Expr) -> Type:
        kind = type_of(expr.args[0])
        if kind.name != "map" or kind.of[0] not in (STRING, UNKNOWN):
            raise self._refused(expr, f"only a map of strings has a field {expr.name!r}, and this is {kind}")
        return kind.of[1]

    def _type_of_has(self, expr: Expr) -> Type:
        self._type_of_select(expr)
        return BOOL

    def _type_of_call(self, expr: Expr) -> Type:
        overloads = [each for each in SIGNATURES.get(expr.name, ()) if each.method == expr.method]
        if not overloads:
            kind = "method" if expr.method else "function"
            raise self._refused(expr, f"there is no {kind} {expr.name}() here")
        kinds = [type_of(arg) for arg in expr.args]
        result = resolve(overloads, kinds)
        if result is None:
            given = ", ".join(map(str, kinds))
            raise self._refused(expr, f"found no matching overload for {expr.name!r} applied to ({given})")
        return result

    def _refused(self, expr: Expr, problem: str) -> ConfigValidationError:
        return refused(self._text, expr.at, problem)


def type_of(expr: Expr) -> Type:
    """The type of a checked node."""
    assert expr.type is not None  # noqa: S101 (only of a tree that was checked)
    return expr.type
