"""Opening a reader past a manifest that cannot be read: how far, and what it never serves."""

from __future__ import annotations

import json
import logging
from uuid import uuid4

import pytest

from shardyfusion.commits import CommitLog, append_cleanup, manifest_name_of
from shardyfusion.errors import (
    CommitLogError,
    ConfigValidationError,
    ManifestParseError,
    ShardyfusionError,
    StoreAccessError,
    StoreUnavailableError,
)
from shardyfusion.layout import CURRENT, JSON_TYPE, commit_name
from shardyfusion.manifest import ManifestRef
from shardyfusion.operations import rollback
from shardyfusion.reader import ShardedReader
from shardyfusion.storage import ObjectStore, StoreAddress, open_store, wrapping_stores
from shardyfusion.testing.faults import FaultStore, StoreCall
from tests.integrity.published import change
from tests.reader.snapshots import build, commit, publish

DAMAGE = {
    "missing": lambda body: None,
    "empty": lambda body: b"",
    "torn": lambda body: body[: len(body) // 2],
    "changed": lambda body: body[:-1] + b"\1",
    "another": lambda body: b"not a database" * 99,
}


@pytest.fixture
def prefix() -> str:
    return f"memory://{uuid4().hex}/snap"


def store_of(prefix: str) -> ObjectStore:
    return open_store(StoreAddress.parse(prefix))


def spoil(prefix: str, ref: ManifestRef, damage: str = "torn") -> bytes:
    name = manifest_name_of(store_of(prefix), ref.ref)
    return change(prefix, name, DAMAGE[damage](store_of(prefix).get(name).body))


def history(prefix: str, count: int) -> list[ManifestRef]:
    """Runs 1 to `count`; key 1 holds the run's number."""
    return [publish(prefix, {1: b"%d" % n, 2: b"x"}, run_id=f"run-{n}") for n in range(1, count + 1)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_readable_snapshot_is_served_and_says_so(any_prefix, damage, caplog):
    refs = history(any_prefix, 2)
    spoil(any_prefix, refs[1], damage)
    with caplog.at_level(logging.WARNING), ShardedReader(any_prefix) as reader:
        assert reader.multi_get([1, 2, 3]) == {1: b"1", 2: b"x", 3: None}
        info = reader.snapshot_info()
        assert (info.run_id, info.seq, info.fallback_from) == ("run-1", 1, refs[1].ref)
        assert f"instead of the unreadable {refs[1].ref}" in repr(info)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "older run 'run-1' (commit 1)" in warning
    assert refs[1].ref in warning
    with pytest.raises(ManifestParseError):
        ShardedReader(any_prefix, max_fallbacks=0)


@pytest.mark.parametrize(
    ("bad", "options", "served"),
    [(3, {}, b"2"), (4, {}, None), (4, {"max_fallbacks": 4}, b"1"), (2, {"max_fallbacks": 1}, None)],
)
def test_how_far(prefix, bad, options, served):
    refs = history(prefix, 5)
    for ref in refs[-bad:]:
        spoil(prefix, ref)
    if served is None:
        with pytest.raises(ManifestParseError, match="run-5"):
            ShardedReader(prefix, **options)
    else:
        with ShardedReader(prefix, **options) as reader:
            assert reader.get(1) == served
            assert reader.snapshot_info().fallback_from == refs[-1].ref


@pytest.mark.parametrize("value", [-1, 1.5, True, None])
def test_max_fallbacks_is_a_number(prefix, value):
    history(prefix, 1)
    with pytest.raises(ConfigValidationError, match="max_fallbacks"):
        ShardedReader(prefix, max_fallbacks=value)


def test_what_was_rolled_back_is_never_served(prefix):
    refs = history(prefix, 4)
    rollback(prefix, to=2)
    spoil(prefix, refs[1])
    with ShardedReader(prefix) as reader:
        assert reader.get(1) == b"1"
        assert reader.snapshot_info().seq == 1
    # A rollback of a rollback: commit 6 serves run 4 again, and before it, run 2 was served, which is unreadable.
    rollback(prefix, to=4)
    spoil(prefix, refs[3])
    with ShardedReader(prefix) as reader:
        assert reader.get(1) == b"3", "run 4 came after run 3"
    rollback(prefix, to=1)
    spoil(prefix, refs[0])
    with pytest.raises(ManifestParseError, match="run-1"):
        ShardedReader(prefix)


def expire(prefix: str, *refs: ManifestRef) -> None:
    """What a cleanup announces, without deleting anything yet."""
    log = CommitLog(store_of(prefix))
    record = append_cleanup(
        log, log.state(), [item for ref in refs for item in (ref.run_id, manifest_name_of(store_of(prefix), ref.ref))]
    )
    assert record is not None
    log.advance_pointer(record)


def test_what_a_cleanup_has_given_up_is_never_served(prefix):
    refs = history(prefix, 4)
    expire(prefix, refs[0], refs[1])
    with ShardedReader(prefix) as reader:
        assert reader.snapshot_info().fallback_from is None
    spoil(prefix, refs[3])
    with ShardedReader(prefix) as reader:
        assert reader.get(1) == b"3", "it was kept"
    spoil(prefix, refs[2])
    with pytest.raises(ManifestParseError, match="run-4"):
        ShardedReader(prefix, max_fallbacks=9)


@pytest.mark.parametrize("error", [StoreUnavailableError("503"), StoreAccessError("403")])
@pytest.mark.parametrize("failing", ["run-2", "run-3"])
def test_a_store_that_does_not_answer_is_no_reason(prefix, error, failing):
    """Neither when the newest manifest is asked for, nor on the way back."""
    refs = history(prefix, 3)
    if failing == "run-2":
        spoil(prefix, refs[2])
    asked: list[str] = []

    def fail(call: StoreCall) -> None:
        if call.verb == "get" and "/manifest" in call.name:
            asked.append(call.name)
            if failing in call.name:
                raise error

    with wrapping_stores(lambda store: FaultStore(store, before=fail)), pytest.raises(type(error)):
        ShardedReader(prefix)
    assert failing in asked[-1]


@pytest.mark.parametrize("seq", [3, 2])
@pytest.mark.parametrize(
    "damage",
    [lambda body: body.replace(b'"seq"', b'"sep"'), lambda body: b"", lambda body: body.replace(b"run-", b"ruN-")],
)
def test_a_damaged_commit_record_is_an_error(prefix, seq, damage):
    """The newest one hides what is served; one below it hides what was rolled back or given up."""
    refs = history(prefix, 3)
    name = commit_name(seq)
    change(prefix, name, damage(store_of(prefix).get(name).body))
    if seq == 2:
        with ShardedReader(prefix) as reader:
            assert reader.get(1) == b"3"
        spoil(prefix, refs[2])
    with pytest.raises(ManifestParseError, match="commit record"):
        ShardedReader(prefix)


def test_a_log_that_is_no_chain_ends_it(prefix):
    refs = history(prefix, 3)
    spoil(prefix, refs[2])
    change(prefix, commit_name(2), None)
    with pytest.raises(CommitLogError, match="commit 3 does not follow"):
        ShardedReader(prefix)


def test_refresh_never_falls_back(prefix):
    refs = history(prefix, 2)
    body = spoil(prefix, refs[1])
    with ShardedReader(prefix) as reader:
        for _ in range(2):
            with pytest.raises(ManifestParseError):
                reader.refresh()
            assert reader.get(1) == b"1"
            assert reader.snapshot_info().fallback_from == refs[1].ref
        change(prefix, manifest_name_of(store_of(prefix), refs[1].ref), body)
        assert reader.refresh() is True
        assert (reader.get(1), reader.snapshot_info().fallback_from) == (b"2", None)
        spoil(prefix, refs[1])
        assert reader.refresh() is False
        spoil(prefix, publish(prefix, {1: b"3"}, run_id="run-3"))
        with pytest.raises(ShardyfusionError):
            reader.refresh()
        assert (reader.get(1), reader.snapshot_info().fallback_from) == (b"2", None)


# -- with another writer -----------------------------------------------------------------------------------------------


def point_at(prefix: str, ref: ManifestRef) -> None:
    """`_CURRENT` as the reference writes it."""
    fields = {
        "format_version": 1,
        "manifest_content_type": "application/x-sqlite3",
        "manifest_ref": ref.ref,
        "run_id": ref.run_id,
        "updated_at": "2026-11-20T10:00:00.000000Z",
    }
    store_of(prefix).put(CURRENT, json.dumps(fields).encode(), content_type=JSON_TYPE)


def test_without_commits_manifests_are_listed_but_none_newer_than_what_is_served(prefix):
    refs = history(prefix, 4)
    store = store_of(prefix)
    store.delete([info.name for info in store.list("commits/")])
    point_at(prefix, refs[2])
    spoil(prefix, refs[2])
    with ShardedReader(prefix) as reader:
        assert reader.get(1) == b"2", "run 4 may never have been published"
        assert (reader.snapshot_info().seq, reader.snapshot_info().fallback_from) == (None, refs[2].ref)
        with pytest.raises(ManifestParseError):
            reader.refresh()
        point_at(prefix, refs[3])
        assert reader.refresh()
        assert (reader.get(1), reader.snapshot_info().fallback_from) == (b"4", None)


def test_past_what_another_writer_published_over_the_log(prefix):
    history(prefix, 2)
    foreign = commit(prefix, build(prefix, {1: b"theirs"}, run_id="theirs"), advance=False)
    store_of(prefix).delete([commit_name(3)])
    point_at(prefix, foreign)
    with ShardedReader(prefix) as reader:
        assert reader.get(1) == b"theirs"
    spoil(prefix, foreign)
    with ShardedReader(prefix) as reader:
        assert (reader.get(1), reader.snapshot_info().seq) == (b"2", 2)
