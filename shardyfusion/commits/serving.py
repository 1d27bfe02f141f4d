"""What readers ask of a prefix: which manifest is served now, what it says, and what was served before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from shardyfusion.commits.log import CommitLog
from shardyfusion.commits.records import CommitRecord
from shardyfusion.errors import CommitLogError, ManifestParseError, ObjectNotFoundError, SnapshotNotFoundError
from shardyfusion.layout import COMMITS, CURRENT, MANIFESTS, join_url, name_under, parse_manifest_name
from shardyfusion.manifest import Manifest, ManifestRef, decode_manifest
from shardyfusion.storage import ObjectStore


def served_manifest(
    store: ObjectStore, *, after: ManifestRef | None = None, pointer_name: str = CURRENT
) -> ManifestRef:
    """What is served from this prefix now; `SnapshotNotFoundError` if nothing is.

    With `after` (what the caller serves already) the answer never goes back within one log.
    """
    log = CommitLog(store, pointer_name=pointer_name)
    state = log.state(known_seq=(after.seq or 0) if after else 0)
    served = state.served
    if served is None:
        if state.pointer is None:
            raise SnapshotNotFoundError(f"no snapshot at {store.url}: there is neither {pointer_name} nor a commit")
        raise SnapshotNotFoundError(
            f"{join_url(store.url, pointer_name)} names commit {state.pointer.seq}, but {COMMITS} holds none; "
            "copy the whole prefix"
        )
    if after and after.seq and served.seq and served.log == after.log and served.seq < after.seq:
        return after
    return served


def manifest_name_of(store: ObjectStore, ref: str) -> str:
    """The name of a manifest below this store's root. A URL of another root is taken to mean that the snapshot was
    moved: its `manifests/…/manifest` tail is looked for here."""
    name = name_under(store.url, ref) or MANIFESTS + ref.rpartition(MANIFESTS)[2]
    if parse_manifest_name(name) is None:
        raise ManifestParseError(f"{ref!r} is not the URL of a manifest", prefix=store.url)
    return name


def load_manifest(store: ObjectStore, ref: ManifestRef) -> Manifest:
    """Fetch, check and parse. `ManifestParseError` if the bytes are not those that were committed."""
    name = manifest_name_of(store, ref.ref)
    try:
        body = store.get(name).body
    except ObjectNotFoundError as exc:
        raise ManifestParseError(f"the manifest {join_url(store.url, name)} is named but not there") from exc
    if ref.sha256 is not None and hashlib.sha256(body).hexdigest() != ref.sha256:
        raise ManifestParseError(f"the manifest {join_url(store.url, name)} is not what was committed (sha256 differs)")
    try:
        return decode_manifest(body)
    except ManifestParseError as exc:
        raise ManifestParseError(f"{join_url(store.url, name)}: {exc.message}", **exc.facts) from exc


def snapshots_before(store: ObjectStore, ref: ManifestRef, *, pointer_name: str = CURRENT) -> Iterator[ManifestRef]:
    """What was served before `ref`, which is served now: the newest first, and only what may be served again.

    What a rollback has withdrawn is left out, and a snapshot that a cleanup has expired ends it. In a prefix where no
    commit serves anything, it is the manifests older than that one. `ManifestParseError`, `CommitLogError`: the log is
    damaged there.
    """
    log = CommitLog(store, pointer_name=pointer_name)
    head = log.state(known_seq=ref.seq or 0).head
    expired: set[str] = set()
    if head is None or not head.manifest_ref:
        for record in _downward(log, head) if head else ():
            expired.update(record.expired)
        published = parse_manifest_name(manifest_name_of(store, ref.ref))
        for older in listed_manifests(store):
            given_up = {older.run_id, manifest_name_of(store, older.ref)} & expired
            if published and older.published_at < published[0] and not given_up:
                yield older
        return
    repeated = ref.ref if ref.seq else None  # all until the record that first served it is withdrawn, or the same
    for record in _downward(log, head):
        expired.update(record.expired)
        if repeated is None and record.manifest_ref:
            if {record.run_id, manifest_name_of(store, record.manifest_ref)} & expired:
                return
            yield record.to_ref()
            repeated = record.manifest_ref
        if record.manifest_ref == repeated and record.kind not in ("rollback", "cleanup"):
            repeated = None


def _downward(log: CommitLog, record: CommitRecord) -> Iterator[CommitRecord]:
    yield record
    while record.parent is not None:
        below = log.read(record.seq - 1)
        if below is None or (below.seq, below.write_id) != record.parent:
            raise CommitLogError(f"commit {record.seq} does not follow what is stored as commit {record.seq - 1}")
        record = below
        yield record


def listed_manifests(store: ObjectStore) -> list[ManifestRef]:
    """Every manifest that is stored, whether or not it was ever served, by the time in its name, newest first."""
    named = [(parse_manifest_name(info.name), info.name) for info in store.list(MANIFESTS)]
    refs = [
        ManifestRef(ref=join_url(store.url, name), run_id=parsed[1], published_at=parsed[0])
        for parsed, name in named
        if parsed
    ]
    return sorted(refs, key=lambda ref: ref.published_at, reverse=True)
