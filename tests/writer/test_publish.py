"""From sealed shards to a served snapshot: what is published, what a rerun does, and who wins."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardyfusion import (
    CelShardedWriteConfig,
    ColumnWriteInput,
    HashShardedWriteConfig,
    KeyEncoding,
    LocalSlateDbFactory,
    OutputOptions,
    ShardedReader,
    SlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.commits import CommitLog
from shardyfusion.config import WriteConfig
from shardyfusion.errors import (
    ConfigValidationError,
    PublishManifestError,
    RunConflictError,
    ShardCoverageError,
    StaleBuildError,
)
from shardyfusion.layout import run_directory
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.writer.dask import BuildResult, write_cel_sharded, write_hash_sharded
from tests.writer.frames import contents, frame_of, make_rows, object_names, parquet_frame

BINARY = ColumnWriteInput("key", ValueSpec.binary_col("v"))
BACKENDS = {"sqlite": SqliteFactory(), "slatedb": SlateDbFactory(), "slatedb-local": LocalSlateDbFactory()}


def simple(offset: int = 0) -> Any:
    return frame_of(key=[1, 2, 3, 4], v=[f"v{i + offset}" for i in range(4)])


def in_directory(directory: Path, **changes: Any) -> HashShardedWriteConfig:
    return HashShardedWriteConfig(
        **{"num_dbs": 3, "adapter_factory": SqliteFactory(), "s3_prefix": directory, **changes}
    )


def log_of(prefix: Any) -> CommitLog:
    return CommitLog(open_store(StoreAddress.parse(str(prefix))))


def test_a_second_write_replaces_the_first_and_both_are_history(config: HashShardedWriteConfig) -> None:
    first = write_hash_sharded(simple(), config, BINARY)
    with ShardedReader(config.s3_prefix) as reader:
        second = write_hash_sharded(simple(10), config, BINARY)
        assert reader.get(1) == b"v0", "an open reader keeps its snapshot"
        assert reader.refresh()
        assert reader.get(1) == b"v10"
    records = list(log_of(config.s3_prefix).history())
    assert [record.seq for record in records] == [2, 1]
    assert [record.run_id for record in records] == [second.run_id, first.run_id]
    assert records[0].parent == (1, records[1].write_id)
    assert records[0].log == records[1].log
    assert (second.manifest_ref.seq, second.manifest_ref.ref) == (2, records[0].manifest_ref)


def test_the_result_says_what_was_built(config: HashShardedWriteConfig) -> None:
    result = write_hash_sharded(simple(), config, BINARY)
    assert (result.rows, result.input_rows, result.payload_bytes, result.num_dbs) == (4, 4, 4 * 8 + 4 * 2, 3)
    assert result.db_bytes == sum(winner.db_bytes for winner in result.winners) > 0
    assert result.attempts == {winner.db_id: 1 for winner in result.winners}
    assert result.seconds.total >= result.seconds.build > 0
    assert repr(result).startswith(f"BuildResult(run_id={result.run_id!r}, 4 rows in ")
    assert repr(result).endswith(result.manifest_ref.ref)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("store", ["local", "s3"])
def test_what_is_published_keeps_to_the_format(
    backend: str, store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The interop checklist of the on-store format, point by point, on what we wrote."""
    prefix = request.getfixturevalue("s3_prefix") if store == "s3" else str(tmp_path / "snap")
    config = HashShardedWriteConfig(
        num_dbs=11, s3_prefix=prefix, adapter_factory=BACKENDS[backend], custom={"team": "x"}
    )
    result = write_hash_sharded(simple(), config, BINARY)
    sharding = {
        "cel_columns": None, "cel_expr": None, "hash_algorithm": "xxh3_64", "routing_values": None, "strategy": "hash",
    }  # fmt: skip
    assert result.num_dbs == 11
    check_format(config, result, backend, sharding)


@pytest.mark.parametrize(
    ("options", "values"),
    [({"num_dbs": 11}, None), ({"routing_values": [*range(11)]}, [*range(11)]), ({"infer_routing_values_from_data": True}, [1, 2, 3, 4])],
)  # fmt: skip
def test_what_is_published_by_an_expression_keeps_to_the_format(
    options: dict[str, Any], values: list[int] | None, tmp_path: Path
) -> None:
    config = CelShardedWriteConfig(
        s3_prefix=tmp_path / "snap", cel_expr="key", cel_columns={"key": "int", "v": "string"}, custom={"team": "x"},
        adapter_factory=BACKENDS["sqlite"], **options,
    )  # fmt: skip
    result = write_cel_sharded(simple(), config, BINARY)
    sharding = {
        "cel_columns": {"key": "int"}, "cel_expr": "key", "hash_algorithm": "xxh3_64", "routing_values": values, "strategy": "cel",
    }  # fmt: skip
    check_format(config, result, "sqlite", sharding)


