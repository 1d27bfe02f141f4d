"""While shards are on their way to the store, their worker or thread builds the next one; what is on its way beside is
bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import dask
import pytest
from distributed import Client, LocalCluster

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    RetryConfig,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.errors import StoreUnavailableError
from shardyfusion.shard_contract import ShardTarget
from shardyfusion.storage.opening import wrapping_stores
from shardyfusion.testing import FaultStore, StoreCall
from shardyfusion.writer.dask import overlap, write_hash_sharded
from tests.writer.frames import contents, make_rows, parquet_frame

PAYLOAD = ColumnWriteInput("id", ValueSpec.binary_col("payload"))
ROWS = make_rows(1_000)
SHARDS = 6


@pytest.fixture(params=["distributed", "threads"])
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of a worker in this process, so that its stores can be wrapped, or of the threaded scheduler."""
    if request.param == "threads":
        with dask.config.set(scheduler="threads", num_workers=1):
            yield
        return
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster),
        dask.config.set(scheduler=None),
    ):
        yield


class Building:
    """How many shards have been begun, are held, and are being uploaded."""

    begun = 0
    uploading = 0
    most_uploading = 0
    held: ClassVar[set[int]] = set()
    most_held = 0
    change = threading.Condition()


@dataclass(frozen=True)
class CountingFactory(SqliteFactory):
    def open(self, target: Any) -> Any:
        with Building.change:
            Building.begun += 1
            Building.change.notify_all()
        return super().open(target)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HashShardedWriteConfig:
    monkeypatch.setattr(overlap, "FAR", ("file",))
    Building.begun = Building.uploading = Building.most_uploading = Building.most_held = 0
    Building.held.clear()
    return HashShardedWriteConfig(
        num_dbs=SHARDS,
        s3_prefix=tmp_path / "snap",
        adapter_factory=CountingFactory(),
        shard_retry=RetryConfig(max_attempts=2, initial_backoff_seconds=0.01),
    )


@pytest.mark.parametrize(("shards", "bytes_", "most"), [(2, 2**20, 3), (SHARDS, 1, 2)])
def test_one_thread_builds_while_it_uploads(
    one_thread: None,
    config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shards: int,
    bytes_: int,
    most: int,
) -> None:
    """So many on their way beside, and one that keeps its place; what is too large for the rest goes alone."""
    monkeypatch.setattr(overlap, "MOST_SHARDS", shards)
    monkeypatch.setattr(overlap, "MOST_BYTES", bytes_)
    uploads: list[str] = []
    overlapped: list[bool] = []

    def before(call: StoreCall) -> None:
        if call.verb != "upload":
            return
        with Building.change:
            Building.uploading += 1
            Building.most_uploading = max(Building.most_uploading, Building.uploading)
            uploads.append(call.name)
            if len(uploads) == 1:  # and others begin while it waits
                overlapped.append(Building.change.wait_for(lambda: Building.begun > 1, timeout=20))

    def after(call: StoreCall) -> None:
        if call.verb == "upload":
            with Building.change:
                Building.uploading -= 1

    frame = parquet_frame(ROWS, tmp_path / "in", 2)
    with wrapping_stores(lambda store: FaultStore(store, before=before, after=after)):
        write_hash_sharded(frame, config, PAYLOAD)
    assert overlapped == [True], "the second shard was begun while the first one was being uploaded"
    assert Building.most_uploading <= most
    assert len(contents(config.s3_prefix)) == len(ROWS)


def fail_first_uploads(failed: set[str], call: StoreCall) -> None:
    """That of each shard, which is added to those that failed."""
    shard = call.name.split("/")[2] if call.verb == "upload" else ""
    if shard and shard not in failed:
        failed.add(shard)
        raise StoreUnavailableError(f"cannot upload {call.name}: the network blinked")


def test_an_upload_that_fails_is_tried_again(one_thread: None, config: Any, tmp_path: Path) -> None:
    failed: set[str] = set()
    before = partial(fail_first_uploads, failed)

    with wrapping_stores(lambda store: FaultStore(store, before=before)):
        result = write_hash_sharded(parquet_frame(ROWS, tmp_path / "in", 2), config, PAYLOAD)
    assert len(failed) == SHARDS
    assert set(result.attempts.values()) == {2}
    assert len(contents(config.s3_prefix)) == len(ROWS)


