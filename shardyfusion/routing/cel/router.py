"""CEL routing (docs/format.md, section 12): the shard that an expression over the columns of a row names.

Light, for readers: whole columns are in `placement.py`, which is loaded when a writer first routes some.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from shardyfusion.errors import ConfigValidationError, UnknownRoutingTokenError
from shardyfusion.routing.cel.activation import row_of_context, row_of_key
from shardyfusion.routing.cel.columns import declared_keys
from shardyfusion.routing.cel.functions import EvaluationError
from shardyfusion.routing.cel.program import Program
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.serde.keys import shown
from shardyfusion.type_defs import KeyInput, RoutingContext, require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

KEY = "key"
"""What expressions may call the key column, whatever its name is."""


@dataclass(frozen=True)
class CelRouter:
    """Sends a row to the shard that `program` names: directly by its number, or by its place in `routing_values`.

    `key_name` is the column that is the key. Where it is the only one named, the key is enough to route.
    """

    program: Program
    num_dbs: int
    key_name: str = KEY
    routing_values: tuple[int | str, ...] | None = None

    def __post_init__(self) -> None:
        require(self.num_dbs > 0, f"num_dbs must be positive, not {self.num_dbs}")

    @property
    def key_only(self) -> bool:
        return set(self.program.columns) <= {self.key_name}

    @property
    def context_columns(self) -> Mapping[str, CelType]:
        return {} if self.key_only else self.program.columns

    def route(self, key: KeyInput, context: RoutingContext | None = None) -> int:
        """The shard of one key. The context replaces the key, but where the key is enough: there it plays no part.

        Raises:
            ConfigValidationError: the key or the context does not fit the expression's columns, or it has no value.
            UnknownRoutingTokenError: its value names no shard.
        """
        columns = self.program.columns
        row = row_of_key(columns, key) if self.key_only else row_of_context(columns, context)
        try:
            token = self.program.evaluate(row)
        except EvaluationError as exc:
            raise ConfigValidationError(
                f"cel_expr {self.program.expression!r} has no value for {shown(dict(row))}: {exc}; there is no such row"
            ) from exc
        db_id = self._shard_of(token)
        if db_id is None:
            raise UnknownRoutingTokenError(
                f"cel_expr {self.program.expression!r} gives {shown(token)} for {shown(dict(row))}, which names none "
                f"of the {self.num_dbs} shards: there is no such row",
                token=token,
            )
        return db_id

    def route_arrow(self, keys: pa.Array, columns: Mapping[str, pa.Array]) -> npt.NDArray[np.int64]:
        """The shards of a column of keys.

        Raises:
            InputDataError: a row has no value, or one that names no shard; the message has its key.
        """
        if self.key_only:
            columns = {name: declared_keys(keys, kind, name) for name, kind in self.program.columns.items()}
        results = _placement().Results(self.program, columns, keys, len(keys))
        if self.routing_values is None:
            return results.shard_ids(self.num_dbs)
        return results.positions(self.routing_values)

    def _shard_of(self, token: Any) -> int | None:
        if self.routing_values is not None:
            return self._positions.get(token)
        try:
            db_id = int(token)
        except ValueError:
            return None
        return db_id if 0 <= db_id < self.num_dbs else None

    @cached_property
    def _positions(self) -> Mapping[Any, int]:
        """Bytes were stored as text by those who allowed them."""
        values: list[Any] = list(self.routing_values or ())
        if self.program.result == "bytes":
            values = [value.encode() if isinstance(value, str) else value for value in values]
        return {value: db_id for db_id, value in enumerate(values)}


def _placement() -> Any:
    """It needs NumPy, which an installation for readers does not have."""
    return importlib.import_module("shardyfusion.routing.cel.placement")
