"""What a cleanup may delete, decided from what was read. Pure: no requests are sent here.

The rules are in docs/protocol.md, "Cleanup".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from shardyfusion.commits import Version, Versions
from shardyfusion.layout import parse_manifest_name, parse_outcome_name, parse_run_record_name, parse_shard_object_name
from shardyfusion.manifest import ManifestRef
from shardyfusion.run_registry import LEASE, RecordedRun
from shardyfusion.storage import ObjectInfo, PendingUpload
from shardyfusion.storage.durable import is_temporary
from shardyfusion.type_defs import require, require_type

SERVED_AND_PREVIOUS = 2


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept. `older_than` None means that `keep_last` alone decides which versions go."""

    keep_last: int
    older_than: timedelta | None
    grace: timedelta

    def __post_init__(self) -> None:
        require_type(self.keep_last, int, "keep_last")
        require(
            self.keep_last >= 1 and not isinstance(self.keep_last, bool),
            f"keep_last is {self.keep_last}; keep at least 1",
        )
        for name in ("older_than", "grace"):
            value = getattr(self, name)
            if value is not None:
                require_type(value, timedelta, name)
                require(value >= timedelta(0), f"{name} is {value}; it must not be negative")

    def keeps(self, rank: int, version: Version, now: datetime) -> bool:
        """Whether the version at `rank`, counted from 0 for the one served last, stays."""
        if rank < max(self.keep_last, SERVED_AND_PREVIOUS) or version.superseded_at is None:
            return True
        return now - version.superseded_at < max(self.grace, self.older_than or self.grace)

    def young(self, modified: datetime, now: datetime) -> bool:
        """Whether the grace keeps what was written at `modified`."""
        return now - modified < self.grace


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies below a prefix, read in the order of the fields.

    Whatever began after one of them was read is either missing from the earlier ones, so that nothing of it can be
    planned, or known to the later ones as alive or committed.
    """

    now: datetime
    objects: Sequence[ObjectInfo]
    uploads: Sequence[PendingUpload]
    runs: Sequence[RecordedRun]
    versions: Versions


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The versions that stay. `directories`, ending in `/`, are those of the shards that they name."""

    versions: Sequence[Version]
    directories: frozenset[str]
    shard_prefixes: frozenset[str]

    @property
    def run_ids(self) -> frozenset[str]:
        """By the manifests' names, like those of all objects: another writer's pointer may say anything."""
        parsed = (parse_manifest_name(version.name) for version in self.versions)
        return frozenset(run_id for _, run_id in filter(None, parsed))


@dataclass(frozen=True, kw_only=True)
class CleanupPlan:
    """Exactly what a cleanup deletes: `keys` in the order of deletion, and unfinished `uploads`.

    `expired` are the run ids and manifests that are given up with it: they are never published, or served, again.
    """

    kept: tuple[ManifestRef, ...] = ()
    expired: tuple[str, ...] = ()
    keys: tuple[ObjectInfo, ...] = ()
    uploads: tuple[PendingUpload, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.keys and not self.uploads

    @property
    def key_bytes(self) -> int:
        return sum(key.size for key in self.keys)


def kept_versions(versions: Versions, retention: Retention, now: datetime) -> list[Version]:
    """What retention keeps, and what the newest commit names, although another writer's pointer may be served instead:
    the records to come repeat it."""
    present = [version for version in versions.known if version.present]
    head = versions.state.head
    named = versions.names.get(head.seq) if head else None
    return [v for rank, v in enumerate(present) if v.name == named or retention.keeps(rank, v, now)]


def plan_cleanup(found: Found, kept: Kept, retention: Retention) -> CleanupPlan:
    """Everything of runs and versions that nothing keeps: neither retention, nor a lease, nor the grace. What is not
    understood stays."""
    prefixes = kept.shard_prefixes | {run.record.shard_prefix for run in found.runs if run.record} | {"shards"}
    parts = [(part, info) for info in found.objects if (part := _part_of(info.name, prefixes))]
    busy = _busy_runs(found, parts, kept.run_ids, retention)
    kept_names = {version.name for version in kept.versions}
    keys: list[tuple[int, ObjectInfo]] = []
    expired: set[str] = set()
    for part, info in parts:
        kept_run = part.run_id in kept.run_ids
        if part.run_id in busy or retention.young(info.modified, found.now) or info.name in kept_names:
            continue
        if _lies_in(info.name, kept.directories):
            continue
        if part.rank == _OUTCOME or (part.rank == _RECORD and kept_run):
            continue
        keys.append((part.rank, info))
        if part.rank == _MANIFEST:
            expired.add(info.name)
        if part.rank != _RECORD and not kept_run:
            expired.add(part.run_id)
    uploads = [
        upload
        for upload in found.uploads
        # Nobody says which run an upload is of, if it lies in no run's directory, so one that may be in progress stays.
        if found.now - upload.started >= max(retention.grace, LEASE)
        and ((part := _part_of(upload.name, prefixes)) or is_temporary(upload.name))
        and not (part and part.run_id in busy)
    ]
    return CleanupPlan(
        kept=tuple(version.ref for version in kept.versions),
        expired=tuple(sorted(expired)),
        keys=tuple(info for _, info in sorted(keys, key=lambda item: (item[0], item[1].name))),
        uploads=tuple(uploads),
    )


# In the order of deletion. A manifest goes before the shards that it names, and a run record last, so that a cleanup
# that is cut short leaves nothing that looks whole.
_MANIFEST, _SHARD, _RECORD, _OUTCOME = range(4)


class _Part(NamedTuple):
    run_id: str
    rank: int


def _part_of(name: str, shard_prefixes: frozenset[str]) -> _Part | None:
    """Whose an object is, and what; None for what no run made."""
    if manifest := parse_manifest_name(name):
        return _Part(manifest[1], _MANIFEST)
    if run_id := parse_run_record_name(name):
        return _Part(run_id, _RECORD)
    if run_id := parse_outcome_name(name):
        return _Part(run_id, _OUTCOME)
    run_id = parse_shard_object_name(name, shard_prefixes)
    return _Part(run_id, _SHARD) if run_id else None


def _lies_in(name: str, directories: frozenset[str]) -> bool:
    """Whether one of the directories, of which there may be thousands, holds the object at any depth."""
    end = name.find("/") + 1
    while end:
        if name[:end] in directories:
            return True
        end = name.find("/", end) + 1
    return False


def _busy_runs(
    found: Found, parts: Sequence[tuple[_Part, ObjectInfo]], kept: frozenset[str], retention: Retention
) -> set[str]:
    """Runs that may be at work: with a live lease, or, unless they have published, with anything newer than the grace.

    Also runs whose manifest is gone although no cleanup gave it up: what happened there is not ours to finish.
    """
    busy = {run.run_id for run in found.runs if run.alive(found.now)}
    young = (part.run_id for part, info in parts if retention.young(info.modified, found.now))
    busy |= {run_id for run_id in young if run_id not in kept}
    return busy | {version.ref.run_id for version in found.versions.known if not version.present}
