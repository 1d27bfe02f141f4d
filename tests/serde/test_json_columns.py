"""json_cols: bytes equal to json.dumps wherever that can write them, and valid JSON everywhere else."""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.errors import ValueEncodingError
from shardyfusion.serde import ValueSpec
from shardyfusion.serde.json_columns import encode_json_rows


def object_column(*values: Any) -> pd.Series[Any]:
    return pd.Series(list(values), dtype=object)


def encoded(spec: ValueSpec, **columns: Any) -> list[bytes]:
    array = spec.encode_frame(pd.DataFrame(columns))
    assert array.type == pa.large_binary()
    assert array.null_count == 0
    array.validate(full=True)
    return array.to_pylist()


def dumps(row: dict[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, separators=(",", ":")).encode()


UTC, BERLIN = dt.UTC, ZoneInfo("Europe/Berlin")
MOMENT = dt.datetime(2024, 3, 1, 12, 30, 5)
JSON = {
    "uint64": (pd.Series([2**64 - 1, 0], dtype="uint64"), [2**64 - 1, 0]),
    "int8": (pd.Series([-128, 127], dtype="int8"), [-128, 127]),
    "Int64": (pd.Series([2**53 + 1, None], dtype="Int64"), [2**53 + 1, None]),
    "arrow int": (pd.Series([2**53 + 1, None], dtype=pd.ArrowDtype(pa.int64())), [2**53 + 1, None]),
    "object ints": (object_column(2**70, -1, None, np.int64(3), True), [2**70, -1, None, 3, True]),
    "bool": (pd.Series([True, False]), [True, False]),
    "boolean": (pd.Series([True, None], dtype="boolean"), [True, None]),
    "floats": (pd.Series([1e20, -0.0, 0.1, 1e-5, np.nan, np.inf, -np.inf]), [1e20, -0.0, 0.1, 1e-5, None, None, None]),
    "float32": (pd.Series([0.1, 16777216, None], dtype="float32"), [float(np.float32(0.1)), 16777216.0, None]),
    "float16": (pd.Series([0.1], dtype="float16"), [float(np.float16(0.1))]),
    "Float64": (pd.Series([0.5, None], dtype="Float64"), [0.5, None]),
    "arrow float": (
        pd.Series(pa.array([0.5, None, math.nan]).to_pandas(types_mapper=pd.ArrowDtype)),
        [0.5, None, None],
    ),
    "str": (pd.Series(['é\n"\\/\x7f', None, "", "plain"]), ['é\n"\\/\x7f', None, "", "plain"]),
    "string": (pd.Series(["😀", None], dtype="string"), ["😀", None]),
    "object text": (object_column("a", None, "\ud800", float("nan")), ["a", None, "\ud800", None]),
    "category": (pd.Series(["a", None, "é"], dtype="category"), ["a", None, "é"]),
    "category ints": (pd.Series([1, 2], dtype="category"), [1, 2]),
    "category mixed": (pd.Series([1, "a", None], dtype="category"), [1, "a", None]),
    "timestamp": (
        pd.Series(
            pd.to_datetime(
                ["2024-03-01", None, "2024-03-01T12:30:05.25", "1969-12-31T23:59:59.000000001"], format="ISO8601"
            )
        ),
        ["2024-03-01T00:00:00", None, "2024-03-01T12:30:05.250000", "1969-12-31T23:59:59.000000001"],
    ),
    "timestamp utc": (pd.Series([pd.Timestamp(MOMENT, tz="UTC"), pd.NaT]), ["2024-03-01T12:30:05+00:00", None]),
    "timestamp zone": (
        pd.Series([pd.Timestamp(MOMENT, tz="Europe/Berlin"), pd.NaT]),
        ["2024-03-01T12:30:05+01:00", None],
    ),
    "timestamp far": (
        pd.Series(np.array(["12000-03-15", "2024-03-01"], "datetime64[s]")),
        ["12000-03-15T00:00:00", "2024-03-01T00:00:00"],
    ),
    "arrow timestamp": (
        pd.Series([MOMENT, None], dtype=pd.ArrowDtype(pa.timestamp("ms"))),
        ["2024-03-01T12:30:05", None],
    ),
    "category timestamp": (pd.Series([pd.Timestamp(MOMENT), None], dtype="category"), ["2024-03-01T12:30:05", None]),
    "arrow date": (pd.Series([MOMENT.date(), None], dtype=pd.ArrowDtype(pa.date32())), ["2024-03-01", None]),
    "arrow time": (pd.Series([MOMENT.time(), None], dtype=pd.ArrowDtype(pa.time64("us"))), ["12:30:05", None]),
    "duration": (pd.Series([pd.Timedelta(days=1, seconds=2), None]), ["P1DT0H0M2S", None]),
    "arrow decimal": (pd.Series([Decimal("1.50"), None], dtype=pd.ArrowDtype(pa.decimal128(5, 2))), ["1.50", None]),
    "object decimal": (object_column(Decimal("1E+3"), Decimal("NaN"), Decimal("Infinity")), ["1E+3", None, None]),
    "arrow list": (pd.Series([[1, None], None], dtype=pd.ArrowDtype(pa.list_(pa.int8()))), [[1, None], None]),
    "arrow struct": (
        pd.Series(
            [{"b": 1.5, "a": math.nan}, None], dtype=pd.ArrowDtype(pa.struct({"b": pa.float64(), "a": pa.float64()}))
        ),
        [{"a": None, "b": 1.5}, None],
    ),
    "arrow map": (
        pd.Series([[("z", 1), ("é", 2)]], dtype=pd.ArrowDtype(pa.map_(pa.string(), pa.int8()))),
        [{"z": 1, "é": 2}],
    ),
    "objects": (
        object_column(
            [1, 2.5, None, True],
            {"b": [math.nan, {"x": math.inf}], "a": (1, pd.NA)},
            np.array([[1.5, math.nan]]),
            np.array(["2024-03-01"], "datetime64[D]"),
            [pd.NaT, MOMENT, MOMENT.date(), MOMENT.replace(tzinfo=UTC), MOMENT.replace(tzinfo=BERLIN)],
            {1: np.float32(0.5), 2: np.bool_(True), 3: dt.timedelta(hours=1), 4: uuid.UUID(int=1)},
            {math.nan: math.nan},
        ),
        [
            [1, 2.5, None, True],
            {"b": [None, {"x": None}], "a": [1, None]},
            [[1.5, None]],
            ["2024-03-01T00:00:00"],
            [None, "2024-03-01T12:30:05", "2024-03-01", "2024-03-01T12:30:05+00:00", "2024-03-01T12:30:05+01:00"],
            {"1": 0.5, "2": True, "3": "P0DT1H0M0S", "4": "00000000-0000-0000-0000-000000000001"},
            {"NaN": None},
        ],
    ),
}


@pytest.mark.parametrize("name", JSON)
def test_json_cols_of_every_column_type(name: str) -> None:
    column, expected = JSON[name]
    spec = ValueSpec.json_cols(["v"])
    spec.check_columns(["v"], {"v": column.dtype})
    assert encoded(spec, v=column) == [dumps({"v": value}) for value in expected]


def test_json_cols_example_of_the_format() -> None:
    row = {"b": 1, "a": "é", "c": [1, 2.5, None, True], "d": 1e20, "f": -0.0}
    expected = rb'{"a":"\u00e9","b":1,"c":[1,2.5,null,true],"d":1e+20,"f":-0.0}'
    assert encoded(ValueSpec.json_cols(), **{name: object_column(value) for name, value in row.items()}) == [expected]


CELLS: dict[str, tuple[st.SearchStrategy[Any], list[Any]]] = {
    "ints": (st.integers(-(2**63), 2**63 - 1), ["int64", "Int64", object, pd.ArrowDtype(pa.int64())]),
    "floats": (st.floats(allow_nan=False, allow_infinity=False), ["float64", "Float64", object]),
    "near": (st.floats(1e-6, 1e-3) | st.floats(1e8, 1e18) | st.integers(-(10**18), 10**18).map(float), ["float64"]),
    "float32": (st.floats(width=32, allow_nan=False, allow_infinity=False), ["float32"]),
    "text": (st.text(), ["str", "string", "category", object, pd.ArrowDtype(pa.string())]),
    "bools": (st.booleans(), ["bool", "boolean", object]),
    "objects": (
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=6,
        ),
        [object],
    ),
}


