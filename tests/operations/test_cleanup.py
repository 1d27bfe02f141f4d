"""What a cleanup deletes and what it leaves, case by case, on every kind of store."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from shardyfusion.commits import CommitLog, Patience
from shardyfusion.errors import (
    ConfigValidationError,
    ManifestParseError,
    PublishUnknownError,
    RunConflictError,
    RunExpiredError,
    SnapshotNotFoundError,
    StoreUnavailableError,
)
from shardyfusion.layout import BINARY_TYPE, COMMITS, MANIFESTS, OUTCOMES, RUNS
from shardyfusion.operations import cleanup, rollback
from shardyfusion.reader import ShardedReader
from shardyfusion.storage import StoreAddress, open_store, wrapping_stores
from shardyfusion.testing import FaultStore, StoreCall
from tests.operations.prefixes import HOUR, NO_GRACE, Prefix, builds
from tests.operations.protocol_jobs import build, lacking, point_at, reference_publish
from tests.reader.snapshots import ROWS, publish


@pytest.mark.parametrize(
    ("keep_last", "stay"), [(1, {"c", "d"}), (2, {"c", "d"}), (3, {"b", "c", "d"}), (9, {*"abcd"})]
)
def test_the_last_versions_stay_and_never_fewer_than_two(prefix, keep_last, stay):
    builds(prefix, "a", "b", "c", "d")
    done = cleanup(prefix.url, keep_last=keep_last, grace=NO_GRACE)
    assert prefix.runs_with_shards() == stay
    assert {ref.run_id for ref in done.plan.kept} == stay
    assert prefix.served() == "d"
    gone = {*"abcd"} - stay
    assert {name for name in done.plan.expired if "/" not in name} == gone
    assert {name.split("run_id=")[1].split("_")[0].split("/")[0] for name in prefix.names(MANIFESTS)} == stay
    assert prefix.names(OUTCOMES) == [f"{OUTCOMES}{run_id}.json" for run_id in "abcd"]
    assert len(prefix.names(RUNS)) == len(stay) + 4  # outcomes lie there as well
    assert cleanup(prefix.url, keep_last=keep_last, grace=NO_GRACE).plan.empty


def test_grace_runs_from_the_moment_a_version_was_superseded(prefix):
    build(prefix.store, "a")
    prefix.later(days=30)
    builds(prefix, "b", "c")  # "a" was served for a month, until four hours ago
    assert cleanup(prefix.url, keep_last=1, grace=5 * HOUR).plan.empty
    cleanup(prefix.url, keep_last=1, grace=3 * HOUR)
    assert prefix.runs_with_shards() == {"b", "c"}


def test_older_than_keeps_what_was_served_lately(prefix):
    builds(prefix, "a", "b", "c", "d")  # superseded 6, 4 and 2 hours ago
    cleanup(prefix.url, keep_last=1, older_than=5 * HOUR, grace=NO_GRACE)
    assert prefix.runs_with_shards() == {"b", "c", "d"}


def test_a_version_served_again_by_a_rollback_is_young(prefix):
    builds(prefix, "a", "b", "c")
    rollback(prefix.url, to="a")
    prefix.later(hours=1)
    build(prefix.store, "d")
    prefix.later(hours=1)
    cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert prefix.runs_with_shards() == {"a", "d"}


def test_a_dry_run_changes_nothing_and_its_plan_is_what_a_run_deletes(prefix):
    builds(prefix, "a", "b", "c")
    before = prefix.names()
    planned = cleanup(prefix.url, keep_last=1, grace=NO_GRACE, dry_run=True)
    assert prefix.names() == before
    assert planned.seq is None
    done = cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert done.plan == planned.plan
    assert {*before} - {*prefix.names()} == {key.name for key in planned.plan.keys}
    assert {*prefix.names()} - {*before} == {f"{COMMITS}{done.seq:020d}.json"}


def test_the_commit_is_durable_before_the_first_deletion(prefix):
    builds(prefix, "a", "b", "c")
    requests: list[str] = []
    watched = FaultStore(prefix.store, before=lambda call: requests.append(f"{call.verb} {call.name}"))
    with wrapping_stores(lambda _: watched):
        done = cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    record = f"create {COMMITS}{done.seq:020d}.json"
    assert requests.index(record) < min(i for i, request in enumerate(requests) if request.startswith("delete"))


def test_nothing_is_deleted_when_the_commit_is_unknown(prefix, monkeypatch):
    builds(prefix, "a", "b", "c")
    before = prefix.names()
    sent: list[StoreCall] = []

    def lose(call: StoreCall) -> None:
        assert call.verb != "delete"
        if call.verb == "create":
            sent.append(call)
            raise StoreUnavailableError("reset")

    hasty = Patience(deadline_seconds=0.0, pause_seconds=0.0)
    monkeypatch.setattr(sys.modules["shardyfusion.operations.cleanup"], "Patience", lambda: hasty)
    with wrapping_stores(lambda _: FaultStore(prefix.store, before=lose)), pytest.raises(PublishUnknownError):
        cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert prefix.names() == before
    sent[0].perform()  # it lands late: given up, nothing deleted, and the next cleanup does it
    assert prefix.runs_with_shards() == {"a", "b", "c"}
    cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert prefix.runs_with_shards() == {"b", "c"}


def test_a_run_at_work_keeps_all_it_has(prefix):
    builds(prefix, "a")
    dead = start_and_leave(prefix, "dead", requests=12)
    assert dead == "dead"
    prefix.later(minutes=9)
    assert cleanup(prefix.url, grace=NO_GRACE).plan.empty
    assert "dead" in prefix.runs_with_shards()
    prefix.later(minutes=2)  # the lease has run out
    assert cleanup(prefix.url, grace=HOUR).plan.empty  # but what it has written is young
    done = cleanup(prefix.url, grace=NO_GRACE)
    assert done.plan.expired == ("dead",)
    assert prefix.runs_with_shards() == {"a"}
    with pytest.raises(RunExpiredError, match="use a new run_id"):
        build(prefix.store, "dead")
    assert prefix.served() == "a"


def start_and_leave(prefix: Prefix, run_id: str, *, requests: int) -> str:
    """A build that is killed after so many requests."""
    left = [requests]

    def stop(call: StoreCall) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(FaultStore(prefix.store, before=stop), run_id)
    return run_id


def test_losing_attempts_of_a_published_run_go_and_its_id_stays(prefix):
    builds(prefix, "a")
    loser = "shards/run_id=a/db=00000/attempt=07-00000000/shard.db"
    prefix.store.put(loser, b"x", content_type=BINARY_TYPE)
    assert cleanup(prefix.url, grace=HOUR).plan.empty
    done = cleanup(prefix.url, grace=NO_GRACE)
    assert [key.name for key in done.plan.keys] == [loser]
    assert done.plan.expired == ()
    assert build(prefix.store, "a").seq == 1  # its rerun is what it was


def test_what_no_run_made_stays(prefix):
    builds(prefix, "a", "b", "c")
    strangers = ["README", "exports/run_id=a/part.parquet", "manifests/latest", "runs/notes.txt", "shards/a.txt"]
    strangers += ["shards/run_id=2025/part.parquet", "shards/run_id=a/_SUCCESS", "shards/run_id=a/db=00000/notes.txt"]
    for name in strangers:
        prefix.store.put(name, b"mine", content_type=BINARY_TYPE)
    prefix.later(days=9)
    cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert {*strangers} <= {*prefix.names()}
    assert {name.split("/")[1] for name in prefix.names("shards/") if "/attempt=" in name} == {"run_id=b", "run_id=c"}


def test_another_writers_snapshots_are_versions_too(prefix):
    for run_id in ("x", "y", "z"):
        reference_publish(prefix.store, run_id)
        prefix.later(hours=2)
    done = cleanup(prefix.url, keep_last=1, grace=NO_GRACE)  # a prefix without a commit of ours
    assert done.seq == 1
    assert prefix.runs_with_shards() == {"y", "z"}
    assert prefix.served() == "z"
    build(prefix.store, "ours")
    prefix.later(hours=2)
    assert prefix.served() == "ours"
    cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert prefix.runs_with_shards() == {"z", "ours"}


def test_what_another_writer_points_at_stays_however_old(prefix):
    builds(prefix, "a")
    name = reference_publish(prefix.store, "x")
    prefix.later(hours=2)
    builds(prefix, "b", "c", "d")
    point_at(prefix.store, name, "x")  # its rollback
    prefix.later(hours=2)
    cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert prefix.served() == "x"
    assert prefix.runs_with_shards() == {"x", "d"}


@pytest.mark.parametrize("after", [f"{COMMITS}{4:020d}.json", f"{OUTCOMES}x.json"])
def test_another_writers_rollback_to_what_is_being_given_up_is_seen_before_the_deletion(prefix, after):
    first = reference_publish(prefix.store, "x")
    prefix.later(hours=2)
    builds(prefix, "a", "b", "c")

    def meanwhile(call: StoreCall) -> None:
        if call.verb == "create" and call.name == after:
            point_at(prefix.store, first, "x")

    with wrapping_stores(lambda _: FaultStore(prefix.store, after=meanwhile)):
        cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert prefix.served() == "x"
    assert lacking(prefix.store, CommitLog(prefix.store).state().served) == []


def test_a_cleanup_that_was_cut_short_is_finished_by_the_next(prefix):
    builds(prefix, "a", "b", "c", "d")
    deleted: list[str] = []

    class Stubborn(FaultStore):
        def delete(self, names) -> None:
            for name in [*names][:3]:
                deleted.append(name)
                self.inner.delete([name])
            raise StoreUnavailableError("gone")

    with wrapping_stores(lambda _: Stubborn(prefix.store)), pytest.raises(StoreUnavailableError):
        cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert len(deleted) == 3
    assert prefix.served() == "d"
    done = cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert done.seq == 6
    assert prefix.runs_with_shards() == {"c", "d"}
    assert not {key.name for key in done.plan.keys} & {*deleted}
    with pytest.raises(RunExpiredError):
        rollback(prefix.url, to="a")


def test_a_rerun_of_a_version_that_was_given_up_is_refused_and_leaves_nothing(prefix):
    builds(prefix, "a", "b", "c")
    cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    before = prefix.names(MANIFESTS)
    with pytest.raises(RunExpiredError):
        build(prefix.store, "a")
    assert prefix.names(MANIFESTS) == before
    assert issubclass(RunExpiredError, RunConflictError)


def test_an_unreadable_version_that_stays_stops_the_cleanup(prefix):
    builds(prefix, "a", "b", "c")
    newest = prefix.names(MANIFESTS)[-1]
    before = prefix.names()
    body = prefix.store.get(newest).body
    prefix.store.put(newest, body[:-1] + b"!", content_type=BINARY_TYPE)
    with pytest.raises(ManifestParseError, match="not what was committed"):
        cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    prefix.store.delete([newest])
    with pytest.raises(SnapshotNotFoundError, match="roll back or publish"):
        cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert prefix.names() == [name for name in before if name != newest]


@pytest.mark.parametrize(
    "wrong", [{"keep_last": 0}, {"keep_last": "3"}, {"keep_last": True}, {"grace": 60}, {"older_than": -HOUR}]
)
def test_a_wrong_request_is_refused(prefix, wrong):
    with pytest.raises(ConfigValidationError, match=next(iter(wrong))):
        cleanup(prefix.url, **wrong)


def test_an_empty_prefix(any_prefix):
    assert cleanup(any_prefix, grace=NO_GRACE).plan.empty


def test_on_every_store(any_prefix):
    """Whole snapshots on real stores; ages are those of the store's own clock."""
    store = open_store(StoreAddress.parse(any_prefix))
    for run_id in ("a", "b", "c"):
        build(store, run_id)
    assert cleanup(any_prefix, keep_last=1).plan.empty  # nothing is a day old
    done = cleanup(any_prefix, keep_last=1, grace=NO_GRACE)
    assert done.seq == 4
    assert {name for name in done.plan.expired if "/" not in name} == {"a"}
    assert not [info.name for info in store.list() if "run_id=a" in info.name]
    assert cleanup(any_prefix, keep_last=1, grace=NO_GRACE).plan.empty


