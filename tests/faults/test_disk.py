"""Disks that are full or read-only: a clear error, nothing torn, nothing left over, and a rerun that works."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import dask.dataframe as dd
import pytest

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    LocalSlateDbFactory,
    OutputOptions,
    RetryConfig,
    ShardedReader,
    SlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.errors import (
    ConfigValidationError,
    PublishCurrentError,
    PublishManifestError,
    ShardUnavailableError,
    ShardWriteError,
    ShardyfusionError,
    StorageError,
    StoreAccessError,
)
from shardyfusion.storage import LocalStore, StoreAddress, open_store, wrapping_stores
from shardyfusion.testing import FaultStore, StoreCall
from shardyfusion.writer.dask import write_hash_sharded
from tests.faults.small_disks import fill, read_only, small_disk
from tests.writer.frames import contents, make_rows, parquet_frame

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")

ROWS = make_rows(3_000)
OLD = make_rows(50, seed=8)
PAYLOAD = ColumnWriteInput("id", ValueSpec.binary_col("payload"))
ONCE = RetryConfig(max_attempts=1)


def stored(rows: dict[int, bytes]) -> dict[bytes, bytes]:
    return {key.to_bytes(8, "big"): value for key, value in rows.items()}


@pytest.fixture(autouse=True)
def synchronous() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 2048) as directory:
        yield directory


@pytest.fixture
def source(tmp_path: Path) -> dd.DataFrame:
    return parquet_frame(ROWS, tmp_path / "in", 3)


def config_for(prefix: object, tmp_path: Path, **changes: Any) -> HashShardedWriteConfig:
    """A prefix that serves an old snapshot; the config is for the next one."""
    config = HashShardedWriteConfig(
        num_dbs=3, s3_prefix=str(prefix), adapter_factory=SqliteFactory(), shard_retry=ONCE, run_id="old"
    )
    write_hash_sharded(parquet_frame(OLD, tmp_path / "old", 1), config, PAYLOAD)
    return replace(config, run_id="new", **changes)


def debris(directory: Path) -> list[str]:
    """What a crash of a write would leave: temporary files, locks, scratch."""
    return [path.name for path in directory.rglob("*") if path.name.startswith((".shardyfusion-", "shardyfusion-"))]


STAGES = {
    "shard": ("upload", "shards/", ShardyfusionError),
    "seal": ("create", "shards/", ShardyfusionError),
    "outcome": ("create", "runs/outcome/", PublishManifestError),
    "manifest": ("create", "manifests/", PublishManifestError),
    "record": ("create", "commits/", PublishManifestError),
    "pointer": ("replace", "_CURRENT", PublishCurrentError),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_prefix_on_a_full_disk(stage: str, disk: Path, source: dd.DataFrame, tmp_path: Path) -> None:
    verb, prefix, error = STAGES[stage]
    config = config_for(disk / "snap", tmp_path)
    before = {info.name for info in LocalStore(disk / "snap").list()}
    ballast: list[Path] = []

    def full(call: StoreCall) -> None:
        if call.verb == verb and call.name.startswith(prefix) and not ballast:
            ballast.append(fill(disk))

    with wrapping_stores(lambda store: FaultStore(store, before=full)), pytest.raises(error) as caught:
        write_hash_sharded(source, config, PAYLOAD)
    message = str(caught.value)
    assert ballast, "the stage was reached"
    assert f"{disk}/snap/{prefix}" in message
    assert "No space left on device; free some space" in message
    assert debris(disk) == []
    served = ROWS if stage == "pointer" else OLD
    assert contents(config.s3_prefix) == stored(served)
    new = {info.name: info.size for info in LocalStore(disk / "snap").list() if info.name not in before}
    assert all(new.values()), f"an empty, torn object is visible: {new}"
    assert not any(name.startswith(prefix) for name in new if stage not in ("shard", "seal"))
    ballast[0].unlink()
    write_hash_sharded(source, config, PAYLOAD)
    assert contents(config.s3_prefix) == stored(ROWS)
    assert debris(disk) == []


@pytest.mark.parametrize("stage", ["outcome", "record"])
def test_an_error_of_a_full_store_is_told_where_nothing_can_be_mounted(
    stage: str, source: dd.DataFrame, tmp_path: Path
) -> None:
    verb, prefix, error = STAGES[stage]
    config = config_for(tmp_path / "snap", tmp_path)

    def full(call: StoreCall) -> None:
        if call.verb == verb and call.name.startswith(prefix):
            raise StorageError(f"cannot write {call.name}: No space left on device; free some space and run again")

    with (
        wrapping_stores(lambda store: FaultStore(store, before=full)),
        pytest.raises(error, match="free some space"),
    ):
        write_hash_sharded(source, config, PAYLOAD)
    assert contents(config.s3_prefix) == stored(OLD)
    write_hash_sharded(source, config, PAYLOAD)
    assert contents(config.s3_prefix) == stored(ROWS)


def test_slatedb_on_a_full_disk(disk: Path, source: dd.DataFrame, tmp_path: Path) -> None:
    """SlateDB writes by itself, and would try for ever."""
    config = config_for(
        disk / "snap", tmp_path, adapter_factory=SlateDbFactory(deadline_seconds=2, sst_bytes=1024 * 1024), num_dbs=1
    )
    ballast = fill(disk, leave=64 * 1024)
    with pytest.raises(ShardWriteError) as caught:
        write_hash_sharded(source, config, PAYLOAD)
    message = str(caught.value)
    assert f"the disk of {disk}/snap is full" in message, message
    assert "free some space" in message, message
    assert contents(config.s3_prefix) == stored(OLD)
    ballast.unlink()
    write_hash_sharded(source, config, PAYLOAD)
    assert contents(config.s3_prefix) == stored(ROWS)
    assert debris(disk) == []


@pytest.mark.parametrize("factory", [SqliteFactory(), LocalSlateDbFactory(deadline_seconds=2, sst_bytes=1024 * 1024)])
def test_scratch_on_a_full_disk(factory: Any, disk: Path, source: dd.DataFrame, tmp_path: Path) -> None:
    config = config_for(
        tmp_path / "snap",
        tmp_path,
        adapter_factory=factory,
        num_dbs=1,
        output=OutputOptions(local_root=disk / "scratch"),
    )
    ballast = fill(disk, leave=64 * 1024)
    with pytest.raises(ShardWriteError) as caught:
        write_hash_sharded(source, config, PAYLOAD)
    message = str(caught.value)
    assert str(disk / "scratch") in message, message
    assert "full" in message, message
    assert "free some space, or set output.local_root" in message, message
    if isinstance(factory, SqliteFactory):  # SlateDB may still be trying to write, and make its directory anew
        assert list((disk / "scratch").iterdir()) == []
    assert contents(config.s3_prefix) == stored(OLD)
    ballast.unlink()
    write_hash_sharded(source, config, PAYLOAD)
    assert contents(config.s3_prefix) == stored(ROWS)
    deadline = time.monotonic() + 20  # what SlateDB could not write before, it writes now; and then it is removed
    while list((disk / "scratch").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list((disk / "scratch").iterdir()) == []


@pytest.mark.parametrize("factory", [SqliteFactory(), LocalSlateDbFactory()])
def test_a_reader_s_cache_on_a_full_disk(factory: Any, disk: Path, source: dd.DataFrame, tmp_path: Path) -> None:
    prefix = f"memory://{uuid4().hex}/snap"
    write_hash_sharded(source, config_for(prefix, tmp_path, adapter_factory=factory), PAYLOAD)
    key = next(iter(ROWS))
    ballast = fill(disk, leave=8 * 1024)
    with ShardedReader(prefix, local_root=disk / "cache") as reader:
        with pytest.raises(ShardUnavailableError) as caught:
            reader.get(key)
        message = str(caught.value)
        assert str(disk / "cache") in message, message
        assert "No space left on device" in message, message
        assert "free some space" in message, message
        assert list((disk / "cache").iterdir()) == []
        ballast.unlink()
        assert reader.get(key) == ROWS[key]


# -- read-only ---------------------------------------------------------------------------------------------------------


def test_a_read_only_prefix_is_refused_before_any_work(disk: Path, source: dd.DataFrame, tmp_path: Path) -> None:
    config = config_for(disk / "snap", tmp_path)

    def never(part: Any) -> Any:
        raise AssertionError("the input was read")

    frame = source.map_partitions(never, meta=source._meta)
    with read_only(disk):
        with pytest.raises(StoreAccessError, match=f"{disk}/snap/runs/.*Read-only file system"):
            write_hash_sharded(frame, config, PAYLOAD)
        assert contents(config.s3_prefix) == stored(OLD), "reading needs no permission to write"
    assert debris(disk) == []
    write_hash_sharded(source, config, PAYLOAD)
    assert contents(config.s3_prefix) == stored(ROWS)


def test_read_only_scratch_is_refused_before_any_work(disk: Path, source: dd.DataFrame, tmp_path: Path) -> None:
    config = config_for(tmp_path / "snap", tmp_path)
    names = {info.name for info in open_store(config.address()).list()}
    (disk / "there").mkdir()
    with read_only(disk):
        for root in (disk / "there", disk / "not-there"):
            scratch = replace(config, output=OutputOptions(local_root=root))
            with pytest.raises(ConfigValidationError, match=f"local_root '{root}'.*(writable|Read-only)"):
                write_hash_sharded(source, scratch, PAYLOAD)
    assert {info.name for info in open_store(config.address()).list()} == names


def test_a_read_only_cache_is_named(disk: Path, source: dd.DataFrame, tmp_path: Path) -> None:
    prefix = f"memory://{uuid4().hex}/snap"
    write_hash_sharded(source, config_for(prefix, tmp_path), PAYLOAD)
    (disk / "cache").mkdir()
    with (
        read_only(disk),
        ShardedReader(prefix, local_root=disk / "cache") as reader,
        pytest.raises(ShardUnavailableError, match=f"{disk}/cache.*Read-only file system"),
    ):
        reader.get(next(iter(ROWS)))


def test_a_store_on_a_read_only_disk_reads_and_refuses_each_write(disk: Path, tmp_path: Path) -> None:
    store = LocalStore(StoreAddress.parse(disk / "snap").path)
    etag = store.put("runs/a", b"x", content_type="text/plain")
    (tmp_path / "file").write_bytes(b"y")
    with read_only(disk):
        for write in (
            lambda: store.put("runs/a", b"y", content_type="text/plain"),
            lambda: store.create("runs/b", b"y", content_type="text/plain"),
            lambda: store.replace("runs/a", b"y", etag=etag, content_type="text/plain"),
            lambda: store.upload("runs/b", tmp_path / "file", content_type="text/plain"),
            lambda: store.delete(["runs/a"]),
        ):
            with pytest.raises(StoreAccessError, match="Read-only file system"):
                write()
        assert store.get("runs/a").body == b"x"
        assert [info.name for info in store.list()] == ["runs/a"]
        assert store.now().tzinfo is not None
        assert list(store.pending_uploads()) == []
