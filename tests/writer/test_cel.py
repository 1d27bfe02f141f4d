"""Writing by an expression: modes, exchanges and schedulers, and what stops a write before anything is published."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardyfusion import (
    CelColumn,
    CelShardedWriteConfig,
    CelType,
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    LocalSlateDbFactory,
    ShardedReader,
    SqliteFactory,
    ValueSpec,
    cel_sharding,
    cel_sharding_by_columns,
)
from shardyfusion.config import MAX_NUM_DBS
from shardyfusion.errors import (
    ConfigValidationError,
    InputDataError,
    PublishManifestError,
    RunConflictError,
    ShardAssignmentError,
)
from shardyfusion.routing.cel import placement
from shardyfusion.storage import open_store
from shardyfusion.testing import StoreCall
from shardyfusion.writer import routing_values
from shardyfusion.writer.dask import BuildResult, write_cel_sharded, write_hash_sharded
from tests.protocol.tiny_writes import PUTS, faults, first
from tests.writer.frames import frame_of, object_names
from tests.writer.reruns import deny, shard_writes
from tests.writer.schedulers import scheduler

BINARY = ColumnWriteInput("id", ValueSpec.binary_col("v"))
REGIONS = ["eu", "us", "ap"]
ROWS = 60


def orders() -> dd.DataFrame:
    """Five partitions; `key` of row n is n."""
    frame = pd.DataFrame(
        {
            "id": range(ROWS),
            "region": [REGIONS[n % 3] for n in range(ROWS)],
            "tier": [n % 4 for n in range(ROWS)],
            "v": [f"v{n}" for n in range(ROWS)],
        }
    )
    return dd.from_pandas(frame, npartitions=5)


def cel(prefix: object, expression: str, **options: Any) -> CelShardedWriteConfig:
    """The expression over the columns of `orders` that it names."""
    types = {"id": "int", "key": "int", "region": "string", "tier": "int"}
    columns = {name: kind for name, kind in types.items() if re.search(rf"\b{name}\b", expression)}
    given: dict[str, Any] = {"adapter_factory": SqliteFactory(), "cel_columns": columns, **options}
    return CelShardedWriteConfig(s3_prefix=str(prefix), cel_expr=expression, **given)


def shards_of(prefix: object) -> list[list[int]]:
    with ShardedReader(str(prefix)) as reader:
        num_dbs = reader.snapshot_info().num_dbs
        return [[int.from_bytes(key, "big") for key, _ in reader.scan(db_id)] for db_id in range(num_dbs)]


def write(ddf: dd.DataFrame, config: CelShardedWriteConfig, **options: Any) -> BuildResult:
    return write_cel_sharded(ddf, config, BINARY, DaskWriteOptions(**options))


MODES: dict[str, tuple[str, dict[str, Any], list[list[int]], str]] = {
    "direct": ("id % 8", {}, [[n for n in range(ROWS) if n % 8 == d] for d in range(8)], "vectorised"),
    "direct, by key": ("key % 8", {"num_dbs": 9}, [[n for n in range(ROWS) if n % 8 == d] for d in range(9)], "vectorised"),
    "direct, of text": ("string(tier)", {}, [[n for n in range(ROWS) if n % 4 == d] for d in range(4)], "vectorised"),
    "direct, memoised": ("[tier, 9].filter(t, t < 9)[0]", {}, [[n for n in range(ROWS) if n % 4 == d] for d in range(4)], "memoised"),
    "categorical": ("region", {"routing_values": ["us", "mars", "eu", "ap"]}, [[n for n in range(ROWS) if n % 3 == d] for d in (1, 9, 0, 2)], "vectorised"),
    "inferred": ("region + '|' + string(tier)", {"infer_routing_values_from_data": True}, [[n for n in range(ROWS) if (n % 3, n % 4) == (r, t)] for r in (2, 0, 1) for t in range(4)], "vectorised"),
    "inferred, of integers": ("tier * 10 - 10", {"infer_routing_values_from_data": True}, [[n for n in range(ROWS) if n % 4 == d] for d in range(4)], "vectorised"),
    "key and column": ("(key + tier) % 2", {}, [[n for n in range(ROWS) if (n + n % 4) % 2 == 0], []][:1], "vectorised"),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_where_the_expression_says(mode: str, memory_prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    expression, options, expected, path = MODES[mode]
    with caplog.at_level(logging.INFO, logger="shardyfusion.writer"):
        result = write(orders(), cel(memory_prefix, expression, **options))
    assert shards_of(memory_prefix) == expected
    assert (result.num_dbs, result.rows, result.routing) == (len(expected), ROWS, f"cel, {path}")
    assert [message for message in caplog.messages if "are routed by" in message] == [
        f"run {result.run_id}: rows are routed by cel, {path} to {len(expected)} shards"
    ]


@pytest.mark.parametrize("way", ["direct", "disk", "tasks"])
@pytest.mark.parametrize("backend", [SqliteFactory(), LocalSlateDbFactory()])
def test_every_exchange_and_backend(way: Any, backend: Any, tmp_path: Path) -> None:
    expression, options, expected, _ = MODES["inferred"]
    write(orders(), cel(tmp_path, expression, **options, adapter_factory=backend), shuffle=way)
    assert shards_of(tmp_path) == expected


@pytest.mark.parametrize("name", ["threads", "processes", "distributed"])
def test_every_scheduler(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Expression and columns travel to the workers; one is outside of what is evaluated in columns."""
    with scheduler(name, request):
        for mode in ("inferred", "direct, memoised"):
            expression, options, expected, _ = MODES[mode]
            write(orders(), cel(tmp_path / mode, expression, **options))
            assert shards_of(tmp_path / mode) == expected


