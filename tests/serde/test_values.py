"""Value strategies: bytes of one column, the user's encoder, and what is refused. JSON is in test_json_columns.py."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.errors import ConfigValidationError, ValueEncodingError
from shardyfusion.serde import ValueSpec
from shardyfusion.serde.columns import looks_converted
from shardyfusion.serde.row_view import Row, rows_of


def object_column(*values: Any) -> pd.Series[Any]:
    return pd.Series(list(values), dtype=object)


def encoded(spec: ValueSpec, **columns: Any) -> list[bytes]:
    array = spec.encode_frame(pd.DataFrame(columns))
    assert array.type == pa.large_binary()
    assert array.null_count == 0
    array.validate(full=True)
    return array.to_pylist()


# --- binary_col ---------------------------------------------------------------------------------------------------

BINARY = {
    "object": (
        object_column(b"\xff", bytearray(b"b"), memoryview(b"m"), "é", ""),
        [b"\xff", b"b", b"m", "é".encode(), b""],
    ),
    "every null": (object_column(b"a", None, float("nan"), pd.NA, pd.NaT, np.float32("nan")), [b"a", *[b""] * 5]),
    "nulls only": (object_column(None, None), [b"", b""]),
    "float nulls only": (pd.Series([None, None], dtype="float64"), [b"", b""]),
    "str": (pd.Series(["a", None, "é"]), [b"a", b"", "é".encode()]),
    "string": (pd.Series(["a", None], dtype="string"), [b"a", b""]),
    "string[python]": (pd.Series(["a", None], dtype="string[python]"), [b"a", b""]),
    "category": (pd.Series(["a", None, "a"], dtype="category"), [b"a", b"", b"a"]),
    "category bytes": (pd.Series([b"\xff", None], dtype="category"), [b"\xff", b""]),
    **{
        f"arrow {kind}": (pd.Series([b"a", None], dtype=pd.ArrowDtype(kind)), [b"a", b""])
        for kind in (pa.binary(), pa.large_binary(), pa.binary(1))
    },
    "arrow dictionary": (
        pd.Series(["a", None], dtype=pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string()))),
        [b"a", b""],
    ),
    "sliced": (pd.Series(["x", "a", None, "y"], dtype="string")[1:3], [b"a", b""]),
    "empty": (pd.Series([], dtype=object), []),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_col(name: str) -> None:
    column, expected = BINARY[name]
    spec = ValueSpec.binary_col("v")
    if name != "float nulls only":
        spec.check_columns(["v"], {"v": column.dtype})
    assert encoded(spec, v=column) == expected


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (object_column(b"a", 7), "7"),
        (object_column("a", [1]), "\\[1\\]"),
        (object_column(b"a", 1.5), "1.5"),
        (object_column(b"a", "\ud800"), "ud800"),
        (pd.Series([1.5, None]), "1.5"),
    ],
)
def test_binary_col_names_the_value_that_is_neither_bytes_nor_text(column: pd.Series[Any], shown: str) -> None:
    with pytest.raises(ValueEncodingError, match=f"'v'.*{shown}"):
        encoded(ValueSpec.binary_col("v"), v=column)


@given(st.lists(st.none() | st.text() | st.binary(), max_size=20))
def test_binary_col_agrees_with_the_plain_rule(values: list[Any]) -> None:
    expected = [(v.encode() if isinstance(v, str) else v) or b"" for v in values]
    assert encoded(ValueSpec.binary_col("v"), v=object_column(*values)) == expected


# --- callable_encoder ---------------------------------------------------------------------------------------------


def test_rows_have_exact_types() -> None:
    frame = pd.DataFrame(
        {
            "id": [2**53 + 1, 2],
            "price": [0.5, math.nan],
            "small": pd.Series([1, None], dtype="Int8"),
            "flag": [True, False],
            "name": ["x", None],
            "city": pd.Series(["y", None], dtype="category"),
            "when": [pd.Timestamp("2024-01-01", tz="UTC"), pd.NaT],
            "tags": pd.Series([["a"], None], dtype=pd.ArrowDtype(pa.list_(pa.string()))),
            "score": pd.Series([1.5, None], dtype=pd.ArrowDtype(pa.float64())),
            "thing": object_column((1, 2), None),
        }
    )
    first, second = rows_of(frame, list(frame.columns))
    assert [type(first[name]) for name in first] == [int, float, int, bool, str, str, pd.Timestamp, list, float, tuple]
    assert first.id == 2**53 + 1
    assert first.tags == ["a"]
    assert math.isnan(second.price)
    assert [second[name] for name in frame.columns[2:]] == [None, False, *[None] * 6]


def test_a_row_reads_like_a_mapping_and_cannot_be_changed() -> None:
    (row,) = rows_of(pd.DataFrame({"a": [1], "keys": [2], "b c": ["x"]}), ["a", "keys", "b c"])
    assert (row["a"], row.a, row["keys"], row["b c"]) == (1, 1, 2, "x")
    assert dict(row) == {"a": 1, "keys": 2, "b c": "x"}
    assert (list(row), len(row), "a" in row, "z" in row) == (["a", "keys", "b c"], 3, True, False)
    assert repr(row) == "Row(a=1, keys=2, b c='x')"
    with pytest.raises(KeyError, match="no column 'z'; it has a, keys, b c"):
        row["z"]
    with pytest.raises(AttributeError, match="no column 'z'"):
        _ = row.z
    with pytest.raises(AttributeError, match="read-only"):
        row.a = 2
    with pytest.raises(AttributeError, match="read-only"):
        del row.a


def test_callable_encoder_gets_all_columns_or_the_named_ones() -> None:
    def names(row: Row) -> bytes:
        return ",".join(row.keys()).encode()

    assert encoded(ValueSpec.callable_encoder(names), a=[1], b=["x"]) == [b"a,b"]
    limited = ValueSpec.callable_encoder(names, columns=["b"])
    assert limited.columns == ("b",)
    assert encoded(limited, a=[1], b=["x"]) == [b"b"]


@pytest.mark.parametrize("answer", ["text", None, 7, bytearray(b"a")])
def test_callable_encoder_must_return_bytes(answer: Any) -> None:
    with pytest.raises(ValueEncodingError, match=f"returned {type(answer).__name__}") as caught:
        encoded(ValueSpec.callable_encoder(lambda row: answer if row.a == 2 else b""), a=[1, 2])
    assert caught.value.facts["row"] == 1
    assert not caught.value.retryable


def test_an_error_in_the_callable_is_chained_and_names_the_row() -> None:
    def fail(row: Row) -> bytes:
        return b"" if row.a else row.missing

    with pytest.raises(ValueEncodingError, match=r"fail failed: AttributeError: .*'missing'") as caught:
        encoded(ValueSpec.callable_encoder(fail), a=[1, 0])
    assert isinstance(caught.value.__cause__, AttributeError)
    assert caught.value.facts["row"] == 1
    assert caught.value.facts["raised_at"] == f"{__file__}:{fail.__code__.co_firstlineno + 1}"


# --- every strategy -----------------------------------------------------------------------------------------------


def plain_encoder(row: Row) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("spec", "text", "line"),
    [
        (ValueSpec.binary_col("v"), "ValueSpec.binary_col('v')", "binary_col:v"),
        (ValueSpec.json_cols(), "ValueSpec.json_cols()", "json_cols:all"),
        (ValueSpec.json_cols(["a", "b"]), "ValueSpec.json_cols(['a', 'b'])", "json_cols:a,b"),
        (
            ValueSpec.callable_encoder(plain_encoder),
            "ValueSpec.callable_encoder(plain_encoder)",
            "callable_encoder:plain_encoder",
        ),
    ],
    ids=repr,
)
def test_specs_print_describe_and_pickle(spec: ValueSpec, text: str, line: str) -> None:
    assert (repr(spec), spec.describe()) == (text, line)
    assert repr(pickle.loads(pickle.dumps(spec))) == text or "callable" in text


@pytest.mark.parametrize(
    ("spec", "dtypes", "hint"),
    [
        (ValueSpec.binary_col("z"), [("a", "int64")], "'z' is not in the frame; it has a"),
        (ValueSpec.json_cols(["a", "z"]), [("a", "int64")], "'z' is not in the frame"),
        (ValueSpec.callable_encoder(plain_encoder, ["z"]), [], "it has no columns"),
        (ValueSpec.binary_col("a"), [("a", "int64")], "'a' has dtype int64.*json_cols"),
        (ValueSpec.binary_col("a"), [("a", "float64")], "float64"),
        (ValueSpec.binary_col("a"), [("a", "datetime64[ns]")], "datetime64"),
        (ValueSpec.json_cols(), [("a", pd.ArrowDtype(pa.binary()))], "bytes"),
        (ValueSpec.json_cols(), [("a", "complex128")], "complex128"),
        (ValueSpec.json_cols(), [("a", pd.PeriodDtype("D"))], "period"),
        (ValueSpec.json_cols(), [("a", "int64"), ("a", "str")], "more than one column 'a'"),
        (ValueSpec.json_cols(), [(3, "int64")], "rename 3"),
        (ValueSpec.binary_col("a"), [("a", "str"), ("a", "str")], "more than one"),
    ],
)
def test_columns_that_can_never_work_are_refused_before_any_data(
    spec: ValueSpec, dtypes: list[tuple[str, Any]], hint: str
) -> None:
    with pytest.raises(ConfigValidationError, match=hint):
        spec.check_columns([name for name, _ in dtypes], {name: pd.api.types.pandas_dtype(d) for name, d in dtypes})


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueSpec.binary_col(""),
        lambda: ValueSpec.binary_col(["a"]),
        lambda: ValueSpec.json_cols("abc"),
        lambda: ValueSpec.json_cols(["a", "a"]),
        lambda: ValueSpec.callable_encoder("a"),
    ],
)
def test_specs_are_valid_once_built(make: Callable[[], ValueSpec]) -> None:
    with pytest.raises(ConfigValidationError):
        make()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([[1, 2], None, [3]], True),
        ([{"a": 1}], True),
        ([(1, "x")], True),
        ([["a", "b"]], True),
        ([[math.nan, 1.0]], True),
        ([[Decimal("1.5")]], True),
        ([np.array([1.5, -2])], True),
        (["[draft] title", "x"], False),
        (["(none)"], False),
        (["[]x", "[1, 2]"], False),
        (['{"a":[1,true]}'], False),
        (["plain", "[1, 2]"], False),
        ([Decimal("1.5"), "b"], False),
        ([None], False),
    ],
)
@pytest.mark.parametrize("dtype", ["str", "string", pd.ArrowDtype(pa.large_string())])
def test_text_made_of_python_objects_is_noticed(values: list[Any], found: bool, dtype: Any) -> None:
    """Dask turns object columns into `str()` of their values before a writer sees them."""
    column = pd.Series([None if value is None else str(value) for value in values], dtype=dtype)
    assert bool(looks_converted(column)) == found


def test_only_text_columns_can_have_been_converted() -> None:
    assert looks_converted(object_column([1, 2])) is None
    assert looks_converted(pd.Series([1, 2])) is None
    assert looks_converted(pd.Series([], dtype="str")) is None
