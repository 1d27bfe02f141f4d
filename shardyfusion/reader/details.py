"""What a reader tells about its snapshot and its shards: frozen values, made from the manifest alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from shardyfusion.layout import timestamp
from shardyfusion.manifest import RESERVED_CUSTOM, Manifest, ManifestRef, ShardRecord
from shardyfusion.serde.keys import KeyEncoding
from shardyfusion.shard_places import ShardPlace
from shardyfusion.type_defs import BackendName


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """The snapshot that a reader serves.

    `prefix` is where it is read, `manifest_ref` the URL that was published; `seq` is its commit's number, None where
    only another writer's pointer names it. `shards` counts the shards with rows, out of `num_dbs`; `backend` is None
    for an empty snapshot that does not record one. `context_columns` are what lookups need in `routing_context`, with
    their types; empty where the key is enough. `custom` is what the writer's config stored there. `fallback_from`
    is set where this is an older snapshot: the URL of the newest manifest, which could not be read.
    """

    prefix: str
    run_id: str
    manifest_ref: str
    seq: int | None
    published_at: datetime
    created_at: datetime
    num_dbs: int
    shards: int
    rows: int
    db_bytes: int
    key_encoding: KeyEncoding
    sharding: Literal["hash", "cel"]
    context_columns: Mapping[str, str]
    backend: BackendName | None
    custom: Mapping[str, Any]
    fallback_from: str | None = None

    def __repr__(self) -> str:
        commit = "no commit" if self.seq is None else f"commit {self.seq}"
        return (
            f"SnapshotInfo({self.prefix}: run {self.run_id!r}, {commit}, published {timestamp(self.published_at)}, "
            f"{self.rows:,} rows in {self.shards} of {self.num_dbs} shards, {self.db_bytes:,} bytes, "
            f"{self.backend or 'no'} backend, {self.sharding} sharding, {self.key_encoding.value} keys"
            f"{f', instead of the unreadable {self.fallback_from}' if self.fallback_from else ''})"
        )


@dataclass(frozen=True, kw_only=True)
class ShardDetails:
    """One shard. An empty one has no rows and no `db_url`.

    `db_url` is where this reader reads it: in a moved snapshot, not what the manifest says.
    """

    db_id: int
    row_count: int = 0
    db_bytes: int = 0
    db_url: str | None = None
    attempt: int | None = None
    min_key: int | str | None = None
    max_key: int | str | None = None
    checkpoint_id: str | None = None


def describe_snapshot(
    ref: ManifestRef,
    manifest: Manifest,
    *,
    prefix: str,
    backend: BackendName | None,
    context_columns: Mapping[str, str],
    fallback_from: str | None,
) -> SnapshotInfo:
    filled = [record for record in manifest.shards if record.db_url is not None]
    return SnapshotInfo(
        prefix=prefix,
        run_id=manifest.run_id,
        manifest_ref=ref.ref,
        seq=ref.seq,
        published_at=ref.published_at,
        created_at=manifest.created_at,
        num_dbs=manifest.num_dbs,
        shards=len(filled),
        rows=sum(record.row_count for record in filled),
        db_bytes=sum(record.db_bytes for record in filled),
        key_encoding=manifest.key_encoding,
        sharding=manifest.sharding.strategy,
        context_columns=context_columns,
        backend=backend,
        custom={name: value for name, value in manifest.custom.items() if name not in RESERVED_CUSTOM},
        fallback_from=fallback_from,
    )


def describe_shard(db_id: int, records: Mapping[int, ShardRecord], places: Mapping[int, ShardPlace]) -> ShardDetails:
    if db_id not in places:
        return ShardDetails(db_id=db_id)
    record = records[db_id]
    return ShardDetails(
        db_id=db_id,
        row_count=record.row_count,
        db_bytes=record.db_bytes,
        db_url=places[db_id].url,
        attempt=record.attempt,
        min_key=record.min_key,
        max_key=record.max_key,
        checkpoint_id=record.checkpoint_id,
    )
