"""`shardy runs`: what ran on a prefix, how it ended, and when it was last heard of by the store's clock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
import yaml
from click.testing import CliRunner, Result

from shardyfusion.cli.app import shardy
from shardyfusion.errors import ShardWriteError
from shardyfusion.run_registry import LEASE, RunLease
from shardyfusion.storage import ObjectStore, StoreAddress, open_store, wrapping_stores
from shardyfusion.testing import FaultStore


class LaterStore(FaultStore):
    """A store that is asked later: its clock has gone on by `ahead`."""

    ahead = timedelta()

    def now(self) -> datetime:
        return self.inner.now() + self.ahead


@contextmanager
def asked_later(by: timedelta) -> Iterator[None]:
    def wrap(store: ObjectStore) -> ObjectStore:
        later = LaterStore(store)
        later.ahead = by
        return later

    with wrapping_stores(wrap):
        yield


@pytest.fixture
def store(any_prefix: str) -> ObjectStore:
    return open_store(StoreAddress.parse(any_prefix))


def begin(store: ObjectStore, run_id: str) -> RunLease:
    return RunLease.start(store, run_id=run_id, shard_prefix="shards", db_path_template="db={db_id:05d}")


def shown(store: ObjectStore, *flags: str) -> Result:
    result = CliRunner().invoke(shardy, ["runs", store.url, *flags])
    assert result.exit_code == 0, result.output
    return result


def test_runs_are_listed_newest_first_with_how_they_ended(store: ObjectStore) -> None:
    begin(store, "first").finish(manifest_ref=f"{store.url}/manifests/x/manifest")
    begin(store, "second").finish(error=ShardWriteError("no space\nat all", db_id=3))
    alive = begin(store, "third")
    found = json.loads(shown(store, "--json").stdout)
    assert [(run["run_id"], run["status"]) for run in found] == [
        ("third", "running"),
        ("second", "failed"),
        ("first", "succeeded"),
    ]
    assert found[1]["error_type"] == "ShardWriteError"
    assert found[1]["error_message"] == "no space\nat all [db_id=3]"
    assert found[2]["manifest_ref"] == f"{store.url}/manifests/x/manifest"
    for run in found:
        assert run["started_at"] == yaml.safe_load(store.get(run["record"]).body)["started_at"]
        assert 0 <= run["heartbeat_age_seconds"] < 60
    head, *lines = shown(store).stdout.splitlines()
    assert head.split() == ["status", "run_id", "started_at", "heartbeat", "result"]
    assert [line.split()[:2] for line in lines] == [["running", "third"], ["failed", "second"], ["succeeded", "first"]]
    assert "ShardWriteError: no space at all [db_id=3]" in lines[1]
    assert f"{store.url}/manifests/x/manifest" in lines[2]
    assert json.loads(shown(store, "--json", "--limit", "1").stdout) == found[:1]
    alive.finish()


def test_a_run_that_nobody_has_heard_of_for_a_lease_is_lost(store: ObjectStore) -> None:
    """By the store's clock, whatever the hosts say: in an hour the silent run is lost, and the ended one still ended."""
    begin(store, "ended").finish()
    silent = begin(store, "silent")
    for later, status, age in (
        (timedelta(), "running", "s ago"),
        (LEASE - timedelta(minutes=1), "running", "min ago"),
        (timedelta(hours=1), "lost", "60 min ago"),
        (timedelta(hours=9), "lost", "9 h ago"),
        (timedelta(days=3), "lost", "3 d ago"),
        (timedelta(hours=-1), "running", "0 s ago"),
    ):
        with asked_later(later):
            newest, oldest = json.loads(shown(store, "--json").stdout)
            assert age in shown(store).stdout
        assert (newest["status"], oldest["status"]) == (status, "succeeded"), later
        assert newest["heartbeat_age_seconds"] == pytest.approx(max(0, later.total_seconds()), abs=60)
    silent.finish()


def test_a_prefix_without_runs_and_a_record_that_cannot_be_read(store: ObjectStore) -> None:
    assert json.loads(shown(store, "--json").stdout) == []
    name = f"runs/2026-11-21T10:00:00.000000Z_run_id=odd_{uuid4().hex}/run.yaml"
    store.put(name, b"[", content_type="application/x-yaml")
    (run,) = json.loads(shown(store, "--json").stdout)
    assert (run["run_id"], run["status"], run["started_at"], run["error_type"]) == ("odd", "unreadable", None, None)
    assert shown(store).stdout.splitlines()[1].split()[:3] == ["unreadable", "odd", "-"]