@pytest.mark.parametrize(
    ("expression", "options", "passes"),
    [
        ("id % 8", {"num_dbs": 8}, 1),
        ("region", {"routing_values": REGIONS}, 1),
        ("id % 8", {}, 2),
        ("region", {"infer_routing_values_from_data": True}, 2),
    ],
)
def test_the_input_is_evaluated_once_unless_values_are_looked_for(
    expression: str, options: dict[str, Any], passes: int, memory_prefix: str, counted: Any
) -> None:
    ddf, evaluations = counted(orders())
    write(ddf, cel(memory_prefix, expression, **options))
    assert evaluations() == passes * ddf.npartitions


def test_the_pass_for_values_reads_only_what_the_expression_names(
    tmp_path: Path, memory_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.Table.from_pandas(orders().compute(), preserve_index=False), tmp_path / "in.parquet")
    seen: set[tuple[str, ...]] = set()
    survey = routing_values._surveyed

    def surveyed(frame: pd.DataFrame, *args: Any) -> Any:
        seen.add(tuple(frame.columns))
        return survey(frame, *args)

    monkeypatch.setattr(routing_values, "_surveyed", surveyed)
    write(dd.read_parquet(tmp_path / "in.parquet"), cel(memory_prefix, "region", infer_routing_values_from_data=True))
    assert seen == {("region",)}


def test_a_column_that_nobody_names_is_not_read(tmp_path: Path, memory_prefix: str) -> None:
    def kept(part: pd.DataFrame) -> pd.DataFrame:
        assert list(part.columns) == ["id", "region", "v"]
        return part

    pq.write_table(pa.Table.from_pandas(orders().compute(), preserve_index=False), tmp_path / "in.parquet")
    ddf = dd.read_parquet(tmp_path / "in.parquet")
    ddf = ddf[["id", "region", "v"]].map_partitions(kept).assign(tier=1)
    write(ddf, cel(memory_prefix, "region", routing_values=REGIONS))


