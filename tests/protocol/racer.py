"""One writer or one reader of a race, for a thread or for a process: `python -m tests.protocol.racer <Racer as JSON>`.

A writer publishes run after run until the log has `target` commits, and tells what came of each.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import dask

from shardyfusion import ShardedReader
from shardyfusion.commits import BuildStart, CommitLog, served_manifest
from shardyfusion.errors import ShardCoverageError, StaleBuildError, UnsafeStoreError
from shardyfusion.layout import CURRENT, SQLITE_TYPE, join_url, manifest_name, timestamp
from shardyfusion.manifest import Manifest, encode_manifest
from shardyfusion.storage import ObjectStore, StoreAddress, open_store, wrapping_stores
from shardyfusion.testing import FaultStore, StoreCall
from tests.protocol.tiny_writes import KEYS, write
from tests.reader.snapshots import build


@dataclass(frozen=True, kw_only=True)
class Racer:
    prefix: str
    name: str
    role: Literal["publisher", "writer", "reader"] = "publisher"
    target: int
    """How many commits the log must have before a publisher stops; how many writes a writer makes; how often a reader
    refreshes at least."""
    seed: int = 0
    build_seconds: float = 0.0
    """A publisher takes up to so long between its start and its publish; otherwise an S3 server that does one request
    at a time would be busy with builds that are stale by then."""
    if_match: bool = True
    stop: str = ""
    """A reader goes on until this file exists."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the racer was told about its runs, or what it saw, in order."""

    committed: dict[str, int]
    stale: list[str]
    seen: list[int]
    pointers: list[int]


def run(racer: Racer) -> Told:
    with nullcontext() if racer.if_match else wrapping_stores(lambda store: FaultStore(store, before=no_if_match)):
        return {"publisher": publish_runs, "writer": write_runs, "reader": refresh_often}[racer.role](racer)


def no_if_match(call: StoreCall) -> None:
    if call.verb == "replace":
        raise UnsafeStoreError(f"{call}: HTTP 501 NotImplemented")


# -- writers -------------------------------------------------------------------------------------------------------


def publish_runs(racer: Racer) -> Told:
    """The publish alone: small shards that are built once, and a manifest, a record and the pointer for each run."""
    rng = random.Random(f"{racer.seed} {racer.name}")
    shards = build(racer.prefix, {key: racer.name.encode() for key in KEYS}, num_dbs=2, run_id=racer.name)
    store = open_store(StoreAddress.parse(racer.prefix))
    told = Told(committed={}, stale=[], seen=[], pointers=[])
    for number in range(10_000):
        run_id = f"{racer.name}-{number}"
        log = CommitLog(store)
        started_at, head = store.now(), log.state().head
        if head is not None and head.seq >= racer.target:
            return told
        start = BuildStart(base=head.seq if head else 0, started_at=started_at, log=head.log if head else None)
        time.sleep(rng.uniform(0, racer.build_seconds))
        try:
            # Half of them insist, so that several are always after the same number.
            seq = publish_run(store, log, replace(shards, run_id=run_id), start, force=rng.random() < 0.5)
        except StaleBuildError:
            told.stale.append(run_id)
        else:
            told.committed[run_id] = seq
    raise AssertionError(f"{racer} is starved")


def publish_run(store: ObjectStore, log: CommitLog, manifest: Manifest, start: BuildStart, *, force: bool) -> int:
    body, name = encode_manifest(manifest), manifest_name(timestamp(datetime.now(UTC)), manifest.run_id)
    store.create(name, body, content_type=SQLITE_TYPE)
    record = log.append_build(
        run_id=manifest.run_id,
        manifest_ref=join_url(store.url, name),
        manifest_sha256=hashlib.sha256(body).hexdigest(),
        start=start,
        check_winners=lambda: check_shards(store, manifest),
        force=force,
    )
    log.advance_pointer(record)
    return record.seq


def check_shards(store: ObjectStore, manifest: Manifest) -> None:
    directories = [str(shard.db_url).removeprefix(f"{store.url}/") for shard in manifest.shards]
    present = {info.name for info in store.list(directories[0].rpartition("/db=")[0])}
    if not all(f"{directory}/shard.db" in present for directory in directories):
        raise ShardCoverageError("a shard is gone")


def write_runs(racer: Racer) -> Told:
    """Whole writes, each tried with a new run id until it is committed."""
    told = Told(committed={}, stale=[], seen=[], pointers=[])
    with dask.config.set(scheduler="synchronous"):
        for number in range(10_000):
            if len(told.committed) == racer.target:
                return told
            run_id = f"{racer.name}-{number}"
            try:
                told.committed[run_id] = write(racer.prefix, run_id).manifest_ref.seq or 0
            except StaleBuildError:
                told.stale.append(run_id)
    raise AssertionError(f"{racer} is starved")


# -- readers -------------------------------------------------------------------------------------------------------


def refresh_often(racer: Racer) -> Told:
    """Sequence numbers as a reader meets them, and as `_CURRENT` alone says; values are looked up on the way."""
    store = open_store(StoreAddress.parse(racer.prefix))
    told = Told(committed={}, stale=[], seen=[], pointers=[])
    ref = served_manifest(store)
    with ShardedReader(racer.prefix) as reader:
        while len(told.seen) < racer.target or not Path(racer.stop).exists():
            if len(told.seen) % 20 == 0:
                reader.refresh()
                info = reader.snapshot_info()
                values = {value.decode() for value in reader.multi_get(KEYS).values() if value}
                writer = info.run_id.rpartition("-")[0]
                assert values in ({writer}, {f"{info.run_id}-{key}" for key in KEYS}), f"{info.run_id}: {values}"
                told.seen.append(info.seq or 0)
            else:
                ref = served_manifest(store, after=ref)
                told.seen.append(ref.seq or 0)
            if len(told.seen) % 4 == 0:
                told.pointers.append(json.loads(store.get(CURRENT).body)["seq"])
    return told


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()  # until all are there
    print(json.dumps(asdict(run(Racer(**json.loads(sys.argv[1]))))))
