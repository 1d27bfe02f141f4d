"""Every snapshot that a prefix can serve again: which was served when, by the store's clock, and what was given up."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from shardyfusion.commits.log import CommitLog
from shardyfusion.commits.records import CommitRecord, LogState
from shardyfusion.commits.serving import manifest_name_of
from shardyfusion.errors import CommitLogError, ManifestParseError
from shardyfusion.layout import COMMITS, MANIFESTS, OUTCOMES, commit_name, join_url, outcome_name, parse_commit_name
from shardyfusion.layout import parse_manifest_name as parse_name
from shardyfusion.manifest import ManifestRef
from shardyfusion.storage import ObjectStore


@dataclass(frozen=True, kw_only=True)
class Version:
    """A snapshot that has been served, or, if another writer published it, may have been.

    `name` is its manifest's below the prefix; `since` when it last became what is served, and `superseded_at` when
    something else did (at the latest), by the store's clock. `superseded_at` is None for what is served now.
    """

    name: str
    ref: ManifestRef
    since: datetime
    superseded_at: datetime | None
    present: bool


@dataclass(frozen=True, kw_only=True)
class Versions:
    """`known` has the latest served first, without those that a cleanup has expired.

    `expired` holds the manifest names and run ids that were given up; `names` tells the manifest of a commit's
    number and of a run id, for the expired ones too.
    """

    state: LogState
    known: tuple[Version, ...]
    expired: frozenset[str]
    names: Mapping[int | str, str]

    @property
    def served(self) -> Version | None:
        return next((version for version in self.known if version.superseded_at is None), None)


def read_versions(store: ObjectStore) -> Versions:
    """Read the whole log, one request for each commit. `CommitLogError` if it is not one chain."""
    log = CommitLog(store)
    state = log.state()
    # After the state, and in this order: what the state names is then listed, and a manifest after its outcome.
    manifests = {info.name: info.modified for info in store.list(MANIFESTS) if parse_name(info.name)}
    with_outcome = {info.name for info in store.list(OUTCOMES)}
    times = {parse_commit_name(info.name): info.modified for info in store.list(COMMITS)}
    _check_complete(store, state, max((seq for seq in times if seq), default=0))
    timeline = _Timeline(store)
    for record in log.records(1, state.head.seq) if state.head else ():
        timeline.follow(record, times.get(record.seq, record.committed_at))
    pointer = state.foreign
    if pointer:
        timeline.serve(pointer.ref, pointer.modified)
    ended = pointer.modified if pointer else timeline.taken_over_at
    # What has an outcome is a build of ours that was never published; else another writer made it.
    strangers = {
        name: modified
        for name, modified in manifests.items()
        if name not in timeline.versions and outcome_name(_run_of(name)) not in with_outcome
    }
    others = _versions_of_others(store, strangers, ended)
    # Clocks are coarse: of two with one time, the one that a record or the pointer tells of was served later.
    in_order = [*others, *timeline.versions.values()]
    known = [replace(version, present=version.name in manifests) for version in reversed(in_order)]
    return Versions(
        state=state,
        known=tuple(
            sorted(
                # What another writer's pointer names is served, whatever was given up here.
                (v for v in known if v.superseded_at is None or not {v.name, v.ref.run_id} & timeline.expired),
                key=lambda v: (v.superseded_at is None, v.since),
                reverse=True,
            )
        ),
        expired=frozenset(timeline.expired),
        names={version.ref.run_id: version.name for version in others} | timeline.names,
    )


def _run_of(name: str) -> str:
    return (parse_name(name) or (None, ""))[1]


def _versions_of_others(store: ObjectStore, manifests: Mapping[str, datetime], ended: datetime | None) -> list[Version]:
    """Manifests that another writer has published, oldest first.

    Nobody recorded when each was superseded: `ended`, when its pointer last changed or was overtaken, is the latest.
    """
    return [
        Version(
            name=name,
            ref=ManifestRef(ref=join_url(store.url, name), run_id=parsed[1], published_at=parsed[0]),
            since=modified,
            superseded_at=max(modified, ended) if ended else modified,
            present=True,
        )
        for name, modified in sorted(manifests.items(), key=lambda item: (item[1], item[0]))
        if (parsed := parse_name(name))
    ]


def _check_complete(store: ObjectStore, state: LogState, newest: int) -> None:
    """What has been lost from the top of the log would look as if it had never been published."""
    head, pointer = state.head, state.pointer
    seq = head.seq if head else 0
    named = (pointer.seq or 0) if pointer and (head is None or pointer.ref.log == head.log) else 0
    if named > seq or (newest > seq and store.head(commit_name(seq + 1)) is None):
        raise CommitLogError(
            f"commit {max(named, newest)} has been made, but the log ends at {seq}; restore what is missing before you "
            "go on",
            prefix=store.url,
        )


class _Timeline:
    """What was served, in order; `versions` has the latest last. No moment is earlier than the one before it, as a copy
    of the prefix has its objects in any order."""

    def __init__(self, store: ObjectStore) -> None:
        self.versions: dict[str, Version] = {}
        self.expired: set[str] = set()
        self.names: dict[int | str, str] = {}
        self.taken_over_at: datetime | None = None
        self._store = store
        self._serving: str | None = None
        self._over: str | None = None
        self._moment = datetime.fromtimestamp(0, UTC)

    def follow(self, record: CommitRecord, modified: datetime) -> None:
        self.expired.update(record.expired)
        if record.over != self._over:
            self._over, self.taken_over_at = record.over, modified
            if record.over_ref:
                with suppress(ManifestParseError):  # it named no manifest, so it served nothing
                    taken = manifest_name_of(self._store, record.over_ref)
                    ref = ManifestRef(ref=record.over_ref, run_id=_run_of(taken), published_at=modified)
                    self.serve(ref, modified)
        if record.manifest_ref:
            self.serve(record.to_ref(), modified)
            self.names[record.seq] = manifest_name_of(self._store, record.manifest_ref)

    def serve(self, ref: ManifestRef, modified: datetime) -> None:
        name = manifest_name_of(self._store, ref.ref)
        if name == self._serving:
            return
        modified = self._moment = max(modified, self._moment)
        if self._serving is not None:
            self.versions[self._serving] = replace(self.versions[self._serving], superseded_at=modified)
        self.names[ref.run_id] = name
        self.versions.pop(name, None)  # so that it comes last
        self.versions[name] = Version(name=name, ref=ref, since=modified, superseded_at=None, present=True)
        self._serving = name
