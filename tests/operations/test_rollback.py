"""Serving an earlier version again: what is checked, what is refused, and what it does to builds at work."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shardyfusion.commits import CommitLog, served_manifest
from shardyfusion.errors import (
    ConfigValidationError,
    HeadMovedError,
    ManifestParseError,
    PublishCurrentError,
    RunExpiredError,
    ShardUnavailableError,
    SnapshotNotFoundError,
    StaleBuildError,
    StoreAccessError,
    StoreUnavailableError,
)
from shardyfusion.layout import BINARY_TYPE, COMMITS, MANIFESTS
from shardyfusion.operations import cleanup, rollback
from shardyfusion.reader import ShardedReader
from shardyfusion.storage import ObjectStore, StoreAddress, open_store, wrapping_stores
from shardyfusion.testing import FaultStore, StoreCall, Turns
from tests.operations.protocol_jobs import build, point_at, reference_publish
from tests.reader.snapshots import publish


@pytest.fixture
def store(any_prefix: str) -> ObjectStore:
    store = open_store(StoreAddress.parse(any_prefix))
    for run_id in ("a", "b", "c"):
        build(store, run_id)
    return store


def manifest_name(store: ObjectStore, run_id: str) -> str:
    return next(info.name for info in store.list(MANIFESTS) if f"run_id={run_id}/" in info.name)


def test_to_a_commit_a_run_or_a_manifest(store):
    for number, to in enumerate(["a", 1, "1", f"{store.url}/{manifest_name(store, 'a')}"]):
        ref = rollback(store.url, to=to)
        assert (ref.run_id, ref.seq) == ("a", 4 + 2 * number)
        assert served_manifest(store) == ref
        state = CommitLog(store).state()
        assert state.head is not None
        assert state.pointer is not None
        assert (state.head.kind, state.head.base, state.head.parent[0]) == ("rollback", ref.seq - 1, ref.seq - 1)
        assert state.pointer.seq == ref.seq
        rollback(store.url, to="c")


def test_to_the_previous_version_and_back(store):
    assert rollback(store.url, to="previous").run_id == "b"
    assert rollback(store.url, to="previous").run_id == "c"
    assert rollback(store.url, to="a").run_id == "a"
    assert rollback(store.url, to="previous").run_id == "c"


def test_to_what_is_served_changes_nothing(store):
    before = [info.etag for info in store.list()]
    assert rollback(store.url, to="c").seq == 3
    assert [info.etag for info in store.list()] == before


def test_readers_serve_it_after_a_refresh(tmp_path):
    prefix = str(tmp_path)
    publish(prefix, {1: b"old"}, run_id="a")
    publish(prefix, {1: b"new"}, run_id="b")
    with ShardedReader(prefix) as reader:
        rollback(prefix, to="a")
        assert reader.get(1) == b"new"
        assert reader.refresh()
        assert reader.get(1) == b"old"
        assert reader.snapshot_info().seq == 3


def test_there_is_no_such_version(store):
    for to in ("z", 0, 4, "4", -1, "9" * 5000):
        with pytest.raises(ConfigValidationError, match=r"no version .*'c'"):
            rollback(store.url, to=to)


def test_nothing_to_roll_back_to(any_prefix):
    with pytest.raises(SnapshotNotFoundError, match="no snapshot"):
        rollback(any_prefix, to="previous")
    build(open_store(StoreAddress.parse(any_prefix)), "a")
    with pytest.raises(ConfigValidationError, match="never served another"):
        rollback(any_prefix, to="previous")
    with pytest.raises(ConfigValidationError, match="to is None"):
        rollback(any_prefix, to=None)


def test_a_target_that_is_not_whole_is_refused(store):
    shard = next(i.name for i in store.list("shards/run_id=a/") if i.name.endswith("shard.db"))
    body = store.get(shard).body
    store.put(shard, body + b"!", content_type=BINARY_TYPE)
    with pytest.raises(ShardUnavailableError, match=r"shard 0 of run 'a' is not whole: .* lacks shard.db"):
        rollback(store.url, to="a")
    store.delete([shard])
    with pytest.raises(ShardUnavailableError, match="not whole"):
        rollback(store.url, to="a")
    name = manifest_name(store, "b")
    store.put(name, store.get(name).body[:-1] + b"!", content_type=BINARY_TYPE)
    with pytest.raises(ManifestParseError, match="not what was committed"):
        rollback(store.url, to="b")
    store.delete([name])
    with pytest.raises(ManifestParseError, match="not there"):
        rollback(store.url, to="b")
    assert served_manifest(store).run_id == "c"


def test_what_cleanup_gave_up_is_refused(store):
    cleanup(store.url, keep_last=1, grace=timedelta(0))
    for to in ("a", 1, "1"):
        with pytest.raises(RunExpiredError, match="given up"):
            rollback(store.url, to=to)


def test_what_cleanup_gave_up_of_others_is_refused(any_prefix):
    store = open_store(StoreAddress.parse(any_prefix))
    for run_id in ("x", "y", "z"):
        reference_publish(store, run_id)
    cleanup(any_prefix, keep_last=1, grace=timedelta(0))
    with pytest.raises(RunExpiredError, match="given up 'x'"):
        rollback(any_prefix, to="x")


def test_of_two_manifests_of_one_run_the_newer_is_meant(any_prefix):
    store = open_store(StoreAddress.parse(any_prefix))
    reference_publish(store, "x")
    newer = reference_publish(store, "x")
    reference_publish(store, "y")
    assert rollback(any_prefix, to="x").ref == f"{store.url}/{newer}"


def test_a_rollback_to_the_previous_that_is_cut_short_names_what_finishes_it(store):
    def refuse(call: StoreCall) -> None:
        if call.verb in ("replace", "put"):
            raise StoreAccessError("403")

    with wrapping_stores(lambda inner: FaultStore(inner, before=refuse)), pytest.raises(PublishCurrentError) as caught:
        rollback(store.url, to="previous")
    target = caught.value.facts["manifest_ref"]
    assert f"roll back to {target}" in str(caught.value)
    assert rollback(store.url, to=target).run_id == "b"  # "previous" would be "c" by now
    state = CommitLog(store).state()
    assert state.head is not None
    assert state.pointer is not None
    assert (state.head.seq, state.pointer.seq) == (4, 4)


def test_a_head_that_moved_meanwhile_is_shown(store):
    def meanwhile(call: StoreCall) -> None:
        if call.verb == "create":
            build(store, "d")

    with wrapping_stores(lambda inner: FaultStore(inner, before=meanwhile)), pytest.raises(HeadMovedError) as caught:
        rollback(store.url, to="a")
    assert caught.value.facts["seq"] == 4
    assert "run 'd'" in str(caught.value)
    assert served_manifest(store).run_id == "d"


def test_a_lost_reply_is_no_moved_head(store):
    lost = [StoreUnavailableError("reset")]

    def lose(call: StoreCall) -> None:
        if call.name.startswith(COMMITS) and call.verb == "create" and lost:
            raise lost.pop()

    with wrapping_stores(lambda inner: FaultStore(inner, after=lose)):
        assert rollback(store.url, to="a").seq == 4
    assert not lost


def test_a_build_that_started_before_the_rollback_is_stale(any_prefix):
    store = open_store(StoreAddress.parse(any_prefix))
    for run_id in ("a", "b"):
        build(store, run_id)
    begun = Turns().start("build", lambda job: build(job.store(store), "slow"))
    while not (begun.pending.verb == "create" and "outcome" in begun.pending.name):
        begun.resume()
    rollback(any_prefix, to="a")
    while not begun.ended:
        begun.resume()
    assert isinstance(begun.error, StaleBuildError)
    assert served_manifest(store).run_id == "a"
    assert build(store, "next").seq == 4


def test_another_writers_versions(store):
    x = reference_publish(store, "x")
    reference_publish(store, "y")
    assert served_manifest(store).run_id == "y"
    ref = rollback(store.url, to="b")  # over its pointer
    assert (served_manifest(store).run_id, ref.seq) == ("b", 4)
    assert rollback(store.url, to="previous").run_id == "y"
    assert rollback(store.url, to="x").run_id == "x"
    assert served_manifest(store).sha256 is not None
    point_at(store, manifest_name(store, "y"), "y")  # and its own rollback is the last word again
    assert served_manifest(store).run_id == "y"
    assert rollback(store.url, to=f"{store.url}/{x}").run_id == "x"


def test_a_build_that_was_never_published_is_no_version(store):
    stopped = Turns().start("build", lambda job: build(job.store(store), "half"))
    while not (stopped.pending.verb == "create" and stopped.pending.name.startswith(COMMITS)):
        stopped.resume()
    stopped.kill()
    assert manifest_name(store, "half")
    with pytest.raises(ConfigValidationError, match="no version 'half'"):
        rollback(store.url, to="half")
