"""From the sharding that a manifest names to the router that serves it."""

from __future__ import annotations

from shardyfusion.errors import ConfigValidationError
from shardyfusion.manifest.models import ShardingSpec
from shardyfusion.routing import Router
from shardyfusion.routing.cel.program import compile_program
from shardyfusion.routing.cel.router import KEY, CelRouter
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.routing.hashing import HASH_ALGORITHM, HashRouter


def router_for(sharding: ShardingSpec, num_dbs: int, key_col: str = KEY) -> Router:
    """The router of a snapshot with `num_dbs` shards, whose key column was called `key_col`.

    Raises:
        ConfigValidationError: it is sharded in a way that this version does not know.
        MissingExtraError: it is sharded by a CEL expression, and cel-python is not installed.
    """
    if sharding.hash_algorithm != HASH_ALGORITHM:
        raise ConfigValidationError(f"unknown hash_algorithm {sharding.hash_algorithm!r}; known is {HASH_ALGORITHM!r}")
    if sharding.strategy == "hash":
        return HashRouter(num_dbs)
    columns = {name: CelType(kind) for name, kind in (sharding.cel_columns or {}).items()}
    return CelRouter(
        program=compile_program(sharding.cel_expr or "", columns),
        num_dbs=num_dbs,
        # `key` is the key where it is the only column (docs/format.md, section 12); else it is a column like others.
        key_name=KEY if set(columns) == {KEY} else key_col,
        routing_values=sharding.routing_values,
    )
