"""Key encodings: the published vectors, every dtype that must work, and what is refused."""

from __future__ import annotations

import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.errors import ConfigValidationError
from shardyfusion.serde.key_columns import KeyProblems, check_key_dtype, encode_key_column
from shardyfusion.serde.keys import KeyEncoding, decode_key

U64, U32, UTF8, RAW = KeyEncoding.U64BE, KeyEncoding.U32BE, KeyEncoding.UTF8, KeyEncoding.RAW
INTEGERS = [0, 1, 100, 7]
TEXTS = ["a", "", "é", "user-123"]


def object_column(*values: Any) -> pd.Series[Any]:
    return pd.Series(list(values), dtype=object)


def vectors(shared: Path) -> list[tuple[KeyEncoding, Any, bytes | None]]:
    read = {"int": int, "str": str, "bytes": bytes.fromhex}
    found = json.loads((shared / "vectors/key_encoding.json").read_text())["vectors"]
    return [
        (
            KeyEncoding(item["encoding"]),
            next(read[kind](text) for kind, text in item["key"].items()),
            bytes.fromhex(item["result"]["bytes"]) if "bytes" in item["result"] else None,
        )
        for item in found
    ]


def test_scalar_encoding_gives_the_published_vectors(shared: Path) -> None:
    for encoding, key, stored in vectors(shared):
        if stored is None:
            with pytest.raises(ConfigValidationError):
                encoding.encode(key)
        else:
            assert encoding.encode(key) == stored


def test_column_encoding_gives_the_published_vectors(shared: Path) -> None:
    """Except integers from 2^63 on, which a writer refuses because they cannot be routed."""
    for encoding, key, stored in vectors(shared):
        encoded = encode_key_column(object_column(key), encoding)
        if stored is None or (isinstance(key, int) and key >= 2**63):
            assert encoded.problems.invalid == 1
        else:
            assert not encoded.problems
            assert encoded.stored.to_pylist() == [stored]


@pytest.mark.parametrize(
    ("encoding", "key", "hint"),
    [
        (U64, np.int64(3), "key.item()"),
        (U64, 3.0, "int\\(key\\)"),
        (U64, b"\0" * 8, "bytes"),
        (U32, b"\0" * 4, "bytes"),
        (U64, None, "NoneType"),
        (U32, 2**32, "2\\^32"),
        (UTF8, 3, "str or bytes"),
        (UTF8, bytearray(b"a"), "bytearray"),
        (UTF8, "\ud800", "surrogate"),
        (RAW, "x" * 1000 + "\ud800", "x…"),
    ],
    ids=str,
)
def test_lookup_keys_of_the_wrong_kind_are_refused_with_a_hint(encoding: KeyEncoding, key: Any, hint: str) -> None:
    with pytest.raises(ConfigValidationError, match=hint) as caught:
        encoding.encode(key)
    assert len(str(caught.value)) < 250


def test_bools_are_integers() -> None:
    assert (U64.encode(True), U32.encode(False)) == (U64.encode(1), U32.encode(0))


