"""Making a run visible: manifest, commit record, pointer, and then sweeping what lost.

In what order, and why, is in docs/protocol.md; the log itself is in `commits/`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator
from contextlib import contextmanager

from shardyfusion.commits import CommitLog, CommitRecord, Patience, create_once
from shardyfusion.errors import (
    PublishManifestError,
    RunConflictError,
    ShardCoverageError,
    ShardyfusionError,
    StorageError,
)
from shardyfusion.layout import SQLITE_TYPE, join_url
from shardyfusion.manifest import Manifest, decode_manifest, encode_manifest
from shardyfusion.storage import ObjectStore
from shardyfusion.writer.outcome import Outcome

_log = logging.getLogger(__name__)


@contextmanager
def publish_errors(run_id: str) -> Generator[None]:
    """A store that fails before the commit record becomes `PublishManifestError`, which says how to finish."""
    try:
        yield
    except StorageError as exc:
        raise PublishManifestError(
            f"the snapshot was built but not published: {exc}; rerun with run_id={run_id!r} to finish without "
            "writing a shard again",
            run_id=run_id,
        ) from exc


def publish_snapshot(
    store: ObjectStore,
    outcome: Outcome,
    manifest: Manifest,
    *,
    run_dir: str,
    patience: Patience,
    force: bool,
    resumed: bool,
) -> CommitRecord:
    """Steps 2 and 3: create the manifest, then the commit record. Returns the record, an earlier one of this run id
    included. With `resumed` the outcome is an earlier one's, so that the run may be committed or given up already."""
    log = CommitLog(store, patience=patience)
    with publish_errors(outcome.run_id):
        committed = log.find_build(outcome.run_id, outcome.start) if resumed else None
        if committed is not None:
            return committed
        digest = _create_manifest(store, outcome.manifest_name, manifest, patience)
        return log.append_build(
            run_id=outcome.run_id,
            manifest_ref=join_url(store.url, outcome.manifest_name),
            manifest_sha256=digest,
            start=outcome.start,
            check_winners=lambda: check_winners(store, outcome, run_dir),
            force=force,
        )


def _create_manifest(store: ObjectStore, name: str, manifest: Manifest, patience: Patience) -> str:
    body, ours = create_once(store, name, encode_manifest(manifest), content_type=SQLITE_TYPE, patience=patience)
    # Another execution of this run id may have written it with another SQLite, which changes bytes but not content.
    if not ours and decode_manifest(body) != manifest:
        raise RunConflictError(
            f"{join_url(store.url, name)} exists and is not what this run would publish here; was the prefix copied? "
            "Use a new run_id",
            run_id=manifest.run_id,
        )
    return hashlib.sha256(body).hexdigest()


def check_winners(store: ObjectStore, outcome: Outcome, run_dir: str) -> None:
    """Every object of every winner is there, with its size: nobody deleted a shard while the others were built."""
    present = {info.name: info.size for info in store.list(run_dir)}
    for winner in outcome.winners:
        for item in winner.objects:
            name = f"{winner.directory}/{item.path}"
            if present.get(name) != item.size:
                raise ShardCoverageError(
                    f"shard {winner.db_id}: {join_url(store.url, name)} should have {item.size} bytes and "
                    f"{'is gone' if name not in present else f'has {present[name]}'}; use a new run_id",
                    db_id=winner.db_id,
                    run_id=outcome.run_id,
                )


def sweep_losers(store: ObjectStore, outcome: Outcome, run_dir: str) -> int:
    """Delete what the run's own prefix holds beside its winners; best effort. Returns how many objects went."""
    kept = tuple(f"{winner.directory}/" for winner in outcome.winners)
    try:
        losers = [info.name for info in store.list(run_dir) if not info.name.startswith(kept)]
        store.delete(losers)
    except ShardyfusionError as exc:
        _log.warning("losing attempts below %s were not all removed: %s", join_url(store.url, run_dir), exc)
        return 0
    return len(losers)
