"""Readers behind lagging pointers, without permission to list, and over replaced logs; builds that were overtaken."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from shardyfusion import ShardedReader
from shardyfusion.commits import CommitLog, served_manifest
from shardyfusion.errors import StaleBuildError, StoreAccessError
from shardyfusion.layout import COMMITS, CURRENT, JSON_TYPE
from shardyfusion.storage import ObjectInfo, ObjectStore, StoredObject, wrapping_stores
from shardyfusion.testing import FaultStore, StoreCall
from tests.protocol.tiny_writes import (
    PUTS,
    deletions,
    faults,
    first,
    history,
    next_tick,
    runs_of,
    served_version,
    store_of,
    write,
)


def leave_behind(prefix: str, commits: int) -> None:
    """Publish so many more, and put `_CURRENT` back to what it was."""
    store = store_of(prefix)
    pointer = store.get(CURRENT).body
    for number in range(commits):
        write(prefix, f"newer-{number}")
    store.put(CURRENT, pointer, content_type=JSON_TYPE)


def test_a_pointer_that_lags_five_records_hides_nothing(any_prefix: str) -> None:
    write(any_prefix, "old")
    with ShardedReader(any_prefix) as reader:
        leave_behind(any_prefix, 5)
        assert reader.get(1) == b"old-1"
        assert reader.refresh()
        assert (reader.snapshot_info().seq, reader.get(1)) == (6, b"newer-4-1")
        assert not reader.refresh()
    assert served_version(any_prefix) == "newer-4"


class NoListing(FaultStore):
    """S3 as it looks to someone who may read objects and not list them: what is absent is denied."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner, before=self._deny)

    def _deny(self, call: StoreCall) -> None:
        if call.verb == "list" or (call.verb in ("get", "head") and self.inner.head(call.name) is None):
            raise StoreAccessError(f"{call}: HTTP 403 AccessDenied")


def test_a_reader_that_may_not_list_finds_the_head(any_prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    write(any_prefix, "old")
    with wrapping_stores(NoListing), ShardedReader(any_prefix) as reader:
        assert reader.get(1) == b"old-1"
        assert not reader.refresh()
        with wrapping_stores(lambda store: store.inner):  # whoever publishes may do everything
            leave_behind(any_prefix, 5)
        assert reader.refresh()
        assert (reader.snapshot_info().seq, reader.get(1)) == (6, b"newer-4-1")
    assert "no permission to read commit 7; taken as absent" in caplog.text


@pytest.mark.parametrize("commits", [1, 3, 6], ids=["shorter", "as-long", "longer"])
def test_a_reader_starts_anew_when_the_log_is_another_one(commits: int, memory_prefix: str) -> None:
    store = store_of(memory_prefix)
    for number in range(3):
        write(memory_prefix, f"old-{number}")
    with ShardedReader(memory_prefix) as reader:
        assert reader.snapshot_info().seq == 3
        old = history(memory_prefix)[-1].to_ref()
        store.delete([info.name for info in store.list(COMMITS)])
        store.delete([CURRENT])
        for number in range(commits):
            write(memory_prefix, f"new-{number}")
        assert reader.refresh()
        assert (reader.snapshot_info().seq, reader.get(1)) == (commits, f"new-{commits - 1}-1".encode())
    served = served_manifest(store, after=old)
    assert (served.seq, served.log != old.log) == (commits, True)


def test_a_pointer_that_outlived_its_log_is_moved_to_the_new_one(memory_prefix: str) -> None:
    """Its number is of another log, so that it may be the higher one."""
    store = store_of(memory_prefix)
    for number in range(3):
        write(memory_prefix, f"old-{number}")
    store.delete([info.name for info in store.list(COMMITS)])
    result = write(memory_prefix, "new")
    state = CommitLog(store).state()
    assert state.pointer
    assert state.head
    assert state.pointer.ref == result.manifest_ref
    assert (state.pointer.seq, state.pointer.ref.log) == (1, state.head.log)


# -- order ---------------------------------------------------------------------------------------------------------


class OtherClock(FaultStore):
    """A store whose clock is off; that ours is off against it by as much the other way is the same thing."""

    offset = timedelta()

    def now(self) -> datetime:
        return super().now() + self.offset

    def get(self, name: str) -> StoredObject:
        stored = super().get(name)
        return StoredObject(self._shifted(stored.info), stored.body)

    def head(self, name: str) -> ObjectInfo | None:
        info = super().head(name)
        return info and self._shifted(info)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (self._shifted(info) for info in super().list(prefix))

    def _shifted(self, info: ObjectInfo) -> ObjectInfo:
        return ObjectInfo(info.name, info.size, info.modified + self.offset, info.etag)


class HourAhead(OtherClock):
    offset = timedelta(hours=1)


class HourBehind(OtherClock):
    offset = timedelta(hours=-1)


@pytest.mark.parametrize(
    ("store", "clock"),
    [("memory", FaultStore), ("memory", HourAhead), ("local", HourAhead), ("local", HourBehind), ("s3", HourBehind)],
)
def test_order_is_by_start_whatever_the_hosts_clock_says(
    store: str, clock: type[FaultStore], request: pytest.FixtureRequest
) -> None:
    """An overtaken writer is stale, with its run id again too; `force` publishes it; the next build needs no force."""
    prefix = request.getfixturevalue(f"{store}_prefix")
    with wrapping_stores(clock):
        write(prefix, "first")

        def overtake(call: StoreCall) -> None:
            next_tick(prefix)
            write(prefix, "overtaking")

        with faults(first(1, PUTS["outcome"], overtake)) as calls, pytest.raises(StaleBuildError, match="force=True"):
            write(prefix, "slow")
        assert deletions(calls) == []
        assert served_version(prefix) == "overtaking"
        next_tick(prefix)
        with pytest.raises(StaleBuildError):
            write(prefix, "slow")
        assert write(prefix, "slow", force=True).reused
        assert served_version(prefix) == "slow"
        write(prefix, "next")
        assert runs_of(prefix) == ["first", "overtaking", "slow", "next"]
        assert served_version(prefix) == "next"
        offset = getattr(clock, "offset", timedelta())
        for record in history(prefix):
            ahead = record.started_at - record.committed_at
            assert abs(ahead - offset) < timedelta(minutes=20), "started_at is the store's time"