INTEGER_COLUMNS = {
    **{
        f"numpy {name}": pd.Series(INTEGERS, dtype=name)
        for name in ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    },
    **{f"nullable {name}": pd.Series(INTEGERS, dtype=name) for name in ("Int8", "Int64", "UInt16", "UInt64")},
    **{
        f"arrow {kind}": pd.Series(INTEGERS, dtype=pd.ArrowDtype(kind)) for kind in (pa.int8(), pa.int64(), pa.uint64())
    },
    "object": object_column(*INTEGERS),
    "object numpy": object_column(np.int64(0), 1, np.uint8(100), 7),
    "object beside bool": object_column(False, True, 100, 7),
    "categorical": pd.Series(INTEGERS, dtype="category"),
    "index": pd.Index(INTEGERS, name="k"),
    "range index": pd.RangeIndex(4),
    "sliced": pd.Series([9, *INTEGERS, 9])[1:-1],
    "arrow sliced": pd.Series([9, *INTEGERS, 9], dtype=pd.ArrowDtype(pa.int64()))[1:-1],
}
TEXT_COLUMNS = {
    "str": pd.Series(TEXTS, dtype="str"),
    "string": pd.Series(TEXTS, dtype="string"),
    "string[python]": pd.Series(TEXTS, dtype="string[python]"),
    "string[pyarrow]": pd.Series(TEXTS, dtype="string[pyarrow]"),
    "object": object_column(*TEXTS),
    "categorical": pd.Series(TEXTS, dtype="category"),
    "categorical object": pd.Series(pd.Categorical(object_column(*TEXTS))),
    "index": pd.Index(TEXTS, name="k"),
    "sliced": pd.Series(["x", *TEXTS, "y"])[1:-1],
    **{
        f"arrow {kind}": pd.Series(TEXTS, dtype=pd.ArrowDtype(kind))
        for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()))
    },
    "object bytes": object_column(*(text.encode() for text in TEXTS)),
    "object mixed": object_column("a", b"", "é".encode(), "user-123"),
    "object bytearray": object_column(b"a", bytearray(), "é", "user-123"),
    **{
        f"arrow {kind}": pd.Series([text.encode() for text in TEXTS], dtype=pd.ArrowDtype(kind))
        for kind in (pa.binary(), pa.large_binary())
    },
}


@pytest.mark.parametrize("name", INTEGER_COLUMNS)
@pytest.mark.parametrize("encoding", [U64, U32], ids=str)
def test_integer_columns(name: str, encoding: KeyEncoding) -> None:
    column = INTEGER_COLUMNS[name]
    expected = list(range(4)) if name == "range index" else INTEGERS
    check_key_dtype(column.dtype, encoding, "k")
    encoded = encode_key_column(column, encoding)
    assert not encoded.problems
    assert encoded.problems.rows == 4
    assert encoded.values.type == pa.int64()
    assert encoded.values.to_pylist() == expected
    assert encoded.stored.type == pa.large_binary()
    assert encoded.stored.to_pylist() == [encoding.encode(key) for key in expected]
    encoded.stored.validate(full=True)


@pytest.mark.parametrize("name", TEXT_COLUMNS)
@pytest.mark.parametrize("encoding", [UTF8, RAW], ids=str)
def test_text_and_bytes_columns(name: str, encoding: KeyEncoding) -> None:
    column = TEXT_COLUMNS[name]
    check_key_dtype(column.dtype, encoding, "k")
    encoded = encode_key_column(column, encoding)
    assert not encoded.problems
    assert encoded.values.type in (pa.large_string(), pa.large_binary())
    assert encoded.stored.type == pa.large_binary()
    assert encoded.stored.to_pylist() == [text.encode() for text in TEXTS]
    assert encoded.values.cast(pa.large_binary()).equals(encoded.stored)


NULLED = [
    (pd.Series([1, None, 3], dtype="Int64"), U64, 1),
    (pd.Series([1, None, None], dtype=pd.ArrowDtype(pa.int64())), U64, 2),
    (object_column(1, None, float("nan")), U64, 2),
    (object_column(2**53 + 1, pd.NA, pd.NaT), U64, 2),
    (object_column(True, 1, None, np.float32("nan")), U64, 2),
    (pd.Series([1, None, 3], dtype="category"), U64, 1),
    (pd.Series([None, float("nan")], dtype="float64"), U64, 2),
    (pd.Series(["a", None]), UTF8, 1),
    (pd.Series(["a", None], dtype="string"), UTF8, 1),
    (pd.Series(["a", None], dtype="category"), RAW, 1),
    (pd.Series([b"a", None], dtype=pd.ArrowDtype(pa.binary())), RAW, 1),
    (object_column("a", b"b", None, float("nan"), pd.NA), UTF8, 3),
    (object_column(None, None), UTF8, 2),
]


