"""A CEL expression as a tree: what is written, where, and, once checked, of which type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class CelType(StrEnum):
    """The types of columns that an expression may use, under the names of docs/format.md, section 12."""

    INT = "int"
    UINT = "uint"
    DOUBLE = "double"
    BOOL = "bool"
    STRING = "string"
    BYTES = "bytes"


@dataclass(frozen=True)
class Type:
    """A type of the language: `Type("int")`, `Type("list", (INT,))`; a lower-case letter stands for any type."""

    name: str
    of: tuple[Type, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.of))})" if self.of else self.name


INT, UINT, DOUBLE, BOOL, STRING, BYTES = (Type(kind.value) for kind in CelType)
NULL = Type("null")


def list_of(element: Type) -> Type:
    return Type("list", (element,))


def map_of(key: Type, value: Type) -> Type:
    return Type("map", (key, value))


@dataclass(frozen=True)
class Position:
    """Of a node's first character; both count from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


Kind = Literal["literal", "column", "variable", "list", "map", "select", "has", "macro", "call"]


@dataclass(frozen=True)
class Expr:
    """One node.

    `name` is that of the column, the variable of a macro, the field, the macro or the function (operators have the
    names of the language definition, such as `_+_`). `args` are elements, keys and values in turn, or arguments: a
    method's first is what it is called on. `value` is a literal's; a macro's is the name of its variable. `type` is
    None until the tree is checked, but for literals.
    """

    kind: Kind
    at: Position
    name: str = ""
    args: tuple[Expr, ...] = ()
    value: int | float | bool | str | bytes | None = None
    type: Type | None = None
    method: bool = False

    def walk(self) -> Iterator[Expr]:
        """This node and all below it."""
        yield self
        for arg in self.args:
            yield from arg.walk()