# -- columns -----------------------------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[Any, CelType, str]] = {
    "int8": (np.array([1, 0, 1], "int8"), CelType.INT, "x"),
    "uint64": (np.array([1, 0, 1], "uint64"), CelType.UINT, "x"),
    "int as uint": (np.array([1, 0, 1]), CelType.UINT, "x % 2u"),
    "uint as int": (np.array([1, 0, 1], "uint32"), CelType.INT, "x % 2"),
    "nullable": (pd.array([1, 0, 1], "Int64"), CelType.INT, "x"),
    "arrow": (pd.array([1, 0, 1], "int32[pyarrow]"), CelType.INT, "x"),
    "object": (np.array([1, 0, 1], object), CelType.INT, "x"),
    "float32": (np.array([1.5, 0.0, 1.25], "float32"), CelType.DOUBLE, "x > 1.0 ? 1 : 0"),
    "arrow NaN": (pd.arrays.ArrowExtensionArray(pa.array([1.5, float("nan"), 1.5])), CelType.DOUBLE, "x == x ? 1 : 0"),
    "bool": (np.array([True, False, True]), CelType.BOOL, "x ? 1 : 0"),
    "string": (pd.array(["b", "", "b"], "string"), CelType.STRING, "size(x)"),
    "categorical": (pd.Categorical(["b", "", "b"]), CelType.STRING, "size(x)"),
    "dictionary": (pd.array(["b", "", "b"], pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string()))), CelType.STRING, "size(x)"),
    "bytes": (np.array([b"\xff", b"", b"\xff"], object), CelType.BYTES, "size(x)"),
    "arrow bytes": (pd.array([b"\xff", b"", b"\xff"], pd.ArrowDtype(pa.binary())), CelType.BYTES, "size(x)"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_every_type(name: str, memory_prefix: str) -> None:
    values, kind, expression = COLUMNS[name]
    ddf = frame_of(id=[1, 2, 3], v=["a", "b", "c"], x=values)
    write(ddf, cel(memory_prefix, expression, cel_columns={"x": kind}, num_dbs=2))
    assert shards_of(memory_prefix) == [[2], [1, 3]]


def test_a_named_index_is_a_column(memory_prefix: str) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3], "v": ["a", "b", "c"]}, index=pd.Index([1, 0, 1], name="x"))
    ddf = dd.from_pandas(frame, npartitions=1, sort=False)
    write(ddf, cel(memory_prefix, "x", cel_columns={"x": "int"}))
    assert shards_of(memory_prefix) == [[2], [1, 3]]