def check_format(config: WriteConfig, result: BuildResult, backend: str, sharding: dict[str, Any]) -> None:
    prefix = str(config.s3_prefix)
    opened = open_store(config.address())
    pointer = json.loads(opened.get("_CURRENT").body)
    manifest_name = pointer["manifest_ref"].removeprefix(opened.url + "/")
    db = sqlite3.connect(":memory:")
    db.row_factory = sqlite3.Row
    db.deserialize(opened.get(manifest_name).body)
    (meta,) = [dict(row) for row in db.execute("SELECT * FROM build_meta")]
    shards = [dict(row) for row in db.execute("SELECT * FROM shards")]
    db.close()
    # 1. only non-empty shards, ids ascending and below num_dbs
    ids = [shard["db_id"] for shard in shards]
    assert ids == sorted(set(ids))
    assert 0 < len(ids) <= 4
    assert max(ids) < meta["num_dbs"] == result.num_dbs
    assert sum(shard["row_count"] for shard in shards) == 4
    # 2. format version and the five sharding keys
    assert meta["format_version"] == 4
    assert json.loads(meta["sharding"]) == sharding
    assert sharding["routing_values"] is None or len(sharding["routing_values"]) == meta["num_dbs"]
    # 3. a fresh checkpoint id for each shard
    checkpoints = {shard["checkpoint_id"] for shard in shards}
    assert len(checkpoints) == len(shards)
    assert all(len(checkpoint) == 32 for checkpoint in checkpoints)
    for shard in shards:
        # 4. attempt directories, under prefix/shard_prefix/run_id=R/template
        parent, _, leaf = shard["db_url"].rpartition("/")
        assert parent == f"{opened.url}/shards/run_id={result.run_id}/db={shard['db_id']:05d}"
        assert leaf.startswith(f"attempt={shard['attempt']:02d}-")
        # 5. writer_info is an object
        assert json.loads(shard["writer_info"])["attempt"] == shard["attempt"]
        # 7. true sizes, and every object listed with its digest
        directory = shard["db_url"].removeprefix(opened.url + "/")
        stored = {i.name.removeprefix(directory + "/"): i.size for i in opened.list(directory + "/")}
        listed = {item["path"]: item["size"] for item in json.loads(shard["objects"])}
        assert {name: size for name, size in stored.items() if name != "seal.json"} == listed
        assert shard["db_bytes"] == sum(listed.values())
        # 8. no WAL flag in SQLite shards
        if backend == "sqlite":
            assert opened.get(f"{directory}/shard.db").body[18:20] == b"\x01\x01"
        assert json.loads(shard["min_key"]) <= json.loads(shard["max_key"])
    # 6. custom is an object without a vector key
    custom = json.loads(meta["custom"])
    assert custom["team"] == "x"
    assert "vector" not in custom
    assert custom["shardyfusion"]["backend"] == config.adapter_factory.backend
    # 9. the five fields of the pointer
    assert {"format_version", "manifest_ref", "manifest_content_type", "run_id", "updated_at"} <= set(pointer)
    assert (pointer["format_version"], pointer["run_id"]) == (1, result.run_id)
    # 10. UTC with Z
    assert pointer["updated_at"].endswith("Z")
    assert meta["created_at"].endswith("Z")
    # the run record
    (run,) = [name for name in object_names(prefix) if name.endswith("/run.yaml")]
    record = yaml.safe_load(opened.get(run).body)
    assert (record["status"], record["manifest_ref"], record["format_version"]) == (
        "succeeded", pointer["manifest_ref"], 1,
    )  # fmt: skip
    assert record["lease_expires_at"] == record["updated_at"]
    # 11. nothing beside what the format and our own log put there
    kinds = {name.split("/")[0] for name in object_names(prefix)}
    assert kinds == {"_CURRENT", "commits", "manifests", "runs", "shards"}


def test_an_empty_frame_is_an_empty_snapshot(config: HashShardedWriteConfig) -> None:
    result = write_hash_sharded(simple().query("key > 99"), config, BINARY)
    assert (result.rows, result.winners) == (0, ())
    with ShardedReader(config.s3_prefix) as reader:
        assert reader.multi_get([1, 2]) == {1: None, 2: None}
        assert list(reader.scan(0)) == []


def test_max_keys_per_shard_sets_the_mean(config: HashShardedWriteConfig, tmp_path: Path) -> None:
    ddf = parquet_frame(make_rows(1_000), tmp_path / "in", 3)
    by_size = HashShardedWriteConfig(
        max_keys_per_shard=300, s3_prefix=config.s3_prefix, adapter_factory=config.adapter_factory
    )
    assert write_hash_sharded(ddf, by_size, ColumnWriteInput("id", ValueSpec.binary_col("payload"))).num_dbs == 4


