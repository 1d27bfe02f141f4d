"""The commit log and the `_CURRENT` pointer: what is served from a prefix, and how that changes.

The rules are in docs/protocol.md; what a commit means for shards and runs is the writer's
business.
"""

from __future__ import annotations

from shardyfusion.commits.changes import append_cleanup, append_rollback, expired_by, expiry_mark
from shardyfusion.commits.create import Patience, create_once
from shardyfusion.commits.log import CommitLog
from shardyfusion.commits.records import BuildStart, CommitRecord, LogState, Pointer
from shardyfusion.commits.serving import (
    listed_manifests,
    load_manifest,
    manifest_name_of,
    served_manifest,
    snapshots_before,
)
from shardyfusion.commits.versions import Version, Versions, read_versions

__all__ = [
    "BuildStart",
    "CommitLog",
    "CommitRecord",
    "LogState",
    "Patience",
    "Pointer",
    "Version",
    "Versions",
    "append_cleanup",
    "append_rollback",
    "create_once",
    "expired_by",
    "expiry_mark",
    "listed_manifests",
    "load_manifest",
    "manifest_name_of",
    "read_versions",
    "served_manifest",
    "snapshots_before",
]
