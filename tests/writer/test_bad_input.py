"""Bad input gets a clear error before work starts; what only the data can show stops the write before any shard."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from shardyfusion import (
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    KeyEncoding,
    LocalSlateDbFactory,
    OutputOptions,
    ShardedReader,
    SlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.errors import (
    ComputeError,
    ConfigValidationError,
    CredentialsError,
    InputDataError,
    ShardAssignmentError,
    ShardyfusionError,
    SnapshotNotFoundError,
    ValueEncodingError,
)
from shardyfusion.routing.hashing import HashRouter
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.writer.dask import write_hash_sharded
from shardyfusion.writer.dask.pipeline import resolve_router
from tests.writer.frames import frame_of, object_names

BINARY = ColumnWriteInput("key", ValueSpec.binary_col("v"))


def simple() -> dd.DataFrame:
    return frame_of(key=[1, 2, 3, 4], v=["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("ddf", "change", "input", "message"),
    [
        (pd.DataFrame({"key": [1]}), {}, BINARY, "give a Dask DataFrame"),
        (simple(), {}, ColumnWriteInput("nope", ValueSpec.binary_col("v")), "'nope'.*there are key, v"),
        (simple(), {}, ColumnWriteInput("key", ValueSpec.binary_col("nope")), "'nope'"),
        (simple(), {}, ColumnWriteInput("key", ValueSpec.json_cols(["v", "nope"])), "'nope'"),
        (simple(), {}, ColumnWriteInput("v", ValueSpec.binary_col("v")), "UTF8"),
        (simple(), {"key_encoding": KeyEncoding.UTF8}, BINARY, "'key'.*U64BE"),
        (frame_of(key=[1.0, 2.0], v=["a", "b"]), {}, BINARY, "float"),
        (frame_of(key=[1, 2], v=[1.5, 2.5]), {}, BINARY, "'v'.*float"),
        (frame_of(key=[1], v=["a"], _shard_id=[0]), {}, BINARY, "_shard_id.*config.shard_id_col"),
        (simple(), {"adapter_factory": SlateDbFactory()}, BINARY, "SlateDbFactory.*memory://"),
        (frame_of(key=[1], v=["a"]).rename(columns={"v": "key"}), {}, BINARY, "several columns named key"),
    ],
)
def test_requests_that_cannot_work_write_nothing(
    ddf: Any, change: dict[str, Any], input: ColumnWriteInput, message: str, config: HashShardedWriteConfig
) -> None:
    config = dataclasses.replace(config, **change)
    with pytest.raises(ConfigValidationError, match=message):
        write_hash_sharded(ddf, config, input)
    assert object_names(config.s3_prefix) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_dbs": None}, "exactly one"),
        ({"max_keys_per_shard": 3}, "exactly one"),
        ({"num_dbs": 0}, "positive"),
        ({"num_dbs": True}, "positive"),
        ({"run_id": "a/b"}, "run_id 'a/b'"),
        ({"run_id": ".."}, "run_id"),
        ({"s3_prefix": "gs://bucket/x"}, "'gs'"),
        ({"s3_prefix": "s3://bucket"}, "prefix below the bucket"),
        ({"s3_prefix": ""}, "empty"),
        ({"key_encoding": "u16"}, "u64be"),
        ({"on_duplicate_key": "any"}, "'first'"),
        ({"custom": {"vector": 1}}, "vector"),
        ({"custom": {"x": object()}}, "not JSON"),
        ({"adapter_factory": "sqlite"}, "SqliteFactory"),
        ({"adapter_factory": SqliteFactory}, "SqliteFactory"),
        ({"run_id": 5}, "run_id is int"),
        ({"run_id": "r" * 181}, "180"),
        ({"s3_prefix": None}, "s3_prefix is NoneType"),
        ({"s3_prefix": b"x"}, "s3_prefix is bytes"),
        ({"custom": None}, "custom is NoneType"),
        ({"custom": {1: 1, "a": 2}}, "not JSON"),
        ({"output": {}}, "output is dict"),
        ({"rate_limits": None}, "rate_limits is NoneType"),
        ({"shard_retry": 3}, "shard_retry is int"),
        ({"shard_id_col": 5}, "shard_id_col is 5"),
        ({"shard_id_col": "shardyfusion:key"}, "does not start with"),
    ],
)
def test_configs_are_valid_once_built(change: dict[str, Any], message: str, config: HashShardedWriteConfig) -> None:
    with pytest.raises(ConfigValidationError, match=message):
        dataclasses.replace(config, **change)


def test_configs_are_frozen_and_keyword_only(config: HashShardedWriteConfig) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_dbs = 4
    with pytest.raises(TypeError):
        HashShardedWriteConfig("s3://b/p")


def test_options_are_checked() -> None:
    for bad in ({"shuffle": "file"}, {"retries": -1}, {"retries": "x"}):
        with pytest.raises(ConfigValidationError):
            DaskWriteOptions(**bad)
    with pytest.raises(ConfigValidationError, match="shard_prefix"):
        OutputOptions(shard_prefix="commits")
    with pytest.raises(ConfigValidationError, match="db_path_template"):
        OutputOptions(db_path_template="no-field")
    with pytest.raises(ConfigValidationError, match="db_path_template"):
        OutputOptions(db_path_template="db={db_id:5d}")
    with pytest.raises(ConfigValidationError, match="local_root is int"):
        OutputOptions(local_root=5)


def test_arguments_are_checked(config: HashShardedWriteConfig) -> None:
    with pytest.raises(ConfigValidationError, match="input is tuple"):
        write_hash_sharded(simple(), config, ("key", ValueSpec.binary_col("v")))
    with pytest.raises(ConfigValidationError, match="options is dict"):
        write_hash_sharded(simple(), config, BINARY, {})
    assert object_names(config.s3_prefix) == []


def test_a_relative_prefix_means_the_directory_it_meant_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = HashShardedWriteConfig(num_dbs=1, s3_prefix="snap", adapter_factory=SqliteFactory())
    monkeypatch.chdir("/")
    write_hash_sharded(simple(), config, BINARY)
    assert (tmp_path / "snap" / "_CURRENT").exists()


def test_columns_need_no_text_names(config: HashShardedWriteConfig) -> None:
    ddf = frame_of(key=[1, 2], v=["a", "b"], x=[0, 0]).rename(columns={"x": 5})
    assert write_hash_sharded(ddf, config, BINARY).rows == 2


@pytest.mark.parametrize("name", ["key", "value", "ordinal", "_shard_id"])
def test_any_shard_id_col_serves_every_exchange(name: str, config: HashShardedWriteConfig) -> None:
    config = dataclasses.replace(config, shard_id_col=name, on_duplicate_key="last")
    ddf = frame_of(id=[1, 2, 3], v=["a", "b", "c"])
    result = write_hash_sharded(
        ddf, config, ColumnWriteInput("id", ValueSpec.binary_col("v")), DaskWriteOptions(shuffle="tasks")
    )
    assert result.rows == 3


@pytest.mark.parametrize("exchange", ["direct", "disk", "tasks"])
def test_empty_partitions_and_bad_ones_do_not_matter_to_the_exchange(
    exchange: Any, config: HashShardedWriteConfig
) -> None:
    options = DaskWriteOptions(shuffle=exchange)
    assert write_hash_sharded(simple().query("key > 2"), config, BINARY, options).rows == 2
    assert write_hash_sharded(simple().query("key > 9"), config, BINARY, options).rows == 0
    half_null = frame_of(key=pd.Series([1, 2, None, 4], dtype="Int64"), v=["a", "b", "c", "d"])
    with pytest.raises(InputDataError, match="1 of 2 keys are null"):
        write_hash_sharded(half_null, config, BINARY, options)


def test_a_bug_in_an_engine_comes_back_once_and_named(config: HashShardedWriteConfig) -> None:
    calls: list[int] = []

    @dataclasses.dataclass(frozen=True)
    class Broken(SqliteFactory):
        def open(self, target: Any) -> Any:
            calls.append(target.db_id)
            raise KeyError("a bug")

    config = dataclasses.replace(config, num_dbs=1, adapter_factory=Broken())
    with pytest.raises(ComputeError, match=r"building shard 0 failed with KeyError: 'a bug'") as caught:
        write_hash_sharded(simple(), config, BINARY)
    assert caught.value.facts["raised_at"].startswith(__file__)
    assert calls == [0]


@pytest.mark.parametrize(
    ("keys", "change", "message"),
    [
        (pd.Series([1, None, 3, None], dtype="Int64"), {}, "2 of 4 keys are null; first in partition 0"),
        (pd.Series([1, 2, 3, None], dtype=object), {}, "1 of .* keys are null; first in partition 1"),
        ([1, 2, -5, 4], {}, "-5"),
        (pd.Series([1, 2, 2**63, 4], dtype="uint64"), {}, "9223372036854775808"),
        ([1, 2, 2**32, 4], {"key_encoding": KeyEncoding.U32BE}, "4294967296"),
        (pd.Series([1, "two", 3, 4], dtype=object), {}, "two"),
        (pd.Series(["", "b", "c", "d"], dtype=object), "slatedb", "1 of 2 keys"),
        (pd.Series(["a" * 65_536, "b", "c", "d"], dtype=object), "slatedb", "65535"),
    ],
)
def test_bad_keys_stop_the_write_before_any_shard(
    keys: Any, change: Any, message: str, config: HashShardedWriteConfig
) -> None:
    if change == "slatedb":
        change = {"adapter_factory": LocalSlateDbFactory(), "key_encoding": KeyEncoding.UTF8}
    config = dataclasses.replace(config, **change)
    with pytest.raises(InputDataError, match=message) as caught:
        write_hash_sharded(frame_of(key=keys, v=["a", "b", "c", "d"]), config, BINARY)
    assert caught.value.facts["run_id"]
    assert_only_a_failed_run_record(config.s3_prefix, "InputDataError")


def assert_only_a_failed_run_record(prefix: Any, error_type: str) -> None:
    (name,) = object_names(prefix)
    assert name.startswith("runs/")
    assert name.endswith("/run.yaml")
    record = yaml.safe_load(open_store(StoreAddress.parse(str(prefix))).get(name).body)
    assert (record["status"], record["error_type"]) == ("failed", error_type)
    with pytest.raises(SnapshotNotFoundError):
        ShardedReader(str(prefix))


def test_an_encoder_that_fails_names_the_key_and_partition_and_runs_once(config: HashShardedWriteConfig) -> None:
    calls: list[int] = []

    def encode(row: Any) -> bytes:
        calls.append(row.key)
        return b"ok" if row.key != 3 else 1 / 0

    with pytest.raises(ValueEncodingError, match="division by zero") as caught:
        write_hash_sharded(simple(), config, ColumnWriteInput("key", ValueSpec.callable_encoder(encode)))
    assert (caught.value.facts["key"], caught.value.facts["partition"]) == (3, 1)
    assert sorted(calls) == [1, 2, 3]
    assert_only_a_failed_run_record(config.s3_prefix, "ValueEncodingError")


def test_an_encoder_must_return_bytes(config: HashShardedWriteConfig) -> None:
    with pytest.raises(ValueEncodingError, match=r"str.*must return bytes"):
        write_hash_sharded(simple(), config, ColumnWriteInput("key", ValueSpec.callable_encoder(lambda row: row.v)))


def test_a_value_that_is_too_long_is_named(config: HashShardedWriteConfig) -> None:
    """Of zeros that nobody has written to, which take no memory."""
    meta = pd.DataFrame({"key": pd.Series([], dtype="int64"), "v": pd.Series([], dtype=pd.ArrowDtype(pa.binary()))})

    def read(number: int) -> pd.DataFrame:
        ends = np.array([0, 5, 5 + (number << 31)])
        values = pa.Array.from_buffers(
            pa.large_binary(), 2, [None, pa.py_buffer(ends), pa.py_buffer(np.zeros(ends[-1], np.uint8))]
        )
        keys = [2 * number, 2 * number + 1]
        return pd.DataFrame({"key": keys, "v": pd.arrays.ArrowExtensionArray(values)})

    frame = dd.from_map(read, [0, 1], meta=meta)
    with pytest.raises(ValueEncodingError, match="a value has 2,147,483,648 bytes, and at most") as caught:
        write_hash_sharded(frame, config, ColumnWriteInput("key", ValueSpec.binary_col("v")))
    assert (caught.value.facts["key"], caught.value.facts["partition"]) == (3, 1)
    assert_only_a_failed_run_record(config.s3_prefix, "ValueEncodingError")


class OffByOne(HashRouter):
    """A vectorised router that is deliberately wrong."""

    def route_arrow(self, keys: pa.Array, columns: Any) -> Any:
        return (super().route_arrow(keys, columns) + 1) % self.num_dbs


@dataclasses.dataclass(frozen=True, kw_only=True)
class MisroutedConfig(HashShardedWriteConfig):
    """Resolves to `OffByOne`."""


@resolve_router.register
def _(config: MisroutedConfig, ddf: Any, input: Any) -> Any:
    _, sharding = resolve_router.dispatch(HashShardedWriteConfig)(config, ddf, input)
    return OffByOne(config.num_dbs or 1), sharding


def test_a_wrong_vectorised_router_is_caught_before_anything_is_published(config: HashShardedWriteConfig) -> None:
    wrong = MisroutedConfig(num_dbs=3, s3_prefix=config.s3_prefix, adapter_factory=SqliteFactory())
    with pytest.raises(ShardAssignmentError, match="disagree") as caught:
        write_hash_sharded(simple(), wrong, BINARY)
    assert caught.value.facts["key"] in (1, 2)
    assert_only_a_failed_run_record(config.s3_prefix, "ShardAssignmentError")


def test_without_verify_routing_the_sample_is_not_taken(config: HashShardedWriteConfig) -> None:
    wrong = MisroutedConfig(num_dbs=3, s3_prefix=config.s3_prefix, adapter_factory=SqliteFactory())
    assert write_hash_sharded(simple(), wrong, BINARY, DaskWriteOptions(verify_routing=False)).rows == 4


def test_memory_is_refused_on_schedulers_with_other_processes(config: HashShardedWriteConfig) -> None:
    with dask.config.set(scheduler="processes"), pytest.raises(ConfigValidationError, match="this process only"):
        write_hash_sharded(simple(), config, BINARY)
    with pytest.raises(ConfigValidationError, match="distributed"):
        write_hash_sharded(simple(), config, BINARY, DaskWriteOptions(shuffle="p2p"))


def test_a_frame_that_cannot_be_computed_is_our_error_and_is_chained(config: HashShardedWriteConfig) -> None:
    def broken(part: pd.DataFrame) -> pd.DataFrame:
        raise OSError("the disk is gone")

    ddf = simple()
    with pytest.raises(ComputeError, match="the disk is gone") as caught:
        write_hash_sharded(ddf.map_partitions(broken, meta=ddf._meta), config, BINARY)
    assert isinstance(caught.value.__cause__, OSError)
    assert_only_a_failed_run_record(config.s3_prefix, "ComputeError")


def test_no_credentials_is_an_error_before_any_request(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    config = HashShardedWriteConfig(num_dbs=1, s3_prefix="s3://no-such-bucket/x", adapter_factory=SqliteFactory())
    with pytest.raises(CredentialsError):
        write_hash_sharded(simple(), config, BINARY)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = HashShardedWriteConfig(num_dbs=1, s3_prefix=tmp_path / "file" / "snap", adapter_factory=SqliteFactory())
    with pytest.raises(ShardyfusionError, match=re.escape(str(tmp_path))):
        write_hash_sharded(simple(), config, BINARY)


def test_many_rows_route_alike_by_both_routers() -> None:
    """The sample in the encode task is 20 rows a partition; this is the law behind it."""
    keys = np.random.default_rng(3).integers(-(2**63), 2**63 - 1, 2_000)
    router = HashRouter(97)
    assert router.route_arrow(pa.array(keys), {}).tolist() == [router.route(int(key)) for key in keys]
