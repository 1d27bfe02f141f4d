"""Serving an earlier version again."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

from shardyfusion.commits import (
    CommitLog,
    Patience,
    Version,
    Versions,
    append_rollback,
    load_manifest,
    manifest_name_of,
    read_versions,
)
from shardyfusion.credentials import CredentialProvider
from shardyfusion.errors import ConfigValidationError, RunExpiredError, ShardUnavailableError, SnapshotNotFoundError
from shardyfusion.layout import join_url
from shardyfusion.manifest import ManifestRef
from shardyfusion.shard_places import locate_shards
from shardyfusion.storage import ObjectStore, StoreAddress, open_store
from shardyfusion.type_defs import S3ConnectionOptions, require

PREVIOUS = "previous"


def rollback(
    s3_prefix: str | os.PathLike[str],
    *,
    to: str | int,
    credential_provider: CredentialProvider | None = None,
    s3_connection_options: S3ConnectionOptions | None = None,
) -> ManifestRef:
    """Serve an earlier version again, by a commit record of its own, and return what is served then.

    A build that started before the rollback was asked for is stale from then on. To roll back to what is served changes
    nothing. After a `PublishCurrentError` or `PublishUnknownError`, call again with the error's `manifest_ref` as `to`:
    once the commit has landed, `"previous"` is another version.

    Args:
        to: The number of a commit that published or rolled back; or a run id; or the URL of a manifest; or
            `"previous"`, the version that was served before the present one.

    Raises:
        ConfigValidationError: There is no such version; nothing was changed, like with all but the last two.
        RunExpiredError: Cleanup has given that version up.
        ManifestParseError, ShardUnavailableError: Its manifest, or an object of a shard, is gone or damaged.
        HeadMovedError: Another commit came first; it may be newer than what you wanted to undo.
        PublishUnknownError, PublishCurrentError: The commit may have landed; it has, but `_CURRENT` lags behind.
    """
    require(isinstance(to, str | int) and not isinstance(to, bool), f"to is {to!r}; give a commit, a run id or a URL")
    address = StoreAddress.parse(s3_prefix, credential_provider=credential_provider, options=s3_connection_options)
    store = open_store(address)
    asked_at = store.now()
    versions = read_versions(store)
    target = _find(store, versions, to)
    ref = replace(target.ref, ref=join_url(store.url, target.name))  # the prefix may have been moved
    _check_whole(address, store, ref)
    log = CommitLog(store, patience=Patience())
    if target.superseded_at is None:
        head = versions.state.head
        if head is not None:
            log.advance_pointer(head)
        return ref
    digest = ref.sha256 or hashlib.sha256(store.get(target.name).body).hexdigest()
    record = append_rollback(log, versions.state, ref, digest, asked_at)
    log.advance_pointer(record)
    return record.to_ref()


def _find(store: ObjectStore, versions: Versions, to: str | int) -> Version:
    if not versions.known:
        raise SnapshotNotFoundError(f"no snapshot at {store.url}: there is nothing to roll back to")
    if to == PREVIOUS:
        earlier = [version for version in versions.known if version.superseded_at is not None]
        require(bool(earlier), f"{store.url} has never served another version than the present one")
        return earlier[0]
    name = _manifest_named(store, versions, to)
    for version in versions.known:
        if name == version.name:
            return version
    if not versions.expired.isdisjoint((to, name)):
        raise RunExpiredError(f"cleanup has given up {to!r}; it cannot be served again", prefix=store.url)
    ids = ", ".join(repr(version.ref.run_id) for version in versions.known[:5])
    raise ConfigValidationError(
        f"{store.url} has no version {to!r}; the latest run ids are {ids}. `shardy history` lists all"
    )


def _manifest_named(store: ObjectStore, versions: Versions, to: str | int) -> str | None:
    if isinstance(to, str) and "/" in to:
        return manifest_name_of(store, to)
    name = versions.names.get(to)  # a run id may consist of digits, so it goes before the number
    if name is None and isinstance(to, str) and to.isdecimal() and len(to) <= 20:
        return versions.names.get(int(to))
    return name


def _check_whole(address: StoreAddress, store: ObjectStore, ref: ManifestRef) -> None:
    """The manifest parses, and every object of every shard is there with its size."""
    manifest = load_manifest(store, ref)
    places = locate_shards(manifest, store.url, allow_external=True)
    for record in manifest.shards:
        if record.db_id not in places:
            continue
        place = places[record.db_id]
        home = store if place.root_url == store.url else open_store(address.at(place.root_url))
        directory = f"{place.directory}/"
        present = {info.name.removeprefix(directory): info.size for info in home.list(directory)}
        lacking = [item.path for item in record.objects if present.get(item.path) != item.size]
        if lacking or not present:
            raise ShardUnavailableError(
                f"shard {record.db_id} of run {ref.run_id!r} is not whole: {place.url} lacks "
                f"{', '.join(lacking[:3]) or 'all objects'}; roll back to another version",
                db_id=record.db_id,
            )