@pytest.mark.parametrize(("column", "encoding", "nulls"), NULLED, ids=str)
def test_null_keys_are_counted_however_they_are_spelled(
    column: pd.Series[Any], encoding: KeyEncoding, nulls: int
) -> None:
    encoded = encode_key_column(column, encoding)
    assert (encoded.problems.rows, encoded.problems.nulls, encoded.problems.invalid) == (len(column), nulls, 0)
    assert len(encoded.stored) == len(encoded.values) == len(column) - nulls
    assert f"{nulls} of {len(column)} keys are null" in encoded.problems.describe("k")


INVALID = [
    (pd.Series([5, -5, -6]), U64, 2, "-5", "negative"),
    (pd.Series([5, -5], dtype="Int8"), U32, 1, "-5", "negative"),
    (pd.Series([1, 2**32]), U32, 1, str(2**32), "U64BE"),
    (pd.Series([1, 2**63], dtype="uint64"), U64, 1, str(2**63), "2^63"),
    (object_column(1, 2**63, 2**64), U64, 2, str(2**63), "2^63"),
    (object_column(1, 2**200), U32, 1, str(2**200), "0 to 2^32-1"),
    (object_column(1, "a"), U64, 1, "'a'", "int"),
    (object_column(1, 1.5), U64, 2, "1.0", "floats"),
    (object_column("a", "b"), U64, 2, "'a'", "UTF8"),
    (object_column(b"a"), U64, 1, "b'a'", "RAW"),
    (object_column(1, 2), UTF8, 2, "1", "U64BE"),
    (object_column("a", 2, (3,)), UTF8, 2, "2", "str or bytes"),
    (object_column("a", "\ud800"), UTF8, 1, "'\\ud800'", "surrogate"),
    (object_column(Decimal("1.5")), U64, 1, "Decimal('1.5')", "decimal"),
    (pd.Series([1.0, None]), U64, 1, "1.0", "int64"),
    (pd.Series(pd.to_datetime(["2024-01-01"])), UTF8, 1, "datetime", "temporal"),
]


@pytest.mark.parametrize(("column", "encoding", "invalid", "example", "reason"), INVALID, ids=str)
def test_unusable_keys_are_counted_with_an_example(
    column: pd.Series[Any], encoding: KeyEncoding, invalid: int, example: str, reason: str
) -> None:
    problems = encode_key_column(column, encoding).problems
    assert problems.invalid == invalid
    assert example[:50] in (problems.example or "")
    assert reason in (problems.reason or "")


@pytest.mark.parametrize("column", [pd.Series(["", "ab", "abcd"]), object_column(b"", "ab", b"abcd")])
def test_keys_outside_the_engine_limits_are_counted(column: pd.Series[Any]) -> None:
    encoded = encode_key_column(column, UTF8, min_bytes=1, max_bytes=3)
    assert encoded.problems.invalid == 2
    assert "0 bytes" in (encoded.problems.reason or "")
    assert encoded.stored.to_pylist() == [b"ab"]
    assert "at most 3" in (encode_key_column(column[1:], UTF8, min_bytes=1, max_bytes=3).problems.reason or "")
    assert not encode_key_column(column, UTF8).problems


@pytest.mark.parametrize(
    "column", [pd.Series([], dtype=object), pd.Series([], dtype="int64"), pd.Series([], dtype="str")]
)
@pytest.mark.parametrize("encoding", list(KeyEncoding), ids=str)
def test_empty_columns_are_fine_whatever_their_dtype(column: pd.Series[Any], encoding: KeyEncoding) -> None:
    encoded = encode_key_column(column, encoding)
    assert not encoded.problems
    assert len(encoded.stored) == len(encoded.values) == 0
    assert (encoded.values.type == pa.int64()) == (encoding in (U64, U32))


