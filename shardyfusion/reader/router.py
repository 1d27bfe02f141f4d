"""The decisions of a lookup: key -> shard and stored bytes, keys -> groups by shard.

Pure: no requests are sent and nothing is opened here. Where a shard is read is in `shard_places.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

from shardyfusion.errors import ConfigValidationError, UnknownRoutingTokenError
from shardyfusion.manifest import Manifest
from shardyfusion.routing import Router
from shardyfusion.routing.resolve import router_for
from shardyfusion.serde.keys import KeyEncoding, shown
from shardyfusion.type_defs import KeyInput, RoutingContext


class PlacedKey(NamedTuple):
    """A lookup key, decided: the shard that would hold it, and its bytes there."""

    db_id: int
    stored: bytes


@dataclass(frozen=True, kw_only=True)
class LookupPlan:
    """Many lookup keys, decided: each in the caller's spelling and order, and one request per shard. None is the place
    of a key that no shard would hold."""

    placed: dict[KeyInput, PlacedKey | None]
    by_shard: dict[int, list[bytes]]


@dataclass(frozen=True, kw_only=True)
class KeyPlacer:
    """Where the keys of one snapshot are. All raise `ConfigValidationError` for what cannot be a key of it."""

    encoding: KeyEncoding
    router: Router

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        return cls(
            encoding=manifest.key_encoding, router=router_for(manifest.sharding, manifest.num_dbs, manifest.key_col)
        )

    def place(self, key: KeyInput, context: RoutingContext | None = None) -> PlacedKey:
        """The shard that would hold a key; `UnknownRoutingTokenError` if there is none."""
        # Encoded first: the encoding knows which types are keys here; the router would take text in any snapshot.
        stored = self.encoding.encode(key)
        return PlacedKey(self.router.route(key, context), stored)

    def find(self, key: KeyInput, context: RoutingContext | None = None) -> PlacedKey | None:
        """The same, or None where no shard would hold the key: it is absent."""
        try:
            return self.place(key, context)
        except UnknownRoutingTokenError:
            return None

    def plan(self, keys: Iterable[KeyInput], context: RoutingContext | None = None) -> LookupPlan:
        if isinstance(keys, str | bytes):
            raise ConfigValidationError(
                f"multi_get takes a collection of keys, not the single key {shown(keys)}; use get"
            )
        if not isinstance(keys, Iterable):
            raise ConfigValidationError(f"multi_get takes a collection of keys, not {type(keys).__name__}")
        placed: dict[KeyInput, PlacedKey | None] = {}
        by_shard: dict[int, dict[bytes, None]] = {}
        for key in keys:
            where = placed[key] = self.find(key, context)
            if where is not None:
                by_shard.setdefault(where.db_id, {})[where.stored] = None
        return LookupPlan(placed=placed, by_shard={db_id: list(stored) for db_id, stored in by_shard.items()})
