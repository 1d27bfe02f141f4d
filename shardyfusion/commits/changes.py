"""Appending the changes that are no builds: a rollback, a cleanup. Neither retries on another number."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

from shardyfusion.commits.log import CommitLog, next_record
from shardyfusion.commits.records import CommitRecord, LogState
from shardyfusion.errors import HeadMovedError
from shardyfusion.manifest import ManifestRef

_NEVER = datetime.fromtimestamp(0, UTC)


def append_rollback(
    log: CommitLog, seen: LogState, target: ManifestRef, sha256: str, asked_at: datetime
) -> CommitRecord:
    """Serve `target` again, provided that `seen` is still how things stand.

    For the order among builds a rollback is a build that started when it was asked for (`asked_at`, the store's clock):
    those that had started earlier are stale. Raises `HeadMovedError`, `PublishUnknownError`.
    """
    record = next_record(
        seen,
        kind="rollback",
        run_id=target.run_id,
        manifest_ref=target.ref,
        manifest_sha256=sha256,
        base=seen.head.seq if seen.head else 0,
        started_at=asked_at,
    )
    if log.create(record):
        return record
    now = log.state(known_seq=record.seq).head
    raise HeadMovedError(
        f"commit {record.seq} was made by another writer meanwhile: {now.kind if now else 'it'} of run "
        f"{now.run_id if now else '?'!r} is served now; look at it, and roll back again if that is still wanted",
        seq=now.seq if now else record.seq,
    )


def append_cleanup(log: CommitLog, seen: LogState, expired: Iterable[str]) -> CommitRecord | None:
    """Announce what is given up from here on; None if another writer took the number, so that the plan is out of date.

    What is served and the order among builds stay as they are, so the record repeats its parent's values.
    """
    head = seen.head
    record = next_record(
        seen,
        takes_over=False,
        kind="cleanup",
        run_id=head.run_id if head else "",
        manifest_ref=head.manifest_ref if head else "",
        manifest_sha256=head.manifest_sha256 if head else "",
        base=head.base if head else 0,
        started_at=head.started_at if head else _NEVER,
        expired=tuple(expired),
    )
    return record if log.create(record) else None


def expiry_mark(run_id: str, seq: int) -> bytes:
    """What cleanup stores as the outcome of a run that had come to none: commit `seq` has given it up."""
    return json.dumps({"format": 1, "run_id": run_id, "expired_by": seq}, sort_keys=True).encode()


def expired_by(outcome: bytes) -> int | None:
    """The commit that gave up the run of a stored outcome, if it is such a mark."""
    try:
        seq = dict(json.loads(outcome)).get("expired_by")
    except (ValueError, TypeError, RecursionError):
        return None
    return seq if isinstance(seq, int) else None