def test_output_options_name_what_is_written(config: HashShardedWriteConfig, tmp_path: Path) -> None:
    output = OutputOptions(shard_prefix="data", db_path_template="part-{db_id:03d}", local_root=tmp_path / "scratch")
    result = write_hash_sharded(simple(), dataclasses.replace(config, output=output), BINARY)
    assert all(w.directory.startswith(f"data/run_id={result.run_id}/part-{w.db_id:03d}/") for w in result.winners)
    assert list((tmp_path / "scratch").iterdir()) == [], "scratch is always removed"
    with ShardedReader(config.s3_prefix) as reader:
        assert reader.get(1) == b"v0"


@pytest.mark.parametrize("blocked", ["manifests", "commits"])
def test_a_rerun_after_a_failed_publish_builds_nothing_and_reads_no_input(
    blocked: str, tmp_path: Path, counted: Any
) -> None:
    directory = tmp_path / "snap"
    directory.mkdir()
    (directory / blocked).write_text("a file where a directory must go")
    ddf, evaluations = counted(simple())
    with pytest.raises(PublishManifestError, match="rerun with run_id=") as caught:
        write_hash_sharded(ddf, in_directory(directory), BINARY)
    assert caught.value.retryable
    seals = [name for name in object_names(directory) if name.endswith("seal.json")]
    (directory / blocked).unlink()
    before = evaluations()
    again = write_hash_sharded(ddf, in_directory(directory, run_id=caught.value.facts["run_id"]), BINARY)
    assert again.reused
    assert evaluations() == before == 2
    assert [name for name in object_names(directory) if name.endswith("seal.json")] == seals
    assert contents(directory) == {i.to_bytes(8, "big"): f"v{i - 1}".encode() for i in range(1, 5)}


def test_a_committed_run_id_returns_its_result_again(tmp_path: Path) -> None:
    config = in_directory(tmp_path, run_id="nightly-1")
    first = write_hash_sharded(simple(), config, BINARY)
    write_hash_sharded(simple(10), in_directory(tmp_path), BINARY)
    again = write_hash_sharded(simple(), config, BINARY)
    assert again.manifest_ref == first.manifest_ref
    assert len(list(log_of(tmp_path).history())) == 2
    with ShardedReader(tmp_path) as reader:
        assert reader.get(1) == b"v10", "the newer version stays"


def test_a_committed_run_id_refuses_another_request(tmp_path: Path) -> None:
    config = in_directory(tmp_path, run_id="nightly-1")
    write_hash_sharded(simple(), config, BINARY)
    with pytest.raises(RunConflictError, match="another request"):
        write_hash_sharded(simple(), dataclasses.replace(config, num_dbs=4), BINARY)
    with pytest.raises(RunConflictError):
        write_hash_sharded(simple(), config, ColumnWriteInput("key", ValueSpec.json_cols()))


def test_a_changed_encoder_is_another_request(tmp_path: Path) -> None:
    """Two lambdas have one name; their code tells them apart, and where they stand does not."""
    config = in_directory(tmp_path, run_id="nightly-1")
    suffix = b"1"
    write_hash_sharded(simple(), config, ColumnWriteInput("key", ValueSpec.callable_encoder(lambda row: b"A" + suffix)))
    again = ColumnWriteInput("key", ValueSpec.callable_encoder(lambda row: b"A" + suffix))
    assert write_hash_sharded(simple(), config, again).reused
    for other in (lambda row: b"B" + suffix, lambda row: b"A", lambda row, x=1: b"A" + suffix):
        with pytest.raises(RunConflictError):
            write_hash_sharded(simple(), config, ColumnWriteInput("key", ValueSpec.callable_encoder(other)))
    suffix = b"2"
    with pytest.raises(RunConflictError):
        write_hash_sharded(simple(), config, again)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ValueSpec.json_cols(["a,b"]), ValueSpec.json_cols(["a", "b"])),
        (ValueSpec.json_cols(["all"]), ValueSpec.json_cols()),
        (ValueSpec.callable_encoder(len, ["p"]), ValueSpec.callable_encoder(len, ["q"])),
        (ValueSpec.callable_encoder(len), ValueSpec.callable_encoder(max)),
    ],
)
def test_different_value_specs_have_different_fingerprints(one: ValueSpec, other: ValueSpec) -> None:
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint() == one.fingerprint()


def test_a_rerun_brings_a_lost_pointer_back(tmp_path: Path) -> None:
    config = in_directory(tmp_path, run_id="nightly-1")
    write_hash_sharded(simple(), config, BINARY)
    (tmp_path / "_CURRENT").unlink()
    write_hash_sharded(simple(), config, BINARY)
    assert json.loads((tmp_path / "_CURRENT").read_text())["seq"] == 1