def test_text_keys_route_by_their_text(memory_prefix: str) -> None:
    ddf = frame_of(id=["b", "", "cc"], v=["a", "b", "c"])
    config = cel(memory_prefix, "size(key)", cel_columns={"key": "string"}, key_encoding="utf8")
    write(ddf, config)
    with ShardedReader(memory_prefix) as reader:
        assert reader.multi_get(["", "b", b"b", "cc", "d"]) == {"": b"b", "b": b"a", b"b": b"a", "cc": b"c", "d": None}
        assert [reader.route_key(key) for key in ("", "b", "cc")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("columns", "types", "expression", "message"),
    [
        ({"x": [1, 2]}, {"x": "string"}, "size(x)", r"'x' is declared string .* dtype int64; declare it int or uint"),
        ({"x": ["a", "b"]}, {"x": "int"}, "x", r"'x' is declared int .* declare it string"),
        ({"x": [True, False]}, {"x": "int"}, "x", r"'x' is declared int .* declare it bool"),
        ({"x": [1.5, 2]}, {"x": "int"}, "x", r"'x' is declared int .* declare it double"),
        ({"x": pd.to_datetime(["2026", "2027"])}, {"x": "int"}, "x", r"'x' is declared int .* convert it"),
        ({}, {"nope": "int"}, "nope", r"names 'nope', which is no column or named index; there are id, v"),
        ({}, {"key": "string"}, "size(key)", r"'key' is declared string .* declare it int"),
        ({"key": [1, 2]}, {"key": "int"}, "key % 2", r"the data has another column of that name; rename it, or write 'id'"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_write_nothing(
    columns: Any, types: Any, expression: str, message: str, memory_prefix: str
) -> None:
    with pytest.raises(ConfigValidationError, match=message):
        write(frame_of(id=[1, 2], v=["a", "b"], **columns), cel(memory_prefix, expression, cel_columns=types))
    assert object_names(memory_prefix) == []


def test_another_column_called_key_is_in_nobodys_way(memory_prefix: str) -> None:
    write(frame_of(id=[1, 2], v=["a", "b"], key=["x", "y"]), cel(memory_prefix, "id % 2"))
    assert shards_of(memory_prefix) == [[2], [1]]


# -- errors of the data ------------------------------------------------------------------------------------------------


def nothing_published(config: CelShardedWriteConfig) -> bool:
    kinds = {name.split("/")[0] for name in object_names(config.s3_prefix)}
    return kinds <= {"runs"}


ORDERED: list[dict[str, Any]] = [{"num_dbs": 100}, {}, {"infer_routing_values_from_data": True}]


@pytest.mark.parametrize("options", ORDERED)
@pytest.mark.parametrize("expression", ["0 / (tier - 7)", "[7, 0 / (tier - 7)][1]", "0 / (id - 44)"])
def test_an_error_of_the_expression_stops_the_write(
    expression: str, options: dict[str, Any], memory_prefix: str
) -> None:
    """The first row without a result, whichever partition comes first: 44, by key or by its tier."""
    ddf = orders().assign(tier=orders()["tier"].where(orders()["id"] < 44, 7))
    config = cel(memory_prefix, expression, **options)
    with pytest.raises(InputDataError, match=r"for key 44, has no value: divide by zero") as caught:
        write(ddf, config)
    assert repr(expression) in str(caught.value)
    assert caught.value.facts["key"] == 44
    assert nothing_published(config)


@pytest.mark.parametrize(
    ("expression", "options", "message"),
    [
        ("id", {"num_dbs": 40}, r"for key 40, gives 40, which is no shard: they are numbered from 0 to 39"),
        ("id - 2", {}, r"for key 0, gives -2, which is no shard"),
        ("shard_hash(id)", {}, r"for key 0, gives \d+, which is no shard: .* 0 to 99999"),
        ("region", {"routing_values": ["eu", "us"]}, r"for key 2, gives 'ap', which is not among routing_values"),
        ("region", {}, r"for key 0, gives 'eu', which is no shard number"),
    ],
)
def test_a_result_without_a_shard_stops_the_write(
    expression: str, options: dict[str, Any], message: str, memory_prefix: str
) -> None:
    config = cel(memory_prefix, expression, **options)
    with pytest.raises(InputDataError, match=message):
        write(orders(), config)
    assert nothing_published(config)


def test_direct_ids_have_no_gap(memory_prefix: str) -> None:
    config = cel(memory_prefix, "tier * 3")
    with pytest.raises(InputDataError, match=r"up to 9, but no row is in 1, 2, 4, 5, 7, 8; set num_dbs=10") as caught:
        write(orders(), config)
    assert caught.value.facts["missing"] == [1, 2, 4, 5, 7, 8]
    assert nothing_published(config)
    assert write(orders(), replace(config, num_dbs=10)).num_dbs == 10


@pytest.mark.parametrize("options", [{"routing_values": REGIONS}, {"infer_routing_values_from_data": True}])
@pytest.mark.parametrize("missing", [None, pd.NA, float("nan")])
def test_nulls_are_counted_over_all_partitions(options: dict[str, Any], missing: Any, memory_prefix: str) -> None:
    ddf = frame_of(id=range(6), v=["x"] * 6, region=["eu", missing, "us", "ap", missing, missing])
    config = cel(memory_prefix, "region", **options)
    with pytest.raises(InputDataError, match=r"'region', by which rows are routed, is null in 3 of 6 rows") as caught:
        write(ddf, config)
    assert (caught.value.facts["column"], caught.value.facts["nulls"], caught.value.facts["partition"]) == ("region", 3, 0)  # fmt: skip
    assert nothing_published(config)


def test_a_nan_of_a_numpy_column_is_a_null(memory_prefix: str) -> None:
    ddf = frame_of(id=[1, 2], v=["a", "b"], x=[1.5, float("nan")])
    with pytest.raises(InputDataError, match=r"'x', .* is null in 1 of 2 rows"):
        write(ddf, cel(memory_prefix, "x > 1.0 ? 1 : 0", cel_columns={"x": "double"}))


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([1, -1], CelType.UINT, r"declared uint .* holds -1, .* declare it int"),
        (np.array([1, 2**63], "uint64"), CelType.INT, r"declared int .* holds 9223372036854775808, .* declare it uint"),
        (np.array([1, "a", 1, 1], object), CelType.INT, r"declared int .* not all of its values are"),
        (pd.Series(["a", "b"], dtype=object), CelType.INT, r"declared int .* declare it string"),
    ],
)
def test_values_that_are_not_of_the_declared_type(values: Any, kind: CelType, message: str, memory_prefix: str) -> None:
    config = cel(memory_prefix, "shard_hash(x) % 2u", cel_columns={"x": kind}, num_dbs=2)
    with pytest.raises(InputDataError, match=message):
        write(frame_of(id=range(len(values)), v=["a"] * len(values), x=values), config)
    assert nothing_published(config)


@pytest.mark.parametrize(
    ("expression", "key", "read_from"), [("region", 1, 1), ("id % 3", 1, 1), ("tier == 3 ? 9 : 0", 3, None)]
)
def test_readers_that_would_look_elsewhere_are_found_out(
    expression: str, key: int, read_from: int | None, memory_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere_else(results: placement.Results, *_: Any) -> Any:
        return np.zeros(len(results._values), dtype=np.int64)

    for method in ("positions", "shard_ids"):
        monkeypatch.setattr(placement.Results, method, nowhere_else)
    options = {"routing_values": REGIONS} if expression == "region" else {"num_dbs": 3}
    config = cel(memory_prefix, expression, **options)
    with pytest.raises(ShardAssignmentError) as caught:
        write(orders(), config)
    assert caught.value.facts == caught.value.facts | {"key": key, "written_to": 0, "read_from": read_from}
    assert nothing_published(config)


@pytest.mark.parametrize("options", ORDERED)
def test_null_keys_are_told_as_ever(options: dict[str, Any], memory_prefix: str) -> None:
    ddf = frame_of(id=pd.array([1, None, 3, None], "Int64"), v=["a", "b", "c", "d"])
    with pytest.raises(InputDataError, match="key column 'id': 2 of 4 keys are null"):
        write(ddf, cel(memory_prefix, "id % 2", **options))


def test_more_values_than_shards_can_be(memory_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_values, "MAX_NUM_DBS", 11)
    config = cel(memory_prefix, "region + string(tier)", infer_routing_values_from_data=True)
    with pytest.raises(InputDataError, match=r"12 different values.*shard_hash"):
        write(orders(), config)


@pytest.mark.parametrize("options", ORDERED)
def test_an_empty_frame_is_an_empty_snapshot(options: dict[str, Any], memory_prefix: str) -> None:
    ddf = orders()
    result = write(ddf[ddf["id"] < 0], cel(memory_prefix, "tier", **options))
    assert (result.rows, result.num_dbs) == (0, options.get("num_dbs", 1))
    with ShardedReader(memory_prefix) as reader:
        assert reader.get(1, {"tier": 0}) is None


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "options", "message"),
    [
        ("id %", {}, "at 1:4: this is no CEL expression"),
        ("id % 8u", {}, "at 1:1: found no matching overload"),
        ("id > 3", {}, "gives bool, which cannot name a shard"),
        ("7", {}, "names no column"),
        ("id", {"cel_columns": {}}, "'id' is not declared"),
        ("id", {"cel_columns": {"id": "text"}}, r"cel_columns\['id'\] is 'text'; use one of int, uint"),
        ("id", {"cel_columns": [("id", "int")]}, "cel_columns is list"),
        ("id", {"num_dbs": 0}, "num_dbs must be positive"),
        ("id", {"num_dbs": True}, "num_dbs is bool"),
        ("id", {"num_dbs": MAX_NUM_DBS + 1}, "is too many"),
        ("id", {"num_dbs": 8, "routing_values": [1]}, "at most one of"),
        ("id", {"routing_values": [1], "infer_routing_values_from_data": True}, "at most one of"),
        ("id", {"num_dbs": 8, "infer_routing_values_from_data": True}, "at most one of"),
        ("id", {"routing_values": []}, "1 to 100000 routing_values, not 0"),
        ("id", {"routing_values": [1, 2, 1]}, r"routing_values has \[1\] more than once"),
        ("id", {"routing_values": [1, True]}, r"gives int, which routing value \[True\] cannot be"),
        ("id", {"routing_values": [1, 2**63]}, "gives int, which routing value"),
        ("id", {"routing_values": ["1"]}, r"gives int, which routing value \['1'\] cannot be"),
        ("region", {"routing_values": ["eu", None]}, r"gives string, which routing value \[None\] cannot be"),
        ("region", {"routing_values": "eu"}, "routing_values is str; give a list"),
        ("bytes(region)", {"infer_routing_values_from_data": True}, "gives bytes, which cannot be stored"),
    ],
)
def test_a_config_is_valid_once_built(expression: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigValidationError, match=message):
        cel("memory://x/y", expression, **options)


