"""The commit log, beyond what its suite asks of every store: odd answers, broken logs, and another writer's pointers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from shardyfusion.commits import BuildStart, CommitLog, CommitRecord, Patience, served_manifest
from shardyfusion.errors import (
    CommitLogError,
    ManifestParseError,
    ObjectExistsError,
    ObjectNotFoundError,
    PublishCurrentError,
    PublishUnknownError,
    RunExpiredError,
    SnapshotNotFoundError,
    StaleBuildError,
    StorageError,
    StoreAccessError,
    StoreUnavailableError,
    UnsafeStoreError,
)
from shardyfusion.layout import COMMITS, JSON_TYPE, commit_name
from shardyfusion.storage import MemoryStore, ObjectStore
from shardyfusion.testing import FaultStore, StoreCall

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
HASTY = Patience(deadline_seconds=0.0, pause_seconds=0.0)
PATIENT = Patience(deadline_seconds=30.0, pause_seconds=0.0)


@pytest.fixture
def store() -> ObjectStore:
    return MemoryStore(f"memory://{uuid4().hex}/snap")


def disturbed(store: ObjectStore, count: int, verb: str, part: str, error: Exception, *, applied: bool) -> FaultStore:
    """The first `count` requests of one verb on names that hold `part` end in `error`, whether they arrive or not."""
    left = [count]

    def fault(call: StoreCall) -> None:
        if call.verb != verb or part not in call.name or not left[0]:
            return
        left[0] -= 1
        if applied:
            with suppress(StorageError):
                call.perform()
        raise error

    return FaultStore(store, before=fault)


def start(base: int = 0, minutes: int = 0, log: str | None = None) -> BuildStart:
    return BuildStart(base=base, started_at=EPOCH + timedelta(minutes=minutes), log=log)


def append(
    store: Any, run_id: str, begun: BuildStart | None = None, patience: Patience = PATIENT, **options: Any
) -> CommitRecord:
    """Commit a build; by default one that started just now."""
    log = CommitLog(store, patience=patience)
    head = CommitLog(store).state().head if begun is None else None
    return log.append_build(
        run_id=run_id,
        manifest_ref=f"{store.url}/manifests/2026-01-01T00:00:00.000000Z_run_id={run_id}/manifest",
        manifest_sha256="0" * 64,
        start=begun or start(head.seq if head else 0, log=head.log if head else None),
        check_winners=lambda: None,
        **options,
    )


def publish(store: Any, run_id: str, **options: Any) -> CommitRecord:
    record = append(store, run_id, **options)
    CommitLog(store).advance_pointer(record)
    return record


def foreign_pointer(store: ObjectStore, run_id: str) -> bytes:
    """What the reference writes when it publishes."""
    body = json.dumps(
        {
            "format_version": 1,
            "manifest_content_type": "application/x-sqlite3",
            "manifest_ref": f"{store.url}/manifests/2026-01-01T00:00:00.000000Z_run_id={run_id}/manifest",
            "run_id": run_id,
            "updated_at": "2026-01-01T00:00:00.000000Z",
        }
    ).encode()
    store.put("_CURRENT", body, content_type=JSON_TYPE)
    return body


def test_a_read_back_that_finds_nothing_is_repeated(store: ObjectStore) -> None:
    """Some stores answer a racing create with 412 before the winner can be read."""
    faulty = disturbed(store, 1, "create", "commits/", ObjectExistsError("412"), applied=False)
    assert append(faulty, "a").seq == 1


def test_no_answer_until_the_deadline_is_unknown_and_a_rerun_finishes(store: ObjectStore) -> None:
    faulty = disturbed(store, 9, "create", "commits/", StoreUnavailableError("reset"), applied=True)
    with pytest.raises(PublishUnknownError, match="rerun with run_id='a'") as caught:
        append(faulty, "a", patience=HASTY)
    assert caught.value.retryable
    assert append(store, "a", start()).seq == 1, "it had landed; the rerun returns it"
    assert len(list(CommitLog(store).history())) == 1


def test_a_refused_create_is_not_unknown(store: ObjectStore) -> None:
    faulty = disturbed(store, 1, "create", "commits/", StoreAccessError("403"), applied=False)
    with pytest.raises(StoreAccessError):
        append(faulty, "a")


def test_losing_a_number_means_deciding_again(store: ObjectStore) -> None:
    """While A is about to create commit 1, B takes it: B started later, so A is stale."""
    begun = start(minutes=0)

    def overtake(call: StoreCall) -> None:
        if call.verb == "create" and call.name == commit_name(1):
            append(store, "b", start(minutes=5))

    with pytest.raises(StaleBuildError, match="'b'"):
        append(FaultStore(store, before=overtake), "a", begun)
    assert [record.run_id for record in CommitLog(store).history()] == ["b"]


def test_records_are_read_once_however_often_the_number_is_lost(store: ObjectStore) -> None:
    """They never change, and under contention a build may be far behind when it looks first."""
    for run in ("a", "b", "c"):
        append(store, run, force=True)
    calls: list[str] = []

    def overtake(call: StoreCall) -> None:
        calls.append(str(call).partition(" ")[2])
        if call.verb == "create" and len(calls) < 40 and CommitLog(store).state().head.seq < 6:
            append(store, f"rival-{len(calls)}", force=True)

    assert append(FaultStore(store, before=overtake), "late", start(1), force=True).seq == 7
    assert calls.count(f"get {commit_name(2)}") == 1
    assert calls.count(f"list {COMMITS}") == 4, "it looked again each time"


@pytest.mark.parametrize(
    ("mine", "holder", "stale"),
    [
        (start(0, 9), start(0, 5), False),
        (start(0, 5), start(0, 9), True),
        (start(0, 5), start(0, 5), True),
        (start(1, 1), start(0, 9), False),
    ],
)
def test_order_of_builds_is_base_then_the_stores_clock(
    mine: BuildStart, holder: BuildStart, stale: bool, store: ObjectStore
) -> None:
    append(store, "first", start(0, 0))
    append(store, "holder", dataclasses.replace(holder, started_at=holder.started_at + timedelta(hours=1)))
    mine = dataclasses.replace(mine, started_at=mine.started_at + timedelta(hours=1))
    if not stale:
        assert append(store, "mine", mine).seq == 3
        return
    with pytest.raises(StaleBuildError):
        append(store, "mine", mine)
    assert append(store, "mine", mine, force=True).seq == 3


def test_an_expired_run_is_refused_even_with_force(store: ObjectStore) -> None:
    record = append(store, "a", start())
    cleanup = dataclasses.replace(record, seq=2, parent=(1, record.write_id), kind="cleanup", expired=("slow",))
    store.create(commit_name(2), cleanup.encode(), content_type=JSON_TYPE)
    with pytest.raises(RunExpiredError, match="new run_id"):
        append(store, "slow", start(minutes=9), force=True)


def test_a_broken_or_replaced_log_is_refused(store: ObjectStore) -> None:
    first, second = append(store, "a"), append(store, "b")
    with pytest.raises(CommitLogError, match="replaced"):
        append(store, "c", start(9, 9))
    with pytest.raises(CommitLogError, match="replaced during"):
        append(store, "c", start(1, 9, log="another"))
    stranger = dataclasses.replace(second, parent=(1, "someone else"))
    store.put(commit_name(2), stranger.encode(), content_type=JSON_TYPE)
    with pytest.raises(CommitLogError, match="does not follow"):
        append(store, "c", start(1, 9, log=first.log))


@pytest.mark.parametrize(
    "error", [StoreUnavailableError("reset"), ObjectExistsError("412"), ObjectNotFoundError("404")]
)
def test_the_pointer_survives_a_lost_reply(error: StorageError, store: ObjectStore) -> None:
    publish(store, "a")
    record = append(store, "b")
    faulty = disturbed(store, 2, "replace", "_CURRENT", error, applied=True)
    CommitLog(faulty, patience=PATIENT).advance_pointer(record)
    assert json.loads(store.get("_CURRENT").body)["seq"] == 2


def test_a_pointer_that_was_moved_late_is_no_failure(store: ObjectStore) -> None:
    publish(store, "a")
    record = append(store, "b")
    CommitLog(store, patience=HASTY).advance_pointer(record)
    assert json.loads(store.get("_CURRENT").body)["seq"] == 2


def test_without_conditional_update_the_pointer_is_put_plainly(store: ObjectStore) -> None:
    publish(store, "a")
    record = append(store, "b")
    faulty = disturbed(store, 99, "replace", "_CURRENT", UnsafeStoreError("501"), applied=False)
    CommitLog(faulty).advance_pointer(record)
    assert json.loads(store.get("_CURRENT").body)["seq"] == 2


def test_a_pointer_that_cannot_be_moved_is_said_and_readers_find_the_head_anyway(store: ObjectStore) -> None:
    publish(store, "a")
    record = append(store, "b")
    for error in (StoreUnavailableError("reset"), StoreAccessError("403")):
        faulty = disturbed(store, 99, "replace", "_CURRENT", error, applied=False)
        with pytest.raises(PublishCurrentError, match="commit 2 is durable"):
            CommitLog(faulty, patience=HASTY).advance_pointer(record)
    assert served_manifest(store).run_id == "b"


def test_a_lagging_or_missing_pointer_hides_nothing(store: ObjectStore) -> None:
    publish(store, "r1")
    old = store.get("_CURRENT").body
    for number in range(2, 7):
        publish(store, f"r{number}")
    store.put("_CURRENT", old, content_type=JSON_TYPE)
    assert served_manifest(store).seq == 6
    store.delete(["_CURRENT"])
    assert served_manifest(store).seq == 6


def test_a_copy_without_its_commits_says_so(store: ObjectStore) -> None:
    publish(store, "a")
    store.delete([commit_name(1)])
    with pytest.raises(SnapshotNotFoundError, match="names commit 1, but commits/ holds none"):
        served_manifest(store)


def test_a_reader_is_never_led_back_within_one_log(store: ObjectStore) -> None:
    publish(store, "a")
    publish(store, "b")
    newest = served_manifest(store)
    store.delete([commit_name(2)])
    foreign = served_manifest(store, after=newest)
    assert foreign == newest


def test_forbidden_above_a_readable_record_counts_as_absent(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """S3 answers 403 for what is absent when the caller may not list."""
    publish(store, "a")
    faulty = disturbed(store, 99, "get", commit_name(2), StoreAccessError("403"), applied=False)
    with caplog.at_level(logging.WARNING):
        assert served_manifest(faulty).run_id == "a"
    assert "no permission to read commit 2" in caplog.text


def test_a_pointer_of_the_reference_is_newer_until_we_commit_over_it(store: ObjectStore) -> None:
    publish(store, "ours")
    body = foreign_pointer(store, "theirs")
    assert served_manifest(store).run_id == "theirs"
    with pytest.raises(StaleBuildError, match="another writer"):
        append(store, "slow", start(1, 0, log=CommitLog(store).state().head.log))
    now = datetime.now(UTC) + timedelta(hours=1)
    head = CommitLog(store).state().head
    assert head is not None
    record = append(store, "ours-2", BuildStart(base=1, started_at=now, log=head.log))
    assert record.over == hashlib.sha256(body).hexdigest()
    assert served_manifest(store).run_id == "ours-2", "served even if we die before the pointer moves"
    CommitLog(store).advance_pointer(record)
    assert json.loads(store.get("_CURRENT").body)["run_id"] == "ours-2"


def test_a_newer_pointer_of_the_reference_is_left_alone(store: ObjectStore) -> None:
    record = publish(store, "ours")
    foreign_pointer(store, "theirs")
    CommitLog(store).advance_pointer(record)
    assert json.loads(store.get("_CURRENT").body)["run_id"] == "theirs"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"format":2}', b"\xff\xfe", b"[" * 100_000,
        b'{"manifest_ref":"x","run_id":"r","updated_at":1e20}',
    ],
    ids=len,
)  # fmt: skip
def test_torn_records_and_pointers_are_errors(body: bytes, store: ObjectStore) -> None:
    publish(store, "a")
    store.put(commit_name(2), body, content_type=JSON_TYPE)
    with pytest.raises(ManifestParseError):
        served_manifest(store)
    store.delete([commit_name(2)])
    store.put("_CURRENT", body, content_type=JSON_TYPE)
    with pytest.raises(ManifestParseError, match=store.url):
        served_manifest(store)


def test_records_survive_storing(store: ObjectStore) -> None:
    record = append(store, "a", start(minutes=3))
    assert CommitRecord.decode(record.encode(), commit_name(1)) == record
    with pytest.raises(ManifestParseError, match="another number"):
        CommitRecord.decode(record.encode(), commit_name(2))