def test_unfinished_uploads_go(s3_prefix, s3_client):
    store = open_store(StoreAddress.parse(s3_prefix))
    build(store, "a")
    bucket = s3_prefix.split("/")[2]
    s3_client.create_multipart_upload(Bucket=bucket, Key="snap/shards/run_id=gone/db=00000/attempt=00-0/shard.db")
    somebodys = "exports/run_id=gone/part.parquet"
    s3_client.create_multipart_upload(Bucket=bucket, Key=f"snap/{somebodys}")
    assert len([*store.pending_uploads()]) == 2
    done = cleanup(s3_prefix, grace=HOUR)  # this server says of every upload that it began in 2010
    assert [upload.name for upload in done.plan.uploads] == ["shards/run_id=gone/db=00000/attempt=00-0/shard.db"]
    assert [upload.name for upload in store.pending_uploads()] == [somebodys]


def test_what_a_killed_writer_left_beside_local_files_goes(tmp_path: Path):
    prefix = tmp_path / "snap"
    build(open_store(StoreAddress.parse(prefix)), "a")
    (prefix / "shards/run_id=b/db=00000/attempt=00-0").mkdir(parents=True)
    left = prefix / "shards/run_id=b/db=00000/attempt=00-0/.shardyfusion-0123"
    left.write_bytes(b"half")
    assert cleanup(prefix, grace=NO_GRACE).plan.empty
    with _a_day_later():
        assert len(cleanup(prefix, grace=HOUR).plan.uploads) == 1
    assert not (prefix / "shards/run_id=b").exists()


def _a_day_later():
    """The store's clock runs ahead, with all its objects as old as they are."""

    class Later(FaultStore):
        def now(self) -> datetime:
            return self.inner.now() + timedelta(days=1)

    return wrapping_stores(Later)


def test_readers_of_what_stays_go_on(tmp_path: Path):
    for number in range(3):
        publish(str(tmp_path), ROWS, run_id=f"run-{number}")
    with ShardedReader(tmp_path) as reader:
        cleanup(tmp_path, keep_last=1, grace=NO_GRACE)
        assert reader.refresh() is False
        assert all(reader.get(key) == value for key, value in ROWS.items())


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_host_clock_that_is_wrong_changes_nothing(hours: int):
    """Everything is as old as the store says, whatever the host believes."""
    prefix = Prefix().later(hours=hours)
    with wrapping_stores(lambda _: prefix.store):
        builds(prefix, "a", "b", "c")
        cleanup(prefix.url, keep_last=1, grace=3 * HOUR)
        assert prefix.runs_with_shards() == {"b", "c"}
        assert cleanup(prefix.url, keep_last=1, grace=3 * HOUR).plan.empty
