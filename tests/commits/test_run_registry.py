"""Run records: the lease, its heartbeat, the terminal status, and the probe of the store."""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import uuid4

import pytest
import yaml

from shardyfusion.errors import ShardWriteError, UnsafeStoreError
from shardyfusion.run_registry import RunLease
from shardyfusion.storage import MemoryStore


class IgnoresConditions(MemoryStore):
    """Like S3-compatible servers that silently ignore `If-None-Match: *`."""

    def create(self, name: str, body: bytes, *, content_type: str) -> str:
        return self.put(name, body, content_type=content_type)


def begin(store: Any, **options: Any) -> RunLease:
    return RunLease.start(store, run_id="r1", shard_prefix="shards", db_path_template="db={db_id:05d}", **options)


def record(store: Any) -> dict[str, Any]:
    (info,) = store.list("runs/")
    return yaml.safe_load(store.get(info.name).body)


def url() -> str:
    return f"memory://{uuid4().hex}/snap"


def test_the_lease_is_renewed_until_the_run_ends() -> None:
    store = MemoryStore(url())
    lease = begin(store, heartbeat_seconds=0.01)
    first = record(store)
    deadline = time.monotonic() + 10
    while record(store)["lease_expires_at"] == first["lease_expires_at"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert record(store)["lease_expires_at"] > first["lease_expires_at"]
    assert (first["status"], first["run_id"], first["format_version"]) == ("running", "r1", 1)
    lease.finish(manifest_ref="memory://x/manifest")
    ended = record(store)
    assert (ended["status"], ended["manifest_ref"]) == ("succeeded", "memory://x/manifest")
    assert ended["lease_expires_at"] == ended["updated_at"]
    assert ended["started_at"] == first["started_at"]


def test_a_failed_run_says_why() -> None:
    store = MemoryStore(url())
    begin(store).finish(error=ShardWriteError("no space", db_id=3))
    ended = record(store)
    assert (ended["status"], ended["error_type"]) == ("failed", "ShardWriteError")
    assert ended["error_message"] == "no space [db_id=3]"


def test_a_store_that_ignores_conditions_is_refused_and_left_empty() -> None:
    store = IgnoresConditions(url())
    with pytest.raises(UnsafeStoreError, match="allow_unsafe_store=True"):
        begin(store)
    assert list(store.list()) == []


def test_an_unsafe_store_is_used_only_when_asked_and_loudly(caplog: pytest.LogCaptureFixture) -> None:
    store = IgnoresConditions(url())
    with caplog.at_level(logging.WARNING):
        begin(store, allow_unsafe_store=True).finish()
    assert "can lose a version" in caplog.text
