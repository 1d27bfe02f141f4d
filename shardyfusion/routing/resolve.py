"""From the sharding that a manifest names to the router that serves it."""

from __future__ import annotations

from shardyfusion.errors import ConfigValidationError
from shardyfusion.manifest.models import ShardingSpec
from shardyfusion.routing import Router
from shardyfusion.routing.hashing import HASH_ALGORITHM, HashRouter


def router_for(sharding: ShardingSpec, num_dbs: int) -> Router:
    """The router of a snapshot with `num_dbs` shards."""
    if sharding.strategy != "hash":
        raise ConfigValidationError(
            f"this snapshot is sharded by {sharding.strategy.upper()}; CEL snapshots are not supported by this version"
        )
    if sharding.hash_algorithm != HASH_ALGORITHM:
        raise ConfigValidationError(f"unknown hash_algorithm {sharding.hash_algorithm!r}; known is {HASH_ALGORITHM!r}")
    return HashRouter(num_dbs)