def test_each_writer_takes_its_own_config(config: HashShardedWriteConfig, memory_prefix: str) -> None:
    with pytest.raises(ConfigValidationError, match="write_cel_sharded needs a CelShardedWriteConfig"):
        write_cel_sharded(orders(), config, BINARY)  # type: ignore[arg-type]
    with pytest.raises(ConfigValidationError, match="write_hash_sharded needs a HashShardedWriteConfig"):
        write_hash_sharded(orders(), cel(memory_prefix, "id % 2"), BINARY)  # type: ignore[arg-type]
    assert write_hash_sharded(orders(), config, BINARY).routing == "hash"


CHANGES: list[Callable[[CelShardedWriteConfig], CelShardedWriteConfig]] = [
    lambda config: replace(config, cel_expr="region + ''"),
    lambda config: replace(config, routing_values=[*REGIONS, "sa"]),
    lambda config: replace(config, routing_values=[*reversed(REGIONS)]),
    lambda config: replace(config, routing_values=None, infer_routing_values_from_data=True),
]


def test_a_rerun_publishes_what_was_built(memory_prefix: str) -> None:
    config = cel(memory_prefix, "region", infer_routing_values_from_data=True, run_id="nightly")
    with faults(first(10, PUTS["manifest"], deny)), pytest.raises(PublishManifestError):
        write(orders(), config)

    def fail(part: pd.DataFrame) -> pd.DataFrame:
        raise AssertionError("the input was evaluated")

    ddf = orders()
    calls: list[StoreCall]
    with faults() as calls:
        result = write(ddf.map_partitions(fail, meta=ddf._meta), config)
    assert shard_writes(calls) == []
    assert result.reused
    assert result.routing == "cel, vectorised"
    with ShardedReader(memory_prefix) as reader:
        assert reader.get(4, {"region": "us"}) == b"v4"


