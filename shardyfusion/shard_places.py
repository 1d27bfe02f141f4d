"""Where the shards that a manifest names are found: below this prefix, or, if the caller says so, elsewhere.

Pure: no requests are sent here.
"""

from __future__ import annotations

from typing import NamedTuple

from shardyfusion.errors import ConfigValidationError, ReaderStateError
from shardyfusion.layout import join_url, name_under
from shardyfusion.manifest import Manifest, ShardRecord
from shardyfusion.storage.address import normalise_url


class ShardPlace(NamedTuple):
    """Where a shard is read: a root URL, and the shard's directory below it."""

    root_url: str
    directory: str

    @property
    def url(self) -> str:
        return join_url(self.root_url, self.directory)


def locate_shards(manifest: Manifest, root_url: str, *, allow_external: bool) -> dict[int, ShardPlace]:
    """The place of every shard that has one; a record without URL is an empty shard."""
    return {
        record.db_id: locate_shard(manifest, record, root_url, allow_external=allow_external)
        for record in manifest.shards
        if record.db_url is not None
    }


def locate_shard(manifest: Manifest, record: ShardRecord, root_url: str, *, allow_external: bool) -> ShardPlace:
    """Where this reader finds a shard that the manifest names.

    A URL under the manifest's own prefix is re-rooted at `root_url`, so that a snapshot can be moved; one under
    `root_url` is used as it is; any other is `ReaderStateError` unless the caller opted in.
    """
    url = (record.db_url or "").rstrip("/")
    if not {".", ".."}.isdisjoint(url.split("/")):
        raise ReaderStateError(f"shard {record.db_id}: the URL {url!r} holds '.' or '..' and is refused")
    for base in (manifest.s3_prefix, root_url):
        name = name_under(base, url)
        if name is not None and "//" not in name and not name.startswith("/"):
            return ShardPlace(root_url, name)
    if not allow_external:
        raise ReaderStateError(
            f"shard {record.db_id}: {url!r} lies neither under {root_url} nor under the manifest's own prefix "
            f"{manifest.s3_prefix!r}; pass allow_external_shards=True to read it from there"
        )
    return _external_place(record.db_id, url)


def _external_place(db_id: int, url: str) -> ShardPlace:
    parent, _, directory = url.rpartition("/")
    try:
        root = normalise_url(parent) if "://" in parent else ""
    except ConfigValidationError as exc:
        raise ReaderStateError(f"shard {db_id}: the URL {url!r} cannot be read: {exc.message}") from exc
    if not root or root != parent or not directory:
        raise ReaderStateError(f"shard {db_id}: the URL {url!r} names no directory of an object store")
    return ShardPlace(root, directory)
