"""Text to tree. The grammar is cel-python's; what it takes beyond the language's own is refused here.

Literals are read by the rules of the language definition, "Lexical analysis" and "Values"
(https://github.com/google/cel-spec/blob/master/doc/langdef.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from shardyfusion._optional import needs
from shardyfusion.errors import ConfigValidationError
from shardyfusion.routing.cel.tree import BOOL, BYTES, DOUBLE, INT, NULL, STRING, UINT, Expr, Position, Type

MACROS = ("all", "exists", "exists_one", "map", "filter")
"""What is called on a list or a map with a variable of its own; `has` is one, too, without a variable."""

_RESERVED = frozenset(
    re.findall(
        r"\w+",
        "as break const continue else false for function if import in let loop namespace null package return true var "
        "void while",
    )
)
_BINARY = {
    "relation_lt": "_<_",
    "relation_le": "_<=_",
    "relation_gt": "_>_",
    "relation_ge": "_>=_",
    "relation_eq": "_==_",
    "relation_ne": "_!=_",
    "relation_in": "@in",
    "addition_add": "_+_",
    "addition_sub": "_-_",
    "multiplication_mul": "_*_",
    "multiplication_div": "_/_",
    "multiplication_mod": "_%_",
}


def refused(text: str, at: Position, problem: str) -> ConfigValidationError:
    """The error for an expression that cannot be used, with the place."""
    return ConfigValidationError(f"cel_expr {text!r}, at {at}: {problem}")


def parse(text: str) -> Expr:
    """The tree of an expression, not yet checked.

    Raises:
        ConfigValidationError: it is no expression of the language; the message has the line and column.
    """
    celpy = needs("celpy", extra="cel")
    from celpy.celparser import CELParseError

    try:
        tree = celpy.CELParser().parse(text)
    except CELParseError as exc:
        at = Position(exc.line or 1, max(exc.column or 1, 1))
        raise refused(text, at, "this is no CEL expression") from exc
    try:
        return _Reader(text).read(tree, Position(1, 1))
    except RecursionError:
        raise refused(text, Position(1, 1), "it is nested too deeply") from None


class _Reader:
    """Turns lark's tree, which has a node for every level of precedence, into ours."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, tree: Any, above: Position) -> Expr:
        while tree.data in _LEVELS and len(tree.children) == 1:
            tree = tree.children[0]
        at = above if tree.meta.empty else Position(tree.meta.line, tree.meta.column)
        method: Callable[[Any, Position], Expr] | None = getattr(self, f"_read_{tree.data}", None)
        if method is None:
            raise refused(self._text, at, f"{str(tree.data).replace('_', ' ')} is not supported")
        return method(tree.children, at)

    def _read_expr(self, children: Any, at: Position) -> Expr:
        return self._call("_?_:_", children, at)

    def _read_conditionalor(self, children: Any, at: Position) -> Expr:
        return self._call("_||_", children, at)

    def _read_conditionaland(self, children: Any, at: Position) -> Expr:
        return self._call("_&&_", children, at)

    def _read_relation(self, children: Any, at: Position) -> Expr:
        operator, right = children
        return self._call(_BINARY[str(operator.data)], [operator.children[0], right], at)

    _read_addition = _read_multiplication = _read_relation

    def _read_unary(self, children: Any, at: Position) -> Expr:
        operator, operand = children
        return self._call("!_" if operator.data == "unary_not" else "-_", [operand], at)

    def _read_paren_expr(self, children: Any, at: Position) -> Expr:
        return self.read(children[0], at)

    def _read_ident(self, children: Any, at: Position) -> Expr:
        name = str(children[0])
        if name in _RESERVED:
            raise refused(self._text, at, f"{name!r} is a reserved word")
        return Expr("column", at, name=name)

    _read_dot_ident = _read_ident

    def _read_ident_arg(self, children: Any, at: Position) -> Expr:
        name, arguments = str(children[0]), _listed(children[1:])
        if name == "has":
            operand = self.read(arguments[0], at) if len(arguments) == 1 else None
            if operand is None or operand.kind != "select":
                raise refused(self._text, at, "has() takes one field, as in has(a.b)")
            return Expr("has", at, name=operand.name, args=operand.args)
        return self._call(name, arguments, at)

    _read_dot_ident_arg = _read_ident_arg

    def _read_member_dot(self, children: Any, at: Position) -> Expr:
        return Expr("select", at, name=str(children[1]), args=(self.read(children[0], at),))

    def _read_member_dot_arg(self, children: Any, at: Position) -> Expr:
        target, name, arguments = children[0], str(children[1]), _listed(children[2:])
        if name in MACROS:
            return self._read_macro(name, target, arguments, at)
        return replace(self._call(name, [target, *arguments], at), method=True)

    def _read_macro(self, name: str, target: Any, arguments: list[Any], at: Position) -> Expr:
        if len(arguments) not in ((2, 3) if name == "map" else (2,)):
            raise refused(self._text, at, f"{name}() takes a variable and what is said of it")
        variable = self.read(arguments[0], at)
        if variable.kind != "column":
            raise refused(self._text, variable.at, f"the first argument of {name}() must be the name of a variable")
        args = self._all([target, *arguments[1:]], at)
        return Expr("macro", at, name=name, args=args, value=variable.name)

    def _read_member_index(self, children: Any, at: Position) -> Expr:
        return self._call("_[_]", children, at)

    def _read_list_lit(self, children: Any, at: Position) -> Expr:
        return Expr("list", at, args=self._all(_listed(children), at))

    def _read_map_lit(self, children: Any, at: Position) -> Expr:
        return Expr("map", at, args=self._all(_listed(children), at))

    def _read_literal(self, children: Any, at: Position) -> Expr:
        (token,) = children
        read, kind = _LITERALS[token.type]
        try:
            return Expr("literal", at, value=read(str(token)), type=kind)
        except ValueError as exc:
            raise refused(self._text, at, f"{token}: {exc}") from exc

    def _call(self, name: str, arguments: list[Any], at: Position) -> Expr:
        return Expr("call", at, name=name, args=self._all(arguments, at))

    def _all(self, trees: list[Any], at: Position) -> tuple[Expr, ...]:
        return tuple(self.read(each, at) for each in trees)