@pytest.mark.parametrize("change", CHANGES)
def test_another_expression_is_another_request(change: Any, memory_prefix: str) -> None:
    config = cel(memory_prefix, "region", routing_values=REGIONS, run_id="nightly")
    write(orders(), config)
    with pytest.raises(RunConflictError):
        write(orders(), change(config))
    assert write(orders(), config).reused


def test_sealed_shards_are_used_again(memory_prefix: str) -> None:
    """As after any failure: the input is read again, and its values found again."""
    config = cel(memory_prefix, "region", infer_routing_values_from_data=True, run_id="nightly")
    with faults(first(10, PUTS["outcome"], deny)), pytest.raises(PublishManifestError):
        write(orders(), config)
    assert write(orders(), config).reused_shards == (0, 1, 2)


# -- ways to say it ----------------------------------------------------------------------------------------------------

TIER, PAID, PRICE, RAW = (
    CelColumn("tier", CelType.INT),
    CelColumn("paid", CelType.BOOL),
    CelColumn("price", CelType.DOUBLE),
    CelColumn("raw", CelType.BYTES),
)


@pytest.mark.parametrize(
    ("columns", "options", "expression"),
    [
        (["region"], {}, "region"),
        ([TIER], {}, "tier"),
        ([PRICE], {}, "string(price)"),
        ([PAID], {"num_shards": 2}, "shard_hash(string(paid)) % 2u"),
        ([RAW], {"num_shards": 7}, "shard_hash(raw) % 7u"),
        (["region", TIER], {}, 'region + ":" + string(tier)'),
        ([TIER, "region", PRICE], {"separator": '"'}, r'string(tier) + "\"" + region + "\"" + string(price)'),
        (["region", RAW], {"num_shards": 4, "separator": "é\n"}, r'shard_hash(region + "é\n" + string(raw)) % 4u'),
    ],
)
def test_by_columns(columns: Any, options: dict[str, Any], expression: str) -> None:
    sharding = cel_sharding_by_columns(*columns, **options)
    config = CelShardedWriteConfig(s3_prefix="memory://x/y", **sharding)
    assert config.cel_expr == expression
    assert config.num_dbs == options.get("num_shards")
    assert config.infer_routing_values_from_data == ("num_shards" not in options)


