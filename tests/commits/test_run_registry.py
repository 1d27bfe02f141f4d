"""Run records: the lease, its heartbeat, the terminal status, and the probe of the store."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import yaml

from shardyfusion.commits import Patience
from shardyfusion.credentials import S3Credentials
from shardyfusion.errors import ShardWriteError, StoreAccessError, StoreUnavailableError, UnsafeStoreError
from shardyfusion.layout import timestamp
from shardyfusion.run_registry import LEASE, RunLease, RunRecord, recorded_runs
from shardyfusion.storage import MemoryStore
from shardyfusion.testing import FaultStore, StoreCall


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


def test_a_store_that_is_down_at_the_start_leaves_nothing_behind_once_it_is_back() -> None:
    """The record was made, and the probe got no answer."""
    store = MemoryStore(url())
    calls: list[StoreCall] = []

    def drop_the_probe(call: StoreCall) -> None:
        if call.verb == "create":
            calls.append(call)
            if len(calls) == 2:
                raise StoreUnavailableError("reset")

    with pytest.raises(StoreUnavailableError, match="did not answer the probe"):
        begin(FaultStore(store, before=drop_the_probe))
    assert list(store.list()) == []


def test_a_lost_reply_to_the_first_record_is_no_proof_of_anything() -> None:
    """The create was applied and its answer lost: sent again it meets its own bytes, and the run begins."""
    store = MemoryStore(url())
    lost: list[StoreCall] = []

    def lose(call: StoreCall) -> None:
        if call.verb == "create" and not lost:
            lost.append(call)
            raise StoreUnavailableError("timed out")

    begin(FaultStore(store, after=lose), patience=Patience(pause_seconds=0)).finish()
    assert record(store)["status"] == "succeeded"


@pytest.mark.parametrize(("seconds", "at_most"), [(2, 2), (60, 3)])
def test_a_dead_store_is_told_soon_at_a_start(seconds: int, at_most: int) -> None:
    def down(call: StoreCall) -> None:
        raise StoreUnavailableError("Could not connect to the endpoint URL")

    clock = iter(range(1000))
    patience = Patience(deadline_seconds=seconds, clock=lambda: float(next(clock)), sleep=lambda _: None)
    told = rf"no answer about memory://.*run\.yaml within {at_most} s.*endpoint URL"
    with pytest.raises(StoreUnavailableError, match=told):
        begin(FaultStore(MemoryStore(url()), before=down), patience=patience)
    assert next(clock) <= at_most + 2


@pytest.mark.parametrize(
    "error", [StoreUnavailableError("no"), StoreAccessError("no"), RuntimeError("a bug of a store")]
)
def test_a_renewal_that_fails_is_logged_and_tried_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore(url())
    failed: list[StoreCall] = []
    renewed = threading.Event()

    def fail_twice(call: StoreCall) -> None:
        if call.verb == "put":
            failed.append(call)
            if len(failed) <= 2:
                raise error
            renewed.set()

    with caplog.at_level(logging.WARNING):
        lease = begin(FaultStore(store, before=fail_twice), heartbeat_seconds=0.01)
        assert renewed.wait(10)
        lease.finish()
    assert record(store)["status"] == "succeeded"
    assert "could not be updated: " in caplog.text


def test_an_end_that_cannot_be_written_hides_no_error_and_the_lease_ends() -> None:
    def down(call: StoreCall) -> None:
        if call.verb == "put":
            raise RuntimeError("a bug of a store")

    store = MemoryStore(url())
    lease = begin(FaultStore(store, before=down))
    lease.finish(error=ShardWriteError("the real one"))
    assert record(store)["status"] == "running"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease-") and thread.is_alive()]


def test_what_a_run_records_of_its_error_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-key-of-the-environment")
    S3Credentials(access_key_id="AKIA", secret_access_key="the-key-in-use", session_token="the-token-in-use")
    store = MemoryStore(url())
    said = (
        "GET https://b.s3/k?X-Amz-Signature=f00&X-Amz-Credential=AKIA%2F1 with the-key-of-the-environment, "
        "the-key-in-use and the-token-in-use"
    )
    for error in (RuntimeError(said), ShardWriteError(said, url=said)):
        begin(store).finish(error=error)
    for info in store.list("runs/"):
        body = store.get(info.name).body.decode()
        assert "error_type: RuntimeError" in body or "error_type: ShardWriteError" in body
        for hidden in ("f00", "AKIA", "the-key-of-the-environment", "the-key-in-use", "the-token-in-use"):
            assert hidden not in body


# -- reading them ------------------------------------------------------------------------------------------------------


def put_record(store: MemoryStore, name: str, body: bytes) -> None:
    store.put(name, body, content_type="application/x-yaml")


def name_of(second: int, run_id: str = "r") -> str:
    return f"runs/2026-11-21T10:00:{second:02d}.000000Z_run_id={run_id}_{uuid4().hex}/run.yaml"


def test_recorded_runs_come_in_order_and_strangers_are_passed_over() -> None:
    store = MemoryStore(url())
    begin(store).finish()
    body = store.get(next(iter(store.list("runs/"))).name).body
    store.delete([info.name for info in store.list()])
    for second in (3, 1, 2):
        put_record(store, name_of(second, f"run-{second}"), body)
    put_record(store, "runs/outcome/run-1.json", b"{}")
    put_record(store, "runs/2026-11-21T10:00:09.000000Z_run_id=x/run.yaml", body)
    put_record(store, "runs/readme.txt", b"hello")
    assert [run.run_id for run in recorded_runs(store)] == ["run-1", "run-2", "run-3"]
    assert [run.run_id for run in recorded_runs(store, newest=2)] == ["run-2", "run-3"]
    assert [run.run_id for run in recorded_runs(store, newest=9)] == ["run-1", "run-2", "run-3"]
    assert list(recorded_runs(MemoryStore(url()), newest=3)) == []


def test_a_record_that_goes_away_while_they_are_read_is_passed_over() -> None:
    store = MemoryStore(url())
    begin(store).finish()
    begin(store).finish()
    first, second = store.list("runs/")

    def remove(call: StoreCall) -> None:
        if call.verb == "get" and call.name == first.name:
            store.delete([first.name])

    assert [run.name for run in recorded_runs(FaultStore(store, before=remove))] == [second.name]


WHOLE = {
    "run_id": "r",
    "started_at": "t",
    "updated_at": "t",
    "lease_expires_at": "t",
    "s3_prefix": "s3://b/p",
    "shard_prefix": "shards",
    "db_path_template": "db={db_id:05d}",
    "status": "running",
    "writer_type": "spark",
    "manifest_ref": None,
    "error_type": None,
    "error_message": None,
    "format_version": 1,
    "of_a_later_version": {"x": 1},
}


def test_a_record_of_another_writer_is_read() -> None:
    found = RunRecord.decode(yaml.safe_dump(WHOLE).encode(), "n")
    assert (found.run_id, found.status, found.writer_type) == ("r", "running", "spark")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"- a\n- b\n",
        b"[[run_id, r]]",
        b"\xff\xfe\x00",
        b"a: b: c",
        b"{" * 5000,
        b"!!python/object/apply:os.system ['true']",
        yaml.safe_dump({k: v for k, v in WHOLE.items() if k != "run_id"}).encode(),
        yaml.safe_dump(WHOLE | {"status": "finished"}).encode(),
        yaml.safe_dump(WHOLE | {"status": None}).encode(),
        yaml.safe_dump(WHOLE | {"run_id": 5}).encode(),
        yaml.safe_dump(WHOLE | {"error_message": ["x"]}).encode(),
    ],
    ids=range(12),
)
def test_a_record_that_cannot_be_read_gets_the_benefit_of_the_doubt(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Cleanup must not take a run for ended because it does not understand what its writer says."""
    store = MemoryStore(url())
    put_record(store, name_of(1), body)
    with caplog.at_level(logging.WARNING):
        (run,) = recorded_runs(store)
    assert run.record is None
    assert "the run record cannot be read" in caplog.text
    assert run.alive(store.now())
    assert run.state(store.now()) == "unreadable"
    assert not run.alive(run.modified + LEASE)


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_a_lease_is_judged_by_the_store_s_clock(hours: int) -> None:
    """The host's clock, an hour ahead or behind in what it writes, changes nothing."""
    store = MemoryStore(url())
    lease = begin(store)
    (info,) = store.list("runs/")
    skewed = timestamp(datetime.now(UTC) + timedelta(hours=hours))
    body = yaml.safe_load(store.get(info.name).body) | {"updated_at": skewed, "lease_expires_at": skewed}
    put_record(store, info.name, yaml.safe_dump(body).encode())
    (run,) = recorded_runs(store)
    assert (run.alive(store.now()), run.state(store.now())) == (True, "running")
    last = run.modified + LEASE - timedelta(microseconds=1)
    assert (run.alive(last), run.state(last)) == (True, "running")
    assert (run.alive(run.modified + LEASE), run.state(run.modified + LEASE)) == (False, "lost")
    lease.finish()
    (ended,) = recorded_runs(store)
    assert (ended.alive(store.now()), ended.state(ended.modified + 2 * LEASE)) == (False, "succeeded")
