"""While shards are on their way to the store, their worker or thread builds the next one; what is on its way beside is
bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    """How many shards have been begun, and how many are being uploaded."""

    begun = 0
    uploading = 0
    most_uploading = 0
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
    Building.begun = Building.uploading = Building.most_uploading = 0
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


def test_an_upload_that_fails_is_tried_again(one_thread: None, config: Any, tmp_path: Path) -> None:
    failed: set[str] = set()

    def before(call: StoreCall) -> None:
        shard = call.name.split("/")[2] if call.verb == "upload" else ""
        if shard and shard not in failed:
            failed.add(shard)
            raise StoreUnavailableError(f"cannot upload {call.name}: the network blinked")

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
        first = not failures or failures[0] == call.name.split("/")[2]
        if not first:
            assert failed.wait(timeout=20)
            return
        failures.append(call.name.split("/")[2])
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