@pytest.mark.parametrize(
    ("dtype", "encoding", "hint"),
    [
        (pd.StringDtype(), U64, "UTF8"),
        (pd.Series(["a"]).dtype, U32, "UTF8"),
        (pd.ArrowDtype(pa.binary()), U64, "RAW"),
        (pd.CategoricalDtype(["a"]), U64, "UTF8"),
        (np.dtype("int64"), UTF8, "U64BE"),
        (pd.Int64Dtype(), RAW, "U64BE"),
        (np.dtype("float64"), U64, "int64"),
        (pd.Float64Dtype(), UTF8, "int64"),
        (np.dtype("datetime64[ns]"), U64, "temporal"),
        (pd.DatetimeTZDtype(tz="UTC"), UTF8, "temporal"),
        (pd.PeriodDtype("D"), UTF8, "unsupported"),
        (pd.ArrowDtype(pa.list_(pa.int8())), RAW, "nested"),
        (pd.ArrowDtype(pa.decimal128(5, 2)), UTF8, "decimal"),
    ],
    ids=str,
)
def test_a_dtype_that_cannot_be_a_key_is_refused_before_any_data(dtype: Any, encoding: KeyEncoding, hint: str) -> None:
    with pytest.raises(ConfigValidationError, match=f"'k'.*{hint}"):
        check_key_dtype(dtype, encoding, "k")


@pytest.mark.parametrize("encoding", list(KeyEncoding), ids=str)
def test_dtypes_that_only_the_data_decides_pass(encoding: KeyEncoding) -> None:
    """Object, and categories that Dask does not know yet."""
    for dtype in (np.dtype(object), pd.CategoricalDtype(["__UNKNOWN_CATEGORIES__"]), pd.CategoricalDtype()):
        check_key_dtype(dtype, encoding, "k")


def test_problems_add_up_and_travel() -> None:
    one, two = KeyProblems(rows=3, nulls=1), KeyProblems(rows=2, invalid=2, example="-1", reason="negative")
    both = pickle.loads(pickle.dumps(one + two))
    assert both == KeyProblems(rows=5, nulls=1, invalid=2, example="-1", reason="negative")
    assert both.describe("id") == (
        "key column 'id': 1 of 5 keys are null; 2 of 5 keys cannot be used, for example -1: negative"
    )
    assert not KeyProblems(rows=9)
    assert KeyProblems(rows=9).describe("id") == ""


@given(st.lists(st.integers(-3, 2**63 + 3) | st.sampled_from([2**32 - 1, 2**32, 2**63 - 1]), max_size=20))
@pytest.mark.parametrize("encoding", [U64, U32], ids=str)
def test_scalar_and_column_agree_on_integers(encoding: KeyEncoding, keys: list[int]) -> None:
    top = 2**63 - 1 if encoding is U64 else 2**32 - 1
    good = [key for key in keys if 0 <= key <= top]
    encoded = encode_key_column(object_column(*keys), encoding)
    assert encoded.problems.invalid == len(keys) - len(good)
    assert encoded.stored.to_pylist() == [encoding.encode(key) for key in good]
    assert [decode_key(encoding, stored) for stored in encoded.stored.to_pylist()] == good


@given(st.lists(st.text() | st.binary(), max_size=20))
@pytest.mark.parametrize("encoding", [UTF8, RAW], ids=str)
def test_scalar_and_column_agree_on_text_and_bytes(encoding: KeyEncoding, keys: list[str | bytes]) -> None:
    encoded = encode_key_column(object_column(*keys), encoding)
    assert not encoded.problems
    assert encoded.stored.to_pylist() == [encoding.encode(key) for key in keys]


def test_stored_keys_are_shown_as_what_they_were() -> None:
    assert decode_key(U64, U64.encode(2**63)) == 2**63
    assert decode_key(UTF8, "é".encode()) == "é"
    assert decode_key(UTF8, b"\xff") is None
    assert decode_key(RAW, b"a") is None
