"""What readers ask of a prefix: which manifest is served now, and what it says."""

from __future__ import annotations

import hashlib

from shardyfusion.commits.log import CommitLog
from shardyfusion.errors import ManifestParseError, ObjectNotFoundError, SnapshotNotFoundError
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
