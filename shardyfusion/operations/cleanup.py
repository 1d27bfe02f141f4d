"""Deleting what nothing needs any more: old versions, losing attempts, what dead runs left.

What goes is decided in `cleanup_plan.py`; here it is read, announced in the commit log, and then deleted.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta

from shardyfusion.commits import (
    CommitLog,
    CommitRecord,
    LogState,
    Patience,
    append_cleanup,
    create_once,
    expiry_mark,
    load_manifest,
    read_versions,
)
from shardyfusion.credentials import CredentialProvider
from shardyfusion.errors import (
    CommitLogError,
    HeadMovedError,
    ManifestParseError,
    PublishCurrentError,
    SnapshotNotFoundError,
)
from shardyfusion.layout import CURRENT, JSON_TYPE, outcome_name
from shardyfusion.operations.cleanup_plan import CleanupPlan, Found, Kept, Retention, kept_versions, plan_cleanup
from shardyfusion.run_registry import recorded_runs
from shardyfusion.shard_places import locate_shards
from shardyfusion.storage import ObjectStore, StoreAddress, open_store
from shardyfusion.type_defs import S3ConnectionOptions

_log = logging.getLogger(__name__)

DAY = timedelta(days=1)
_TRIES = 20
"""Plans that another commit may overtake."""


@dataclass(frozen=True, kw_only=True)
class CleanupResult:
    """What a cleanup deleted, or with `dry_run` would delete. `seq` is its commit, None if it made none."""

    plan: CleanupPlan
    seq: int | None
    dry_run: bool

    def __repr__(self) -> str:
        verb = "would delete" if self.dry_run else "deleted"
        return (
            f"CleanupResult({verb} {len(self.plan.keys)} objects ({self.plan.key_bytes:,} bytes) and "
            f"{len(self.plan.uploads)} unfinished uploads; {len(self.plan.kept)} versions kept)"
        )


def cleanup(
    s3_prefix: str | os.PathLike[str],
    *,
    keep_last: int = 3,
    older_than: timedelta | None = None,
    grace: timedelta = DAY,
    dry_run: bool = False,
    credential_provider: CredentialProvider | None = None,
    s3_connection_options: S3ConnectionOptions | None = None,
) -> CleanupResult:
    """Delete old versions of the snapshot, losing attempts, and what dead runs and uploads left.

    What is served and what was served before it always stay; so does everything of a run whose lease is alive. Nothing
    is deleted unless a commit record that names it as given up is durable; a run or version that is given up is never
    published or served again. May run at any time, beside writers and beside itself, and may be killed at any time: the
    next cleanup finishes. Ages are by the store's clock.

    Args:
        keep_last: How many versions stay, by when they were last served; never fewer than two.
        older_than: Versions beyond `keep_last` stay until they have not been served for this long.
        grace: Nothing goes that was served or written less than this ago. Readers that do not refresh within it lose
            their snapshot.
        dry_run: Change nothing and return the plan.

    Raises:
        SnapshotNotFoundError, ManifestParseError, ReaderStateError: The manifest of a version that stays is gone,
            cannot be read or names a shard by what is no URL, so what it needs is not known. Nothing was deleted.
        HeadMovedError: Other commits kept coming first. Nothing was deleted.
        CommitLogError: A commit is missing from the log, or does not follow the one before it. Nothing was deleted.
        PublishUnknownError: The commit may or may not have landed. Nothing was deleted; run the same again.
        StorageError: The store failed; what is left of the plan goes with the next cleanup.
    """
    retention = Retention(keep_last=keep_last, older_than=older_than, grace=grace)
    address = StoreAddress.parse(s3_prefix, credential_provider=credential_provider, options=s3_connection_options)
    store, patience = open_store(address), Patience()
    log = CommitLog(store, patience=patience)
    for _ in range(_TRIES):
        found = _find(store)
        try:
            kept = _kept(store, found, retention)
        except ManifestParseError:
            if log.state().head == found.versions.state.head:
                raise
            continue  # another cleanup has given that version up meanwhile
        plan = plan_cleanup(found, kept, retention)
        if dry_run or plan.empty:
            return CleanupResult(plan=plan, seq=None, dry_run=dry_run)
        record = append_cleanup(log, found.versions.state, plan.expired)
        if record is not None:
            _move_pointer(log, record)
            _refuse_reruns(store, plan, found, record, patience)
            if not _pointed_elsewhere(log, record, found.versions.state):
                break
        # A writer came first, ours or another one, and may need what was to go: look again.
    else:
        raise HeadMovedError(f"{store.url}: others publish faster than a cleanup can be planned; nothing was deleted")
    store.delete(key.name for key in plan.keys)
    store.abort_uploads(plan.uploads)
    return CleanupResult(plan=plan, seq=record.seq, dry_run=False)


def _find(store: ObjectStore) -> Found:
    # The order is part of the protocol: see `Found`.
    return Found(
        now=store.now(),
        objects=tuple(store.list()),
        uploads=tuple(store.pending_uploads()),
        runs=tuple(recorded_runs(store)),
        versions=read_versions(store),
    )


def _kept(store: ObjectStore, found: Found, retention: Retention) -> Kept:
    _check_served(store, found)
    versions = kept_versions(found.versions, retention, found.now)
    directories: set[str] = set()
    prefixes: set[str] = set()
    for version in versions:
        manifest = load_manifest(store, version.ref)
        prefixes.add(manifest.shard_prefix)
        places = locate_shards(manifest, store.url, allow_external=True).values()
        directories |= {f"{place.directory}/" for place in places if place.root_url == store.url}
    return Kept(versions=versions, directories=frozenset(directories), shard_prefixes=frozenset(prefixes))


def _check_served(store: ObjectStore, found: Found) -> None:
    state, served = found.versions.state, found.versions.served
    published = [run.run_id for run in found.runs if run.record and run.record.status == "succeeded"]
    if state.head is None and state.pointer is None and published:
        raise CommitLogError(
            f"run {published[-1]!r} says that it has published, but there is neither {CURRENT} nor a commit; restore "
            "them before cleaning up",
            prefix=store.url,
        )
    if served is not None and not served.present:
        raise SnapshotNotFoundError(
            f"{served.ref.ref} is what {store.url} serves, but it is gone; roll back or publish before cleaning up"
        )


def _pointed_elsewhere(log: CommitLog, record: CommitRecord, before: LogState) -> bool:
    """Whether another writer of the format has moved the pointer since the plan: its writes know no commit record."""
    now = log.state(known_seq=record.seq)
    return now.foreign is not None and now.foreign != before.foreign


def _move_pointer(log: CommitLog, record: CommitRecord) -> None:
    try:
        log.advance_pointer(record)
    except PublishCurrentError as exc:
        _log.warning("%s", exc)  # the next commit brings it along, and readers do not need it


def _refuse_reruns(
    store: ObjectStore, plan: CleanupPlan, found: Found, record: CommitRecord, patience: Patience
) -> None:
    """Give every run id that has come to no outcome one that says so: a rerun that starts later finds it at once."""
    present = {info.name for info in found.objects}
    for run_id in plan.expired:
        if "/" not in run_id and (name := outcome_name(run_id)) not in present:
            create_once(store, name, expiry_mark(run_id, record.seq), content_type=JSON_TYPE, patience=patience)
