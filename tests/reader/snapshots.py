"""Publishes small SQLite snapshots without the writer: adapter, manifest, commit, pointer. Nothing is checked here."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from shardyfusion.commits import BuildStart, CommitLog
from shardyfusion.layout import SQLITE_TYPE, attempt_directory, join_url, manifest_name, run_directory, timestamp
from shardyfusion.manifest import Manifest, ManifestRef, ShardingSpec, ShardRecord, encode_manifest
from shardyfusion.routing.resolve import router_for
from shardyfusion.serde.keys import KeyEncoding
from shardyfusion.shard_contract import ShardTarget
from shardyfusion.sqlite_adapter import SqliteFactory
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.type_defs import KeyInput

ROWS = {key: f"value of {key}".encode() for key in range(40)}


def build(
    prefix: str,
    rows: Mapping[KeyInput, bytes],
    *,
    num_dbs: int = 4,
    run_id: str = "run-1",
    encoding: KeyEncoding = KeyEncoding.U64BE,
) -> Manifest:
    """Write the shards of `rows`; nothing is published yet."""
    address = StoreAddress.parse(prefix)
    store = open_store(address)
    router = router_for(ShardingSpec(), num_dbs)
    shards: list[ShardRecord] = []
    for db_id in range(num_dbs):
        pairs = sorted((encoding.encode(key), value) for key, value in rows.items() if router.route(key) == db_id)
        if not pairs:
            continue
        nonce = uuid.uuid4().hex
        directory = attempt_directory(run_directory("shards", run_id), "db={db_id:05d}", db_id, 0, nonce[:8])
        with tempfile.TemporaryDirectory() as scratch:
            target = ShardTarget(db_id=db_id, store=store, address=address, directory=directory, scratch=Path(scratch))
            with SqliteFactory().open(target) as adapter:
                adapter.write_batch(pairs)
                sealed = adapter.seal()
        shards.append(
            ShardRecord(
                db_id=db_id,
                db_url=join_url(address.url, directory),
                attempt=0,
                row_count=sealed.rows,
                db_bytes=sealed.db_bytes,
                checkpoint_id=nonce,
                backend="sqlite",
                objects=sealed.objects,
            )
        )
    return Manifest(
        run_id=run_id,
        created_at=datetime.now(UTC),
        num_dbs=num_dbs,
        s3_prefix=address.url,
        key_col="id",
        sharding=ShardingSpec(),
        key_encoding=encoding,
        shards=tuple(shards),
        custom={"shardyfusion": {"backend": "sqlite"}},
    )


def commit(prefix: str, manifest: Manifest, *, advance: bool = True, body: bytes | None = None) -> ManifestRef:
    """Publish a manifest as the next commit; `body` stands in for its bytes, to be torn or foreign."""
    address = StoreAddress.parse(prefix)
    store, body = open_store(address), encode_manifest(manifest) if body is None else body
    name = manifest_name(timestamp(datetime.now(UTC)), manifest.run_id)
    store.create(name, body, content_type=SQLITE_TYPE)
    log = CommitLog(store)
    head = log.state().head
    record = log.append_build(
        run_id=manifest.run_id,
        manifest_ref=join_url(address.url, name),
        manifest_sha256=hashlib.sha256(body).hexdigest(),
        start=BuildStart(base=head.seq if head else 0, started_at=datetime.now(UTC), log=head.log if head else None),
        check_winners=lambda: None,
    )
    if advance:
        log.advance_pointer(record)
    return record.to_ref()


def publish(prefix: str, rows: Mapping[KeyInput, bytes], *, run_id: str = "run-1", **shape) -> ManifestRef:
    return commit(prefix, build(prefix, rows, run_id=run_id, **shape))


def relocate(manifest: Manifest, db_id: int, db_url: str | None) -> Manifest:
    """The same manifest with another URL for one shard."""
    shards = tuple(replace(s, db_url=db_url) if s.db_id == db_id else s for s in manifest.shards)
    return replace(manifest, shards=shards)


def listing(prefix: str) -> dict[str, str]:
    """Every object below the prefix, with its etag."""
    return {info.name: info.etag for info in open_store(StoreAddress.parse(prefix)).list()}