@given(st.data())
def test_json_cols_are_the_bytes_of_json_dumps(data: st.DataObject) -> None:
    """Frames of random columns, names, dtypes and rows."""
    rows = data.draw(st.integers(0, 5))
    names = data.draw(st.lists(st.text(), max_size=4, unique=True))
    plain: dict[str, list[Any]] = {}
    frame = pd.DataFrame(index=range(rows))
    for name in names:
        cells, dtypes = CELLS[data.draw(st.sampled_from(sorted(CELLS)))]
        plain[name] = data.draw(st.lists(cells, min_size=rows, max_size=rows))
        frame[name] = pd.Series(plain[name], dtype=object).astype(data.draw(st.sampled_from(dtypes)))
    expected = [dumps({name: plain[name][row] for name in names}) for row in range(rows)]
    assert ValueSpec.json_cols().encode_frame(frame).to_pylist() == expected


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_json_floats_are_repr_or_null(values: list[float]) -> None:
    expected = [f'{{"v":{value!r}}}' if math.isfinite(value) else '{"v":null}' for value in values]
    assert encoded(ValueSpec.json_cols(), v=pd.Series(values, dtype="float64")) == [text.encode() for text in expected]


@given(
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.sampled_from([None, "UTC", "Europe/Berlin"]),
    st.lists(st.none() | st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2250, 1, 1)), max_size=8),
    st.integers(0, 999),
)
def test_json_timestamps_are_isoformat(
    unit: str, zone: str | None, moments: list[dt.datetime | None], nanos: int
) -> None:
    column = pd.Series(pd.array(moments, dtype="datetime64[ns]")) + pd.Timedelta(nanos, "ns")
    column = column.dt.as_unit(unit)
    column = column.dt.tz_localize("UTC").dt.tz_convert(zone) if zone else column
    expected = [dumps({"v": None if pd.isna(moment) else moment.isoformat()}) for moment in column.tolist()]
    assert encoded(ValueSpec.json_cols(), v=column) == expected