def test_by_columns_is_where_equal_rows_meet(memory_prefix: str) -> None:
    sharding = cel_sharding_by_columns("region", TIER, num_shards=5)
    config = CelShardedWriteConfig(s3_prefix=memory_prefix, adapter_factory=SqliteFactory(), **sharding)
    assert write(orders(), config).num_dbs == 5
    where = {(key % 3, key % 4): set[int]() for key in range(ROWS)}
    for db_id, keys in enumerate(shards_of(memory_prefix)):
        for key in keys:
            where[key % 3, key % 4].add(db_id)
    assert all(len(shards) == 1 for shards in where.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cel_sharding_by_columns(), "at least one column"),
        (lambda: cel_sharding_by_columns("a", "a"), "'a' is given more than once"),
        (lambda: cel_sharding_by_columns("a b"), "no CEL expression"),
        (lambda: cel_sharding_by_columns("a", num_shards=0), "num_shards must be positive"),
        (lambda: cel_sharding_by_columns("a", num_shards=1.5), "num_shards is float"),
        (lambda: cel_sharding_by_columns(3), "a column is int"),
        (lambda: cel_sharding("a + 1", "a"), "no matching overload"),
        (lambda: CelColumn("a", "text"), "type of column 'a' is 'text'"),
    ],
)
def test_what_cannot_be_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigValidationError, match=message):
        make()


def test_an_expression_of_ones_own() -> None:
    sharding = cel_sharding("tier > 2 ? region : 'rest'", TIER, CelColumn("region"), routing_values=["rest", "eu"])
    config = CelShardedWriteConfig(s3_prefix="memory://x/y", **sharding)
    assert config.routing_values == ("rest", "eu")
    assert open_store(config.address()).url == "memory://x/y"
    assert cel_sharding("tier", TIER, num_dbs=4)["num_dbs"] == 4
    assert cel_sharding("tier", TIER, infer_routing_values_from_data=True)["infer_routing_values_from_data"]
