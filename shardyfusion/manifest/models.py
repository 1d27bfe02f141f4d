"""A manifest as frozen values. How they are stored is in `codec.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from shardyfusion.serde.keys import KeyEncoding
from shardyfusion.type_defs import BackendName

RoutingValue = int | str

RESERVED_CUSTOM = ("shardyfusion", "vector", "sqlite_sidecar")
"""Names in a manifest's `custom` object that are the format's own."""


@dataclass(frozen=True, kw_only=True)
class ShardingSpec:
    """How a key finds its shard. The five fields are exactly those of docs/format.md, section 3.3."""

    strategy: Literal["hash", "cel"] = "hash"
    hash_algorithm: str = "xxh3_64"
    cel_expr: str | None = None
    cel_columns: Mapping[str, str] | None = None
    routing_values: tuple[RoutingValue, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ShardObject:
    """One stored object of a shard; `path` is relative to the shard's directory."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One non-empty shard of a snapshot. The fields after `writer_info` are our extra columns."""

    db_id: int
    db_url: str | None
    attempt: int
    row_count: int
    db_bytes: int
    min_key: int | str | None = None
    max_key: int | str | None = None
    checkpoint_id: str | None = None
    writer_info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    backend: BackendName | None = None
    objects: tuple[ShardObject, ...] = ()
    row_digest: str | None = None
    key_bytes_min: bytes | None = None
    key_bytes_max: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An immutable snapshot: which shards there are, where, and how keys are routed and stored.

    Invariants (checked when parsed): ids of `shards` are ascending, unique and in `range(num_dbs)`.
    """

    run_id: str
    created_at: datetime
    num_dbs: int
    s3_prefix: str
    key_col: str
    sharding: ShardingSpec
    key_encoding: KeyEncoding
    shards: tuple[ShardRecord, ...]
    db_path_template: str = "db={db_id:05d}"
    shard_prefix: str = "shards"
    custom: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def backend(self) -> BackendName | None:
        """What wrote the shards, if the manifest says so (the reference's do not)."""
        ours = self.custom.get("shardyfusion")
        name = ours.get("backend") if isinstance(ours, dict) else None  # pyright: ignore[reportUnknownMemberType]
        if name in ("sqlite", "slatedb"):
            return name
        return next((record.backend for record in self.shards if record.backend), None)


@dataclass(frozen=True, kw_only=True)
class ManifestRef:
    """Which manifest is meant: its full URL, its run, and when it was published (UTC).

    `seq` and `log` are its commit's number and log, `sha256` that of the manifest's bytes; None where only another
    writer's pointer names the manifest.
    """

    ref: str
    run_id: str
    published_at: datetime
    seq: int | None = None
    log: str | None = None
    sha256: str | None = None
