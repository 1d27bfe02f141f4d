"""Fixtures that all tests share: an S3 server of our own, fresh prefixes, and the shared test data."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _start_moto(log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A process of its own: it shares neither our interpreter lock nor our forks."""
    for _ in range(3):
        port = _free_port()
        command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port)]
        with log.open("ab") as output:
            # Short pages, so that every listing of some length meets a second one.
            environment = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": "50"}
            server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        deadline = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < deadline:
            if _answers(port):
                return server, port
            time.sleep(0.05)
        server.kill()
        server.wait()
    raise RuntimeError(f"moto does not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint URL of an S3 server that lasts for the session. The AWS_* variables point to it, and only to it."""
    directory = tmp_path_factory.mktemp("moto")
    server, port = _start_moto(directory / "moto.log")
    endpoint = f"http://127.0.0.1:{port}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in {
                "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
                "AWS_SECRET_ACCESS_KEY": "test-secret-key",
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONFIG_FILE": str(directory / "no-config"),
                "AWS_SHARED_CREDENTIALS_FILE": str(directory / "no-credentials"),
                "NO_PROXY": "127.0.0.1,localhost",
                "no_proxy": "127.0.0.1,localhost",
            }.items():
                patch.setenv(name, value)
            yield endpoint
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="session")
def s3_client(s3: str):
    """A plain boto3 client, to look behind the back of the code under test."""
    client = boto3.client("s3", endpoint_url=s3)
    yield client
    client.close()


@pytest.fixture
def s3_prefix(s3_client) -> str:
    """`s3://<fresh bucket>/snap`."""
    bucket = f"bucket-{uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/snap"


@pytest.fixture(params=["memory", "local", "s3"])
def any_prefix(request: pytest.FixtureRequest) -> str:
    """A fresh prefix in each kind of store in turn."""
    match request.param:
        case "memory":
            return f"memory://{uuid4().hex}/snap"
        case "local":
            return f"file://{request.getfixturevalue('tmp_path')}/snap"
        case _:
            return request.getfixturevalue("s3_prefix")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of test data that is not part of this repository: format vectors and golden snapshots."""
    given = os.environ.get("SHARDYFUSION_SHARED")
    directory = Path(given) if given else Path(__file__).parents[2] / "shared"
    if not directory.is_dir():
        pytest.skip(f"no shared test data at {directory}; set SHARDYFUSION_SHARED to their directory")
    return directory
