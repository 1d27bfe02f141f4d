"""Typed CEL expressions and rows for them, drawn at random: what the language has, with values at its edges."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

COLUMNS = {
    "i": "int",
    "j": "int",
    "u": "uint",
    "v": "uint",
    "d": "double",
    "e": "double",
    "p": "bool",
    "q": "bool",
    "s": "string",
    "t": "string",
    "b": "bytes",
    "c": "bytes",
}
KINDS = ("int", "uint", "double", "bool", "string", "bytes")

_TEXTS = ["", "a", "eu", "us-east", "日本", "e\u0301", "\U0001f600", "12", " -7 ", "+3", "0x10", "1e3", "true", "F", "nan", "a.b", "a\nb", "9223372036854775808"]  # fmt: skip
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.sampled_from([0, 1, -1, 2, 7, -7, 10, 2**31, 3037000500, 2**62, 2**63 - 1, -(2**63), -(2**63) + 1])
    | st.integers(-100, 100)
    | st.integers(-(2**63), 2**63 - 1),
    "uint": st.sampled_from([0, 1, 2, 7, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
    | st.integers(0, 100)
    | st.integers(0, 2**64 - 1),
    "double": st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.25, 1e5, 1e6, 1e21, 1e-5, 2.0**63, -(2.0**63), 2.0**64, 1 / 3])
    | st.floats(),
    "bool": st.booleans(),
    "string": st.sampled_from(_TEXTS) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
    "bytes": st.sampled_from([b"", b"a", b"eu", b"\xff", b"\xed\xa0\x80", "é".encode()]) | st.binary(max_size=5),
}


def literal(kind: str, value: Any) -> str:
    if kind == "double":
        if value != value:
            return "double('nan')"
        if value in (float("inf"), float("-inf")):
            return f"double('{value}')"
        return repr(value) if "." in repr(value) or "e" in repr(value) else f"{value!r}.0"
    if kind == "bytes":
        return "b'" + "".join(f"\\x{byte:02x}" for byte in value) + "'"
    if kind == "bool":
        return "true" if value else "false"
    if kind == "string":
        quoted = json.dumps(value)
        return quoted if quoted.isascii() and "\\ud" not in quoted.lower() else "'" + _escaped(value) + "'"
    return f"{value}u" if kind == "uint" else str(value)


def _escaped(text: str) -> str:
    return "".join(f"\\U{ord(character):08x}" for character in text)


_LEAVES = {
    kind: st.one_of(
        st.sampled_from([name for name, its in COLUMNS.items() if its == kind]),
        VALUES[kind].map(lambda value, kind=kind: literal(kind, value)),
    )
    for kind in KINDS
}
_PATTERNS = st.sampled_from(["'a'", "'^[a-z]+$'", "'(?i)EU'", "'.'", "'\\\\d+'", "'('", "''", "'日'"])


def expressions(kind: str, depth: int = 3) -> st.SearchStrategy[str]:
    """Expressions over `COLUMNS` of a type."""
    return st.deferred(lambda: _expressions(kind, depth))


def _expressions(kind: str, depth: int) -> st.SearchStrategy[str]:
    if depth == 0:
        return _LEAVES[kind]

    def of(other: str) -> st.SearchStrategy[str]:
        return expressions(other, depth - 1)

    def combined(template: str, *kinds: str) -> st.SearchStrategy[str]:
        return st.tuples(*map(of, kinds)).map(lambda args: template.format(*args))

    def any_of(*templates: str, kinds: tuple[str, ...]) -> st.SearchStrategy[str]:
        return st.sampled_from(templates).flatmap(lambda template: combined(template, *kinds))

    choices = [_LEAVES[kind], combined("({} ? {} : {})", "bool", kind, kind), combined(f"{kind}({{}})", kind)]
    if kind in ("int", "uint", "double"):
        operators = "+-*/%" if kind != "double" else "+-*/"
        choices.append(any_of(*(f"({{}} {operator} {{}})" for operator in operators), kinds=(kind, kind)))
        others = [other for other in ("int", "uint", "double", "string") if other != kind]
        choices += [combined(f"{kind}({{}})", other) for other in others]
    if kind in ("int", "double"):
        choices.append(combined("-({})", kind))
    if kind == "int":
        choices += [combined("size({})", "string"), combined("{}.size()", "bytes")]
    if kind == "uint":
        choices += [combined("shard_hash({})", other) for other in ("int", "uint", "string", "bytes")]
    if kind == "string":
        choices += [combined("({} + {})", "string", "string")]
        choices += [combined("string({})", other) for other in KINDS]
    if kind == "bytes":
        choices += [combined("({} + {})", "bytes", "bytes"), combined("bytes({})", "string")]
    if kind == "bool":
        choices += [_comparison(of), _membership(of), combined("bool({})", "string"), combined("!({})", "bool")]
        choices.append(any_of("({} && {})", "({} || {})", kinds=("bool", "bool")))
        choices.append(any_of("{}.startsWith({})", "{}.endsWith({})", "{}.contains({})", kinds=("string", "string")))
        choices.append(st.tuples(of("string"), _PATTERNS).map("{0[0]}.matches({0[1]})".format))
    return st.one_of(choices)


def _comparison(of: Any) -> st.SearchStrategy[str]:
    return st.sampled_from(KINDS).flatmap(
        lambda kind: st.tuples(of(kind), st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), of(kind)).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        )
    )


def _membership(of: Any) -> st.SearchStrategy[str]:
    return st.sampled_from(KINDS).flatmap(
        lambda kind: st.tuples(of(kind), st.lists(of(kind), min_size=1, max_size=4)).map(
            lambda parts: f"({parts[0]} in [{', '.join(parts[1])}])"
        )
    )


ROWS = st.lists(st.fixed_dictionaries({name: VALUES[kind] for name, kind in COLUMNS.items()}), min_size=1, max_size=8)


def with_containers(kind: str) -> st.SearchStrategy[str]:
    """Expressions of a type with lists, maps and macros somewhere in them."""
    return st.sampled_from(_TEMPLATES[kind]).flatmap(
        lambda template: st.tuples(*(expressions(wanted, 1) for wanted in template[1:])).map(
            lambda args: template[0].format(*args)
        )
    )


_TEMPLATES: dict[str, list[tuple[str, ...]]] = {
    "int": [
        ("[{}, {}][{}]", "int", "int", "int"),
        ("[{}, {}, {}][size({}) % 3]", "int", "int", "int", "string"),
        ("{{{}: {}, {}: {}}}[{}]", "string", "int", "string", "int", "string"),
        ("{{{}: {}}}[{}]", "int", "int", "int"),
        ("{{'a': {}, 'b': {}}}.a", "int", "int"),
        ("size([{}, {}] + [{}])", "int", "int", "int"),
        ("size([{}, {}].filter(x, x > {}))", "int", "int", "int"),
        ("[{}, {}].map(x, x / {})[0]", "int", "int", "int"),
        ("[{}, {}].map(x, x != 0, {} % x)[0]", "int", "int", "int"),
        ("size({{{}: {}, {}: {}}})", "bool", "int", "bool", "int"),
        ("size({{'a': 1}}.map(k, k + {}))", "string"),
    ],
    "bool": [
        ("[{}, {}].exists(x, {} / x == 1)", "int", "int", "int"),
        ("[{}, {}].all(x, x == {})", "double", "double", "double"),
        ("[{}, {}].exists_one(x, 10 / x > {})", "int", "int", "int"),
        ("[[{}], [{}]] == [[{}], []]", "double", "double", "double"),
        ("[{}] != [{}]", "string", "string"),
        ("{{'a': {}}} == {{'a': {}}}", "double", "double"),
        ("{} in {{{}: {}}}", "string", "string", "int"),
        ("{} in [{}, {}].map(x, x + {})", "int", "int", "int", "int"),
        ("has({{'a': {}}}.a) || has({{'a': {}}}.b)", "int", "int"),
        ("{} || [{}].map(x, 1 / x) == [1]", "bool", "int"),
        ("[{}].exists(i, i > {}) && i > {}", "int", "int", "int"),
        ("[{}, {}].all(x, [{}].exists(y, x == y))", "int", "int", "int"),
        ("{{{}: 1}}.all(k, k != {})", "string", "string"),
    ],
    "string": [
        ("[{}, {}][int({})]", "string", "string", "uint"),
        ("{{{}: {}}}[{}]", "uint", "string", "uint"),
        ("[{}].map(x, x + {})[0]", "string", "string"),
    ],
}
"""A template and what belongs into its places."""
CONTAINER_KINDS = tuple(_TEMPLATES)