_LEVELS = frozenset(
    re.findall(
        r"\w+", "expr conditionalor conditionaland relation addition multiplication unary member primary exprlist"
    )
)
"""The grammar's levels of precedence; one with a single child adds nothing to it."""


def _listed(children: list[Any]) -> list[Any]:
    """The arguments of a call: none, or those of its one `exprlist`."""
    return list(children[0].children) if children else []


def _integer(text: str) -> int:
    value = _number(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError("an int must lie in [-2^63, 2^63)")
    return value


def _unsigned(text: str) -> int:
    value = _number(text[:-1])
    if text.startswith("-"):
        raise ValueError("a uint has no sign")
    if value >= 2**64:
        raise ValueError("a uint must lie in [0, 2^64)")
    return value


def _number(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    digits = text.removeprefix("-")
    return sign * (int(digits, 16) if digits.startswith("0x") else int(digits))


def _float(text: str) -> float:
    if re.search(r"\.(?![0-9])", text):
        raise ValueError("digits must follow the point of a double")
    return float(text)


def _string(text: str) -> str:
    prefix, body = _unquoted(text)
    if prefix:
        return body
    return "".join(map(chr, _unescaped(body, in_bytes=False)))


def _bytes(text: str) -> bytes:
    prefix, body = _unquoted(text[1:])
    if prefix:
        return body.encode()
    parts = _unescaped(body, in_bytes=True)
    return b"".join(bytes([part]) if part < 256 else chr(part - _ESCAPED).encode() for part in parts)


_ESCAPED = 256
"""In a bytes literal an escape is a byte, and any other character its UTF-8; the latter are told apart by this."""


def _unquoted(text: str) -> tuple[str, str]:
    """Whether it is raw, and what stands between the quotes."""
    prefix = text[:1] if text[:1] in "rR" else ""
    text = text[len(prefix) :]
    width = 3 if text.startswith(('"""', "'''")) and len(text) >= 6 else 1
    return prefix, text[width:-width]


_SIMPLE = {**dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True)), **{c: c for c in "\\?\"'`"}}
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\?\"'`])|[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2}))"
)


def _unescaped(body: str, *, in_bytes: bool) -> list[int]:
    """The code points of a literal; in bytes, those that were no escape are moved up by `_ESCAPED`."""
    found: list[int] = []
    at = 0
    while at < len(body):
        if body[at] != "\\":
            found.append(ord(body[at]) + (_ESCAPED if in_bytes else 0))
            at += 1
            continue
        match = _ESCAPE.match(body, at)
        if match is None:
            raise ValueError(f"{body[at : at + 2]} is no escape sequence")
        simple, byte, short, long, octal = match.groups()
        if in_bytes and (short or long):
            raise ValueError("bytes have no Unicode escapes")
        point = ord(_SIMPLE[simple]) if simple else int(octal, 8) if octal else int(byte or short or long, 16)
        if point > 0x10FFFF or 0xD800 <= point < 0xE000:
            raise ValueError(f"{match[0]} is no Unicode character")
        found.append(point)
        at = match.end()
    return found


_LITERALS: Mapping[str, tuple[Callable[[str], Any], Type]] = {
    "INT_LIT": (_integer, INT),
    "UINT_LIT": (_unsigned, UINT),
    "FLOAT_LIT": (_float, DOUBLE),
    "STRING_LIT": (_string, STRING),
    "MLSTRING_LIT": (_string, STRING),
    "BYTES_LIT": (_bytes, BYTES),
    "BOOL_LIT": ("true".__eq__, BOOL),
    "NULL_LIT": (lambda _: None, NULL),
}
