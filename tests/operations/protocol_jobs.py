"""Builds and publishes of this library and of another writer, with small shards: the protocol without Dask."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime

from shardyfusion.commits import BuildStart, CommitLog, CommitRecord, Patience, load_manifest
from shardyfusion.errors import ShardyfusionError
from shardyfusion.layout import (
    BINARY_TYPE,
    JSON_TYPE,
    SQLITE_TYPE,
    attempt_directory,
    join_url,
    manifest_name,
    name_under,
    run_directory,
    run_record_name,
    timestamp,
)
from shardyfusion.manifest import Manifest, ManifestRef, ShardingSpec, ShardObject, ShardRecord, encode_manifest
from shardyfusion.run_registry import RunLease
from shardyfusion.serde import KeyEncoding
from shardyfusion.storage import ObjectStore
from shardyfusion.writer.attempt import ShardAttempt
from shardyfusion.writer.outcome import Outcome, find_outcome, freeze_outcome
from shardyfusion.writer.publish import publish_snapshot, sweep_losers

TEMPLATE = "db={db_id:05d}"
NUM_DBS = 2


def build(store: ObjectStore, run_id: str) -> CommitRecord:
    """What the writer does, in its order, with shards of a few bytes."""
    lease = RunLease.start(
        store, run_id=run_id, shard_prefix="shards", db_path_template=TEMPLATE, heartbeat_seconds=3600.0
    )
    try:
        head = CommitLog(store).state().head
        start = BuildStart(base=head.seq if head else 0, started_at=lease.started_at, log=head.log if head else None)
        outcome = earlier = find_outcome(store, run_id, "request")
        if outcome is None:
            winners = tuple(_shard(store, run_id, db_id) for db_id in range(NUM_DBS))
            outcome = freeze_outcome(store, _outcome(run_id, start, winners), Patience())
        run_dir = run_directory("shards", run_id)
        record = publish_snapshot(
            store,
            outcome,
            _manifest(store, outcome),
            run_dir=run_dir,
            patience=Patience(),
            force=False,
            resumed=earlier is not None,
        )
        CommitLog(store).advance_pointer(record)
        sweep_losers(store, outcome, run_dir)
        lease.finish(manifest_ref=record.manifest_ref)
    except BaseException as exc:
        lease.finish(error=exc)
        raise
    return record


def _shard(store: ObjectStore, run_id: str, db_id: int) -> ShardAttempt:
    nonce = uuid.uuid4().hex[:8]
    directory = attempt_directory(run_directory("shards", run_id), TEMPLATE, db_id, 0, nonce)
    body = f"{run_id} {db_id} {nonce}".encode()
    store.put(f"{directory}/shard.db", body, content_type=BINARY_TYPE)
    store.create(f"{directory}/seal.json", b"{}", content_type=JSON_TYPE)
    return ShardAttempt(
        db_id=db_id,
        attempt=0,
        directory=directory,
        backend="sqlite",
        rows=1,
        duplicates_dropped=0,
        db_bytes=len(body),
        objects=(ShardObject(path="shard.db", size=len(body), sha256=hashlib.sha256(body).hexdigest()),),
        row_digest="sfmix64-1:0",
        key_min=b"k",
        key_max=b"k",
        checkpoint_id=uuid.uuid4().hex,
        seconds=0.0,
        waited_seconds=0.0,
    )


def _outcome(run_id: str, start: BuildStart, winners: tuple[ShardAttempt, ...]) -> Outcome:
    return Outcome(
        run_id=run_id,
        request="request",
        stamp=timestamp(datetime.now(UTC)),
        write_id=uuid.uuid4().hex,
        start=start,
        num_dbs=NUM_DBS,
        sharding=ShardingSpec(),
        input_rows=NUM_DBS,
        row_digest="sfmix64-1:0",
        winners=winners,
    )


def _manifest(store: ObjectStore, outcome: Outcome) -> Manifest:
    return Manifest(
        run_id=outcome.run_id,
        created_at=datetime.fromisoformat(outcome.stamp),
        num_dbs=NUM_DBS,
        s3_prefix=store.url,
        key_col="id",
        sharding=ShardingSpec(),
        key_encoding=KeyEncoding.U64BE,
        shards=tuple(winner.to_record(store.url, KeyEncoding.U64BE) for winner in outcome.winners),
    )


def reference_publish(store: ObjectStore, run_id: str) -> str:
    """What the other writer of the format does: run record, shards, manifest, pointer, all unconditional."""
    record = run_record_name(timestamp(datetime.now(UTC)), run_id, uuid.uuid4().hex)
    fields = {"run_id": run_id, "s3_prefix": store.url, "shard_prefix": "shards", "db_path_template": TEMPLATE}
    fields |= dict.fromkeys(("started_at", "updated_at", "lease_expires_at"), timestamp(datetime.now(UTC)))
    store.put(record, json.dumps(fields | {"status": "running"}).encode(), content_type="application/x-yaml")
    shards = []
    for db_id in range(NUM_DBS):
        directory = f"{run_directory('shards', run_id)}{TEMPLATE.format(db_id=db_id)}/attempt=00"
        store.put(f"{directory}/shard.db", f"{run_id} {db_id}".encode(), content_type=BINARY_TYPE)
        shards.append(
            ShardRecord(db_id=db_id, db_url=join_url(store.url, directory), attempt=0, row_count=1, db_bytes=9)
        )
    name = manifest_name(timestamp(datetime.now(UTC)), run_id)
    manifest = Manifest(
        run_id=run_id,
        created_at=datetime.now(UTC),
        num_dbs=NUM_DBS,
        s3_prefix=store.url,
        key_col="_key",
        sharding=ShardingSpec(),
        key_encoding=KeyEncoding.U64BE,
        shards=tuple(shards),
    )
    store.put(name, encode_manifest(manifest), content_type=SQLITE_TYPE)
    point_at(store, name, run_id)
    store.put(record, json.dumps(fields | {"status": "succeeded"}).encode(), content_type="application/x-yaml")
    return name


def point_at(store: ObjectStore, name: str, run_id: str) -> None:
    """The other writer's pointer: no number, no condition."""
    body = {
        "format_version": 1,
        "manifest_content_type": SQLITE_TYPE,
        "manifest_ref": join_url(store.url, name),
        "run_id": run_id,
        "updated_at": timestamp(datetime.now(UTC)),
    }
    store.put("_CURRENT", json.dumps(body, sort_keys=True).encode(), content_type=JSON_TYPE)


def lacking(store: ObjectStore, ref: ManifestRef) -> list[str]:
    """What a snapshot needs and the store does not hold."""
    try:
        manifest = load_manifest(store, ref)
    except ShardyfusionError as exc:
        return [str(exc)]
    lost: list[str] = []
    for shard in manifest.shards:
        directory = name_under(store.url, shard.db_url or "")
        if store.head(f"{directory}/shard.db") is None:
            lost.append(f"{directory}/shard.db")
    return lost