def test_after_an_error_on_threads_nothing_more_is_begun(config: Any, tmp_path: Path) -> None:
    """The first shard fails for good while others, of which so many may be on their way, wait for it to."""
    failures: list[str] = []
    failed = threading.Event()

    def before(call: StoreCall) -> None:
        if call.verb != "upload":
            return
        shard = call.name.split("/")[2]
        with Building.change:
            if first := not failures or failures[0] == shard:
                failures.append(shard)
        if not first:
            assert failed.wait(timeout=20)
            return
        if len(failures) == config.shard_retry.max_attempts:
            failed.set()
        raise StoreUnavailableError(f"cannot upload {call.name}: the network is down")

    many = replace(config, num_dbs=100)
    with (
        dask.config.set(scheduler="threads", num_workers=1),
        wrapping_stores(lambda store: FaultStore(store, before=before)),
        pytest.raises(StoreUnavailableError, match="the network is down"),
    ):
        write_hash_sharded(parquet_frame(ROWS, tmp_path / "in", 2), many, PAYLOAD)
    assert len(failures) == 2
    assert Building.begun < 2 * overlap.MOST_SHARDS


@dataclass(frozen=True)
class HeldFactory(CountingFactory):
    """Notes how many shards are being built or on their way, from when their first attempt is opened."""

    def open(self, target: Any) -> Any:
        with Building.change:
            Building.held.add(target.db_id)
            Building.most_held = max(Building.most_held, len(Building.held))
        return super().open(target)


def test_no_more_are_held_when_uploads_fail(one_thread: None, config: Any, tmp_path: Path) -> None:
    """A shard that is built again after its upload failed is still one of those on their way."""
    failed: set[str] = set()
    before = partial(fail_first_uploads, failed)

    def after(call: StoreCall) -> None:
        if call.name.endswith("/seal.json"):
            with Building.change:
                Building.held.discard(int(call.name.split("/")[2].removeprefix("db=")))

    many = replace(
        config,
        num_dbs=60,
        adapter_factory=HeldFactory(),
        shard_retry=RetryConfig(max_attempts=2, initial_backoff_seconds=0.2),
    )
    with wrapping_stores(lambda store: FaultStore(store, before=before, after=after)):
        result = write_hash_sharded(parquet_frame(ROWS, tmp_path / "in", 2), many, PAYLOAD)
    assert len(failed) == len(result.winners) > 50
    assert 2 < Building.most_held <= overlap.MOST_SHARDS + 2


def test_the_first_error_is_not_kept_waiting_on_threads(config: Any, tmp_path: Path) -> None:
    """Not even by a shard of a lower number that is still on its way when all have been begun."""
    slow, raised = threading.Event(), threading.Event()

    def before(call: StoreCall) -> None:
        shard = call.name.split("/")[2] if call.verb == "upload" else ""
        if shard == "db=00000":
            slow.set()
            assert raised.wait(timeout=20), "the write waited for it"
        elif shard == "db=00001":
            assert slow.wait(timeout=20)
            raise StoreUnavailableError(f"cannot upload {call.name}: the network is down")

    few = replace(config, num_dbs=3, shard_retry=RetryConfig(max_attempts=1))
    with (
        dask.config.set(scheduler="threads", num_workers=2),
        wrapping_stores(lambda store: FaultStore(store, before=before)),
        pytest.raises(StoreUnavailableError, match="the network is down"),
    ):
        write_hash_sharded(parquet_frame(ROWS, tmp_path / "in", 2), few, PAYLOAD)
    raised.set()


def test_a_seal_is_waited_for_like_an_upload(one_thread: None, config: Any, tmp_path: Path) -> None:
    overlapped: list[bool] = []

    def before(call: StoreCall) -> None:
        if call.name.endswith("/seal.json") and call.verb == "create":
            with Building.change:
                if not overlapped:
                    overlapped.append(Building.change.wait_for(lambda: Building.begun > 1, timeout=20))

    with (
        pytest.MonkeyPatch.context() as patch,
        wrapping_stores(lambda store: FaultStore(store, before=before)),
    ):
        patch.setattr(ShardTarget, "uploading", lambda target: target.clock.stage("upload"))  # stays in its place
        write_hash_sharded(parquet_frame(ROWS, tmp_path / "in", 2), config, PAYLOAD)
    assert overlapped == [True]


CALLER: ContextVar[str] = ContextVar("CALLER", default="nobody")


@dataclass(frozen=True)
class CalledFactory(SqliteFactory):
    caller: str = ""

    def open(self, target: Any) -> Any:
        assert CALLER.get() == self.caller
        return super().open(target)


def test_shards_are_built_in_the_context_of_dask_s_tasks(config: Any, tmp_path: Path) -> None:
    """Newer releases of Dask hand the context of the caller to their threads."""
    token = CALLER.set("the caller")
    try:
        with dask.config.set(scheduler="threads", num_workers=2):
            (caller,) = dask.compute(dask.delayed(CALLER.get)())
            factory = CalledFactory(caller=caller)
            write_hash_sharded(
                parquet_frame(ROWS, tmp_path / "in", 2), replace(config, adapter_factory=factory), PAYLOAD
            )
    finally:
        CALLER.reset(token)
