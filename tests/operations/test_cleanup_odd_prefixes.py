"""Cleanups of prefixes that have been damaged, copied, or were written by others."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shardyfusion.commits import CommitLog, snapshots_before
from shardyfusion.errors import CommitLogError, ManifestParseError
from shardyfusion.layout import BINARY_TYPE, COMMITS, MANIFESTS
from shardyfusion.operations import cleanup, rollback
from shardyfusion.storage import wrapping_stores
from tests.operations.prefixes import NO_GRACE, Prefix, builds
from tests.operations.protocol_jobs import point_at, reference_publish


@pytest.mark.parametrize(
    ("pointer_at", "lost"), [(4, {1, 2, 3, 4}), (4, {3, 4}), (4, {4}), (4, {3}), (4, {1}), (2, {3}), (2, {2}), (2, {1})]
)
def test_a_log_that_has_lost_commits_stops_the_cleanup_and_a_rollback(prefix, lost, pointer_at):
    """What the missing commits published must not pass for builds that never were."""
    builds(prefix, "a", "b")
    pointer = prefix.store.get("_CURRENT").body
    builds(prefix, "c", "d")
    if pointer_at == 2:
        prefix.store.put("_CURRENT", pointer, content_type=BINARY_TYPE)
    prefix.store.delete(f"{COMMITS}{seq:020d}.json" for seq in lost)
    before = prefix.names()
    with pytest.raises(CommitLogError):
        cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    with pytest.raises(CommitLogError):
        rollback(prefix.url, to="a")
    assert prefix.names() == before


def test_a_prefix_that_has_lost_both_its_log_and_its_pointer_is_left_alone(prefix):
    builds(prefix, "a", "b", "c")
    prefix.store.delete([*prefix.names(COMMITS), "_CURRENT"])
    before = prefix.names()
    with pytest.raises(CommitLogError, match="run 'c' says that it has published"):
        cleanup(prefix.url, grace=NO_GRACE)
    assert prefix.names() == before


def test_a_copy_whose_objects_were_made_in_any_order_has_the_same_history(prefix):
    builds(prefix, "a", "b", "c", "d")
    copy = Prefix()
    for seq in (4, 2, 1, 3):
        name = f"{COMMITS}{seq:020d}.json"
        copy.store.put(name, prefix.store.get(name).body, content_type=BINARY_TYPE)
        copy.later(minutes=1)
    for name in prefix.names():
        if not name.startswith(COMMITS):
            copy.store.put(name, prefix.store.get(name).body, content_type=BINARY_TYPE)
    copy.later(hours=1)
    with wrapping_stores(lambda _: copy.store):
        cleanup(copy.url, keep_last=2, grace=NO_GRACE)
        assert copy.runs_with_shards() == {"c", "d"}
        assert rollback(copy.url, to="previous").run_id == "c"


def test_a_pointer_that_named_no_manifest_is_no_obstacle_once_it_is_replaced(prefix):
    builds(prefix, "a")
    point_at(prefix.store, "no/manifest", "x")
    with pytest.raises(ManifestParseError, match="is not the URL of a manifest"):
        cleanup(prefix.url, grace=NO_GRACE)
    prefix.later(hours=1)
    builds(prefix, "b", "c")
    cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert prefix.runs_with_shards() == {"b", "c"}


def test_a_pointer_that_names_the_wrong_run_gives_up_no_other(prefix):
    builds(prefix, "a")
    manifest = prefix.names(MANIFESTS)[0]
    prefix.store.put("shards/run_id=a/db=00000/attempt=09-00000000/shard.db", b"lost", content_type=BINARY_TYPE)
    point_at(prefix.store, manifest, "another")
    prefix.later(hours=2)
    done = cleanup(prefix.url, keep_last=1, grace=NO_GRACE)
    assert ([key.size for key in done.plan.keys], done.plan.expired) == ([4], ())


def test_a_reader_of_another_writers_prefix_can_still_fall_back_after_a_cleanup(prefix):
    for run_id in ("x", "y", "z"):
        reference_publish(prefix.store, run_id)
        prefix.later(hours=2)
    assert cleanup(prefix.url, keep_last=2, grace=NO_GRACE).seq == 1
    served = CommitLog(prefix.store).state().served
    assert [ref.run_id for ref in snapshots_before(prefix.store, served)] == ["y"]


@pytest.mark.parametrize("age", [timedelta(days=10**6), timedelta.max])
def test_an_age_longer_than_the_calendar_keeps_everything(prefix, age):
    builds(prefix, "a", "b", "c")
    assert cleanup(prefix.url, keep_last=1, grace=age).plan.empty
    assert cleanup(prefix.url, keep_last=1, older_than=age, grace=NO_GRACE).plan.empty
