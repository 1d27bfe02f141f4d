"""Routing by expression: one key with its context, whole columns, and what both refuse."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pytest

from shardyfusion.errors import ConfigValidationError, InputDataError, ShardyfusionError, UnknownRoutingTokenError
from shardyfusion.manifest import ShardingSpec
from shardyfusion.routing.cel.columns import arrow_type
from shardyfusion.routing.cel.program import compile_program
from shardyfusion.routing.cel.router import CelRouter
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.routing.resolve import router_for

BIG = 2**63


def router(
    text: str, columns: dict[str, str], num_dbs: int = 4, values: tuple[Any, ...] | None = None, key_name: str = "key"
) -> CelRouter:
    program = compile_program(text, {name: CelType(kind) for name, kind in columns.items()})
    return CelRouter(program, len(values) if values else num_dbs, key_name, values)


REGION = router("region", {"region": "string"}, values=("ap", "eu", "us"))
REGION_TIER = router(
    "region + '|' + string(tier)", {"region": "string", "tier": "int"}, values=("eu|1", "us|2", "us|1")
)


# -- one key -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "key", "db_id"),
    [
        ("key % 4", "int", 7, 3),
        ("key % 4", "int", True, 1),
        ("int(key % 4u)", "uint", 2**64 - 1, 3),
        ("shard_hash(key) % 4u", "int", 42, 0),
        ("size(key)", "string", "日本", 2),
        ("size(key)", "string", "日本".encode(), 2),
        ("size(key)", "bytes", "é", 2),
        ("key", "string", " 3 ", 3),
        ("key", "bytes", b"+2", 2),
    ],
)
def test_an_expression_of_the_key_needs_no_context(text: str, kind: str, key: Any, db_id: int) -> None:
    routes = router(text, {"key": kind})
    assert routes.context_columns == {}
    assert routes.route(key) == routes.route(key, {"key": "ignored"}) == db_id


def test_the_key_may_go_by_its_own_name() -> None:
    assert router("id % 4", {"id": "int"}, key_name="id").route(7) == 3
    assert router("id % 4", {"id": "int"}, key_name="uid").context_columns == {"id": CelType.INT}


@pytest.mark.parametrize(
    ("kind", "key"),
    [("int", "7"), ("int", BIG), ("uint", -1), ("int", b"7"), ("string", 7), ("string", b"\xff"), ("bytes", 7)],
)
def test_a_key_of_another_type_is_refused(kind: str, key: Any) -> None:
    with pytest.raises(ConfigValidationError, match=f"cannot be routed: cel_columns declares 'key' as {kind}"):
        router("shard_hash(key) % 4u", {"key": kind}).route(key)


def test_a_context_replaces_the_key() -> None:
    assert REGION_TIER.route(99, {"tier": 2, "region": "us", "more": None}) == 1  # type: ignore[dict-item]
    assert REGION_TIER.context_columns == {"region": CelType.STRING, "tier": CelType.INT}


@pytest.mark.parametrize("context", [None, {}, {"tier": 1}, {"key": "eu"}])
def test_a_missing_entry_is_named(context: Any) -> None:
    with pytest.raises(ConfigValidationError, match=r"has no 'region'.*region \(string\), tier \(int\)"):
        REGION_TIER.route(1, context)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", True), ("int", 1.0), ("int", "1"), ("int", BIG), ("int", -BIG - 1), ("int", None),
        ("uint", -1), ("uint", 2**64), ("double", 1), ("bool", 1), ("string", b"a"), ("string", "\ud800"),
        ("bytes", "a"), ("bytes", bytearray(b"a")),
    ],
)  # fmt: skip
def test_an_entry_must_be_exactly_of_its_type(kind: str, value: Any) -> None:
    with pytest.raises(ConfigValidationError, match=rf"routing_context\['x'\] is .* the column is {kind}: pass "):
        router("key + size([x])", {"key": "int", "x": kind}).route(1, {"key": 1, "x": value})


@pytest.mark.parametrize(
    ("routes", "context"),
    [
        (REGION, {"region": "mars"}),
        (REGION, {"region": ""}),
        (router("n", {"n": "int"}), {"n": 4}),
        (router("n", {"n": "int"}), {"n": -1}),
        (router("n", {"n": "uint"}), {"n": 2**64 - 1}),
        (router("s", {"s": "string"}), {"s": "four"}),
        (router("s", {"s": "string"}), {"s": "4"}),
        (router("s", {"s": "bytes"}), {"s": b"\xff"}),
        (CelRouter(REGION.program, 1, "key", ()), {"region": "eu"}),
    ],
)
def test_what_names_no_shard_is_an_unknown_token(routes: CelRouter, context: Any) -> None:
    with pytest.raises(UnknownRoutingTokenError, match="names none of the") as caught:
        routes.route(1, context)
    assert isinstance(caught.value, ShardyfusionError)
    assert isinstance(caught.value, ValueError)
    assert "token" in pickle.loads(pickle.dumps(caught.value)).facts


def test_an_error_of_the_expression_is_no_token() -> None:
    with pytest.raises(ConfigValidationError, match=r"has no value for .*'key': 0.*: divide by zero"):
        router("100 / key", {"key": "int"}).route(0)


# -- whole columns -----------------------------------------------------------------------------------------------------


def agrees(routes: CelRouter, keys: pa.Array, columns: dict[str, list[Any]]) -> list[int]:
    """The shards by columns, which those row by row must be."""
    arrays = {name: pa.array(columns[name], arrow_type(kind)) for name, kind in routes.context_columns.items()}
    found = pickle.loads(pickle.dumps(routes)).route_arrow(keys, arrays).tolist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{}] * len(keys)
    assert found == [routes.route(key, row) for key, row in zip(keys.to_pylist(), rows, strict=True)]
    return found


KEYS = pa.array([3, 1, 2, 8, 0])
TEXTS = pa.array(["a", "b", "c", "é", ""], pa.large_string())


@pytest.mark.parametrize(
    ("routes", "keys", "columns", "shards"),
    [
        (router("key % 4", {"key": "int"}), KEYS, {}, [3, 1, 2, 0, 0]),
        (router("key % 4u", {"key": "uint"}), KEYS, {}, [3, 1, 2, 0, 0]),
        (router("[key, 4][0] % 4", {"key": "int"}), KEYS, {}, [3, 1, 2, 0, 0]),
        (router("string(key % 4)", {"key": "int"}), KEYS, {}, [3, 1, 2, 0, 0]),
        (router("bytes(string(key % 4))", {"key": "int"}), KEYS, {}, [3, 1, 2, 0, 0]),
        (router("key", {"key": "string"}, values=("é", "", "a", "b", "c")), TEXTS, {}, [2, 3, 4, 0, 1]),
        (router("size(key)", {"key": "bytes"}), TEXTS, {}, [1, 1, 1, 2, 0]),
        (router("size(key)", {"key": "string"}), TEXTS.cast(pa.large_binary()), {}, [1, 1, 1, 1, 0]),
        (REGION, KEYS, {"region": ["eu", "us", "ap", "ap", "eu"]}, [1, 2, 0, 0, 1]),
        (router("n", {"n": "int"}, values=(-5, 70)), KEYS, {"n": [70, -5, 70, 70, -5]}, [1, 0, 1, 1, 0]),
        (router("n", {"n": "uint"}, values=(2**64 - 1, 0)), KEYS, {"n": [0, 0, 0, 2**64 - 1, 0]}, [1, 1, 1, 0, 1]),
        (REGION_TIER, KEYS, {"region": ["eu", "us", "us", "eu", "us"], "tier": [1, 1, 2, 1, 1]}, [0, 2, 1, 0, 2]),
        (router("key % 4 + n", {"key": "int", "n": "int"}, 5), KEYS, {"key": [3, 1, 2, 8, 0], "n": [1, 0, 0, 0, 0]}, [4, 1, 2, 0, 0]),
    ],
)  # fmt: skip
def test_columns_and_rows_agree(routes: CelRouter, keys: pa.Array, columns: dict[str, Any], shards: list[int]) -> None:
    assert agrees(routes, keys, columns) == shards


@pytest.mark.parametrize(
    "routes",
    [
        router("key % 4", {"key": "int"}),
        router("key", {"key": "string"}),
        router("[key][0]", {"key": "int"}),
        router("key", {"key": "string"}, values=("a",)),
    ],
)
@pytest.mark.parametrize("kind", [pa.null(), pa.int64(), pa.large_string()])
def test_no_keys_have_no_shards(routes: CelRouter, kind: pa.DataType) -> None:
    found = routes.route_arrow(pa.array([], kind), {})
    assert (found.tolist(), found.dtype) == ([], "int64")


@pytest.mark.parametrize(
    ("routes", "columns", "message"),
    [
        (router("100 / key", {"key": "int"}, 101), {}, r"for key 0, has no value: divide by zero"),
        (router("[100][key]", {"key": "int"}, 101), {}, r"for key 3, has no value: index 3 of a list of 1"),
        (router("key", {"key": "int"}, 8), {}, r"for key 8, gives 8, which is no shard: .* 0 to 7.*set num_dbs"),
        (router("key - 2", {"key": "int"}, 8), {}, r"for key 1, gives -1, which is no shard"),
        (router("shard_hash(key)", {"key": "int"}, 8), {}, r"for key 3, gives \d{19,}, which is no shard"),
        (router("string(key)", {"key": "int"}, 8), {}, r"for key 8, gives '8', which is no shard"),
        (REGION, {"region": ["eu", "us", "mars", "ap", "eu"]}, r"for key 2, gives 'mars'.*not among routing_values"),
        (router("s", {"s": "string"}), {"s": ["1", "2", "two", "", "3"]}, r"for key 2, gives 'two'.*no shard number"),
        (router("s", {"s": "string"}), {"s": ["1", "2", "9" * 30, "0", "3"]}, r"for key 2, gives '9{30}', which is no"),
    ],
)
def test_the_first_row_without_a_shard_is_named(routes: CelRouter, columns: dict[str, Any], message: str) -> None:
    arrays = {name: pa.array(values, arrow_type(routes.context_columns[name])) for name, values in columns.items()}
    with pytest.raises(InputDataError, match=message) as caught:
        routes.route_arrow(KEYS, arrays)
    assert routes.program.expression in str(caught.value)
    assert "key" in caught.value.facts


def test_keys_that_are_not_what_is_declared_are_refused() -> None:
    with pytest.raises(InputDataError, match=r"declared string .* holds b'\\xff'"):
        router("key", {"key": "string"}).route_arrow(pa.array([b"1", b"\xff"], pa.large_binary()), {})
    with pytest.raises(InputDataError, match=r"'key' is declared int .* declare it string"):
        router("key", {"key": "int"}).route_arrow(TEXTS, {})


# -- from a manifest ---------------------------------------------------------------------------------------------------


def stored(text: str, columns: dict[str, str], key_col: str = "id", values: tuple[Any, ...] | None = None) -> Any:
    spec = ShardingSpec(strategy="cel", cel_expr=text, cel_columns=columns, routing_values=values)
    return router_for(spec, len(values) if values else 4, key_col)


def test_key_is_the_key_where_it_is_the_only_column() -> None:
    assert stored("key % 4", {"key": "int"}).route(7) == 3
    with pytest.raises(ConfigValidationError, match="routing_context has no 'key'"):
        stored("key % 4", {"key": "int", "region": "string"}).route(7)


def test_the_key_column_is_the_key() -> None:
    assert stored("id % 4", {"id": "int", "region": "string"}).route(7) == 3


def test_routing_values_of_bytes_were_stored_as_text() -> None:
    assert stored("b", {"b": "bytes"}, values=("eu", "us")).route(1, {"b": b"us"}) == 1
