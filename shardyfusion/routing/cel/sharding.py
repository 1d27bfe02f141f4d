"""Ways to say a CEL sharding: what they return is passed on to `CelShardedWriteConfig` with `**`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from shardyfusion.errors import ConfigValidationError
from shardyfusion.routing.cel.program import compile_program
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.type_defs import require, require_type


@dataclass(frozen=True)
class CelColumn:
    """A column of the frame, with its type in expressions."""

    name: str
    type: CelType = CelType.STRING

    def __post_init__(self) -> None:
        require_type(self.name, str, "name")
        try:
            object.__setattr__(self, "type", CelType(self.type))
        except ValueError:
            names = ", ".join(kind.value for kind in CelType)
            raise ConfigValidationError(f"type of column {self.name!r} is {self.type!r}; use one of {names}") from None


class CelSharding(TypedDict):
    """The part of a `CelShardedWriteConfig` that says how rows find their shard."""

    cel_expr: str
    cel_columns: Mapping[str, CelType | str]
    routing_values: NotRequired[Sequence[int | str]]
    infer_routing_values_from_data: NotRequired[bool]
    num_dbs: NotRequired[int]


def cel_sharding(
    expression: str,
    *columns: CelColumn | str,
    routing_values: Sequence[int | str] | None = None,
    infer_routing_values_from_data: bool = False,
    num_dbs: int | None = None,
) -> CelSharding:
    """A sharding by an expression over columns; a bare name is a column of strings.

    Raises:
        ConfigValidationError: the expression cannot be used; the message has the line and column.
        MissingExtraError: cel-python is not installed.
    """
    types: dict[str, CelType | str] = {}
    for column in map(_column, columns):
        require(column.name not in types, f"column {column.name!r} is given more than once")
        types[column.name] = column.type
    compile_program(expression, {name: CelType(kind) for name, kind in types.items()})
    sharding = CelSharding(cel_expr=expression, cel_columns=types)
    if routing_values is not None:
        sharding["routing_values"] = routing_values
    if infer_routing_values_from_data:
        sharding["infer_routing_values_from_data"] = True
    if num_dbs is not None:
        sharding["num_dbs"] = num_dbs
    return sharding


def cel_sharding_by_columns(
    *columns: CelColumn | str, num_shards: int | None = None, separator: str = ":"
) -> CelSharding:
    """Rows with the same values of these columns go to the same shard; a bare name is a column of strings.

    With `num_shards` the values are hashed, so that a shard holds many of them; else each combination that occurs is a
    shard of its own.

    Raises:
        ConfigValidationError: no column, one twice, a name that is no CEL identifier, or `num_shards` below 1.
        MissingExtraError: cel-python is not installed.
    """
    require(bool(columns), "give at least one column")
    require_type(separator, str, "separator")
    given = [_column(column) for column in columns]
    inner = (
        _text(given[0])
        if len(given) == 1
        else f" + {json.dumps(separator, ensure_ascii=False)} + ".join(map(_part, given))
    )
    if num_shards is None:
        return cel_sharding(inner, *given, infer_routing_values_from_data=True)
    require_type(num_shards, int, "num_shards")
    require(num_shards > 0, f"num_shards must be positive, not {num_shards}")
    return cel_sharding(f"shard_hash({inner}) % {num_shards}u", *given, num_dbs=num_shards)


def _column(column: CelColumn | str) -> CelColumn:
    require_type(column, (CelColumn, str), "a column")
    return CelColumn(column) if isinstance(column, str) else column


def _text(column: CelColumn) -> str:
    """As a value of its own: what has no hash, and cannot be a routing value, becomes a string."""
    return f"string({column.name})" if column.type in (CelType.DOUBLE, CelType.BOOL) else column.name


def _part(column: CelColumn) -> str:
    return column.name if column.type is CelType.STRING else f"string({column.name})"
