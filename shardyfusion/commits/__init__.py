"""The commit log and the `_CURRENT` pointer: what is served from a prefix, and how that changes.

The rules are in docs/architecture.md, "Commit protocol"; what a commit means for shards and runs is the writer's
business.
"""

from __future__ import annotations

from shardyfusion.commits.create import Patience, create_once
from shardyfusion.commits.log import CommitLog
from shardyfusion.commits.records import BuildStart, CommitRecord, LogState, Pointer
from shardyfusion.commits.serving import load_manifest, manifest_name_of, served_manifest

__all__ = [
    "BuildStart",
    "CommitLog",
    "CommitRecord",
    "LogState",
    "Patience",
    "Pointer",
    "create_once",
    "load_manifest",
    "manifest_name_of",
    "served_manifest",
]