def test_json_cols_takes_the_named_columns_or_all() -> None:
    frame = pd.DataFrame({"c": [1], "a": ["x"], "b": [None]}, index=pd.Index([9], name="key"))
    assert ValueSpec.json_cols().encode_frame(frame).to_pylist() == [b'{"a":"x","b":null,"c":1}']
    assert ValueSpec.json_cols(["c", "a"]).encode_frame(frame).to_pylist() == [b'{"a":"x","c":1}']
    assert ValueSpec.json_cols([]) == ValueSpec.json_cols() == ValueSpec.json_cols(None)
    assert ValueSpec.json_cols().encode_frame(frame[[]]).to_pylist() == [b"{}"]


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        (object_column([b"a"]), "bytes"),
        (object_column(b"a"), "bytes"),
        (pd.Series([b"a"], dtype=pd.ArrowDtype(pa.binary())), "bytes"),
        (object_column({1}), "set"),
        (object_column(1j), "complex"),
        (object_column(pd.Period("2024-01", "M")), "Period"),
        (object_column({(1, 2): 3}), "keys must be"),
        (object_column({1: 2, "a": 3}), "not supported"),
        (pd.Series([[("a", 1), ("a", 2)]], dtype=pd.ArrowDtype(pa.map_(pa.string(), pa.int8()))), "a"),
    ],
)
def test_json_cols_names_what_has_no_json_form(column: pd.Series[Any], hint: str) -> None:
    with pytest.raises(ValueEncodingError, match=f"'v'.*{hint}"):
        encoded(ValueSpec.json_cols(), v=column)


def test_json_cols_refuses_a_list_that_holds_itself() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueEncodingError, match="'v'"):
        encoded(ValueSpec.json_cols(), v=object_column(endless))


def test_a_time_with_nanoseconds_is_refused_rather_than_cut() -> None:
    times = pd.Series([1_234_567_891, 1_000], dtype=pd.ArrowDtype(pa.int64())).astype(pd.ArrowDtype(pa.time64("ns")))
    assert encode_json_rows(pd.DataFrame({"t": times[1:]}), ["t"]).to_pylist() == [b'{"t":"00:00:00.000001"}']
    with pytest.raises(ValueEncodingError, match=r"'t'.*no exact JSON form"):
        encode_json_rows(pd.DataFrame({"t": times}), ["t"])


def test_a_long_double_is_a_float() -> None:
    frame = pd.DataFrame({"x": pd.Series([np.longdouble(1.5)], dtype=object)})
    assert encode_json_rows(frame, ["x"]).to_pylist() == [b'{"x":1.5}']
