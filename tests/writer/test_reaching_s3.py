"""A profile, or what the config gives, reaches S3 for manifest, SQLite and SlateDB alike, with nothing else to go by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    LocalSlateDbFactory,
    ShardedReader,
    SlateDbFactory,
    SqliteFactory,
    StaticCredentialProvider,
    ValueSpec,
)
from shardyfusion.writer.dask import write_hash_sharded
from tests.writer.frames import frame_of

BACKENDS = {"sqlite": SqliteFactory(), "slatedb": SlateDbFactory(), "slatedb-local": LocalSlateDbFactory()}


@pytest.fixture(params=["profile", "config"])
def way(request: pytest.FixtureRequest, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the caller passes, in an environment that holds a profile or nothing useful at all."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    if request.param == "profile":
        (tmp_path / "config").write_text(f"[profile etl]\nregion = us-east-1\nendpoint_url = {s3}\n")
        (tmp_path / "credentials").write_text("[etl]\naws_access_key_id = AKIAETL\naws_secret_access_key = hidden\n")
        monkeypatch.setenv("AWS_PROFILE", "etl")
        return {}
    # Wrong on purpose: if anything went by the environment, nothing would answer there.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    return {
        "credential_provider": StaticCredentialProvider("AKIAGIVEN", "hidden"),
        "s3_connection_options": {"endpoint_url": s3, "region_name": "us-east-1"},
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_way_to_reach_s3_serves_every_part(backend: str, s3_prefix: str, way: dict[str, Any]) -> None:
    config = HashShardedWriteConfig(num_dbs=2, s3_prefix=s3_prefix, adapter_factory=BACKENDS[backend], **way)
    write_hash_sharded(frame_of(key=[1, 2], v=["a", "b"]), config, ColumnWriteInput("key", ValueSpec.binary_col("v")))
    with ShardedReader(s3_prefix, **way) as reader:
        assert reader.multi_get([1, 2, 3]) == {1: b"a", 2: b"b", 3: None}