def test_a_build_that_was_overtaken_is_stale_and_force_publishes_it(tmp_path: Path) -> None:
    """The rerun keeps the start of its first execution, which the second write has overtaken."""
    (tmp_path / "manifests").write_text("in the way")
    with pytest.raises(PublishManifestError):
        write_hash_sharded(simple(), in_directory(tmp_path, run_id="slow"), BINARY)
    (tmp_path / "manifests").unlink()
    write_hash_sharded(simple(10), in_directory(tmp_path), BINARY)
    with pytest.raises(StaleBuildError, match="force=True"):
        write_hash_sharded(simple(), in_directory(tmp_path, run_id="slow"), BINARY)
    assert contents(tmp_path)[(1).to_bytes(8, "big")] == b"v10"
    write_hash_sharded(simple(), in_directory(tmp_path, run_id="slow", force=True), BINARY)
    assert contents(tmp_path)[(1).to_bytes(8, "big")] == b"v0"


def test_losing_attempts_are_swept_after_the_publish(tmp_path: Path) -> None:
    run_dir = tmp_path / run_directory("shards", "r1")
    loser = run_dir / "db=00000" / "attempt=00-deadbeef" / "shard.db"
    loser.parent.mkdir(parents=True)
    loser.write_bytes(b"left by a task that was run twice")
    other = tmp_path / run_directory("shards", "r2") / "db=00000" / "attempt=00-deadbeef" / "shard.db"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of another run, which may be alive")
    result = write_hash_sharded(simple(), in_directory(tmp_path, run_id="r1"), BINARY)
    kept = {f"{winner.directory}/{leaf}" for winner in result.winners for leaf in ("shard.db", "seal.json")}
    shards = {name for name in object_names(tmp_path) if name.startswith("shards/")}
    assert shards == kept | {other.relative_to(tmp_path).as_posix()}


def test_a_winner_that_went_missing_is_never_committed(tmp_path: Path) -> None:
    config = in_directory(tmp_path / "snap", run_id="r1")
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "manifests").write_text("in the way")
    with pytest.raises(PublishManifestError):
        write_hash_sharded(simple(), config, BINARY)
    (tmp_path / "snap" / "manifests").unlink()
    shard = next((tmp_path / "snap").rglob("shard.db"))
    shard.unlink()
    with pytest.raises(ShardCoverageError, match="is gone"):
        write_hash_sharded(simple(), config, BINARY)
    assert list(log_of(tmp_path / "snap").history()) == []


@pytest.mark.parametrize("backend", ["sqlite", "slatedb"])
def test_a_snapshot_can_be_moved(backend: str, tmp_path: Path) -> None:
    config = in_directory(tmp_path / "here", adapter_factory=BACKENDS[backend], key_encoding=KeyEncoding.U64BE)
    write_hash_sharded(simple(), config, BINARY)
    shutil.move(tmp_path / "here", tmp_path / "there")
    with ShardedReader(tmp_path / "there") as reader:
        assert reader.multi_get([1, 4, 9]) == {1: b"v0", 4: b"v3", 9: None}
    moved = dataclasses.replace(config, s3_prefix=tmp_path / "there")
    assert write_hash_sharded(simple(10), moved, BINARY).manifest_ref.seq == 2


@pytest.mark.parametrize("backend", ["sqlite", "slatedb"])
def test_a_bucket_can_be_copied(backend: str, s3_prefix: str, s3_client: Any) -> None:
    config = in_directory(Path(), s3_prefix=s3_prefix, adapter_factory=BACKENDS[backend])
    write_hash_sharded(simple(), config, BINARY)
    source = s3_prefix.removeprefix("s3://").partition("/")[0]
    target = f"{source}-copy"
    s3_client.create_bucket(Bucket=target)
    for item in s3_client.list_objects_v2(Bucket=source)["Contents"]:
        body = s3_client.get_object(Bucket=source, Key=item["Key"])["Body"].read()
        s3_client.put_object(Bucket=target, Key=item["Key"].replace("snap/", "elsewhere/deep/"), Body=body)
    for item in s3_client.list_objects_v2(Bucket=source)["Contents"]:
        s3_client.delete_object(Bucket=source, Key=item["Key"])
    with ShardedReader(f"s3://{target}/elsewhere/deep") as reader:
        assert reader.multi_get([1, 4, 9]) == {1: b"v0", 4: b"v3", 9: None}


def test_a_missing_dask_names_the_extra(tmp_path: Path) -> None:
    """With Dask hidden, importing the writer says what to install."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['dask'] = None\n"
        "try:\n    import shardyfusion.writer.dask\n"
        "except ImportError as exc:\n    print(type(exc).__name__, exc)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "MissingExtraError" in output
    assert "shardyfusion[writer-dask" in output


def test_conflicting_identity_is_a_config_error() -> None:
    with pytest.raises(ConfigValidationError):
        in_directory(Path("x"), run_id="has space")
