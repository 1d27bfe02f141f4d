"""What publishing relies on, over any object store: one chain of commits, and three outcomes of a conditional write."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import timedelta

import pytest

from shardyfusion.commits import BuildStart, CommitLog, CommitRecord, Patience, served_manifest
from shardyfusion.errors import (
    PublishCurrentError,
    PublishUnknownError,
    SnapshotNotFoundError,
    StaleBuildError,
    StoreUnavailableError,
)
from shardyfusion.layout import COMMITS, CURRENT, JSON_TYPE, join_url
from shardyfusion.storage import ObjectStore
from shardyfusion.testing.faults import FaultStore, StoreCall, Verb

Fault = Callable[[StoreCall], None]


def begin(store: ObjectStore, *, later: timedelta = timedelta(0)) -> BuildStart:
    """A build that starts now, or `later`, over what is served now."""
    head = CommitLog(store).state().head
    return BuildStart(base=head.seq if head else 0, started_at=store.now() + later, log=head.log if head else None)


def commit(
    store: ObjectStore, run_id: str, start: BuildStart | None = None, *, retries: int = 3, force: bool = False
) -> CommitRecord:
    """Commit a build that has no shards, by default one that began just now. The pointer stays where it is."""
    return CommitLog(store, patience=patience(retries)).append_build(
        run_id=run_id,
        manifest_ref=join_url(store.url, f"manifests/2026-01-01T00:00:00.000000Z_run_id={run_id}/manifest"),
        manifest_sha256="0" * 64,
        start=start or begin(store),
        check_winners=lambda: None,
        force=force,
    )


def publish(store: ObjectStore, run_id: str) -> CommitRecord:
    """Commit a build and move the pointer to it."""
    record = commit(store, run_id)
    CommitLog(store).advance_pointer(record)
    return record


def patience(retries: int) -> Patience:
    """Gives up after so many repetitions, however long they take."""
    return Patience(deadline_seconds=retries + 1, pause_seconds=0, clock=itertools.count().__next__)


def unanswered(times: int, verb: Verb, name: str) -> Fault:
    """The store gives no answer to the first so many requests of a kind, on objects whose name begins with `name`."""
    left = [times]

    def fault(call: StoreCall) -> None:
        if left[0] and call.verb == verb and call.name.startswith(name):
            left[0] -= 1
            raise StoreUnavailableError(f"no answer to {call}")

    return fault


class CommitLogTests:
    """Provide `store`, an empty one for each test."""

    @pytest.fixture
    def store(self) -> ObjectStore:
        raise NotImplementedError("a fixture `store` returns the store to be tested, empty")

    def test_commits_form_one_chain(self, store: ObjectStore) -> None:
        with pytest.raises(SnapshotNotFoundError, match="no snapshot"):
            served_manifest(store)
        for run_id in ("a", "b", "c"):
            publish(store, run_id)
        records = list(CommitLog(store).records(1, 3))
        assert [record.run_id for record in records] == ["a", "b", "c"]
        assert list(CommitLog(store).history()) == records[::-1]
        assert {record.log for record in records} == {records[0].log}
        served = served_manifest(store)
        assert (served.run_id, served.seq, served.log) == ("c", 3, records[0].log)

    @pytest.mark.parametrize("times", [1, 2])
    @pytest.mark.parametrize("applied", [True, False], ids=["applied", "never-arrived"])
    def test_a_lost_reply_is_neither_a_conflict_nor_a_second_commit(
        self, store: ObjectStore, applied: bool, times: int
    ) -> None:
        fault = unanswered(times, "create", COMMITS)
        faulty = FaultStore(store, after=fault) if applied else FaultStore(store, before=fault)
        assert commit(faulty, "a").seq == 1
        assert [record.run_id for record in CommitLog(store).history()] == ["a"]

    @pytest.mark.parametrize("applied", [True, False], ids=["applied", "never-arrived"])
    def test_without_any_answer_the_outcome_is_unknown_and_a_rerun_finishes(
        self, store: ObjectStore, applied: bool
    ) -> None:
        start, landed = begin(store), list[bool]()

        def silence(call: StoreCall) -> None:
            if call.verb == "create" and applied and not landed:
                landed.append(bool(call.perform()))
            if call.verb == "create" or landed:
                raise StoreUnavailableError(f"no answer to {call}")

        with pytest.raises(PublishUnknownError, match="run_id='a'"):
            commit(FaultStore(store, before=silence), "a", start, retries=1)
        assert commit(store, "a", start).seq == 1
        assert [record.run_id for record in CommitLog(store).history()] == ["a"]

    def test_one_run_id_is_committed_once(self, store: ObjectStore) -> None:
        start = begin(store)
        first = commit(store, "a", start)
        commit(store, "b")
        assert commit(store, "a", start) == first
        assert [record.run_id for record in CommitLog(store).history()] == ["b", "a"]

    def test_a_build_that_was_overtaken_is_stale_unless_forced(self, store: ObjectStore) -> None:
        publish(store, "first")
        slow, fast = begin(store), begin(store, later=timedelta(seconds=1))
        commit(store, "fast", fast)
        with pytest.raises(StaleBuildError, match="'fast'"):
            commit(store, "slow", slow)
        assert commit(store, "slow", slow, force=True).seq == 3

    def test_of_two_builds_at_once_each_has_a_number_of_its_own(self, store: ObjectStore) -> None:
        """The second one takes the number that the first was about to take, and is the older one."""
        slow, fast = begin(store), begin(store, later=timedelta(seconds=1))

        def overtake(call: StoreCall) -> None:
            if call.verb == "create" and CommitLog(store).state().head is None:
                commit(store, "slow", slow)

        assert commit(FaultStore(store, before=overtake), "fast", fast).seq == 2
        assert [record.run_id for record in CommitLog(store).history()] == ["fast", "slow"]

    def test_the_pointer_follows_the_head_and_never_goes_back(self, store: ObjectStore) -> None:
        first = publish(store, "a")
        publish(store, "b")
        CommitLog(store).advance_pointer(first)
        assert json.loads(store.get(CURRENT).body)["seq"] == 2

    def test_the_pointer_survives_lost_replies(self, store: ObjectStore) -> None:
        for number, verb in enumerate(("create", "replace"), start=1):
            record = commit(store, f"r{number}")
            faulty = FaultStore(store, after=unanswered(2, verb, CURRENT))
            CommitLog(faulty, patience=patience(3)).advance_pointer(record)
            assert json.loads(store.get(CURRENT).body)["seq"] == number

    def test_readers_find_the_head_behind_a_pointer_that_lags_or_is_gone(self, store: ObjectStore) -> None:
        publish(store, "a")
        lagging = store.get(CURRENT).body
        record = commit(store, "b")
        faulty = FaultStore(store, before=unanswered(99, "replace", CURRENT))
        with pytest.raises(PublishCurrentError, match="commit 2 is durable"):
            CommitLog(faulty, patience=patience(1)).advance_pointer(record)
        assert store.get(CURRENT).body == lagging
        assert served_manifest(store).run_id == "b"
        store.delete([CURRENT])
        assert served_manifest(store).run_id == "b"
        store.put(CURRENT, lagging, content_type=JSON_TYPE)
        assert served_manifest(store).run_id == "b"
