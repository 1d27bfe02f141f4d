"""Every dtype that is promised as key or value, through a whole write and back."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardyfusion import ColumnWriteInput, HashShardedWriteConfig, KeyEncoding, ShardedReader, ValueSpec
from shardyfusion.writer.dask import write_hash_sharded
from tests.writer.frames import contents, frame_of

INTEGERS = [0, 1, 2, 100, 127]
TEXTS = ["ada", "bob", "", "日本語", "x" * 300]
BYTES = [b"ada", b"\xff\xfe", b"", b"\x00", b"x" * 300]

INTEGER_DTYPES = [
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "Int8", "Int64", "UInt32", "UInt64",
    "int32[pyarrow]", "uint64[pyarrow]", "object", "category",
]  # fmt: skip
TEXT_DTYPES = ["object", "str", "string", "string[pyarrow]", pd.ArrowDtype(pa.large_string()), "category"]
BYTES_DTYPES = ["object", pd.ArrowDtype(pa.binary()), pd.ArrowDtype(pa.large_binary())]


def write(ddf: dd.DataFrame, config: HashShardedWriteConfig, value: ValueSpec, key: str = "key", **changes: Any):
    config = HashShardedWriteConfig(
        num_dbs=3, s3_prefix=config.s3_prefix, adapter_factory=config.adapter_factory, **changes
    )
    return write_hash_sharded(ddf, config, ColumnWriteInput(key, value))


def values_of(count: int) -> pd.Series:
    return pd.Series([f"value {i}" for i in range(count)])


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
@pytest.mark.parametrize("encoding", [KeyEncoding.U64BE, KeyEncoding.U32BE])
def test_integer_keys(dtype: str, encoding: KeyEncoding, config: HashShardedWriteConfig) -> None:
    write(
        frame_of(key=pd.Series(INTEGERS).astype(dtype), v=values_of(5)),
        config,
        ValueSpec.binary_col("v"),
        key_encoding=encoding,
    )
    with ShardedReader(config.s3_prefix) as reader:
        assert reader.multi_get(INTEGERS) == {key: f"value {i}".encode() for i, key in enumerate(INTEGERS)}


@pytest.mark.parametrize("dtype", TEXT_DTYPES, ids=str)
@pytest.mark.parametrize("encoding", [KeyEncoding.UTF8, KeyEncoding.RAW])
def test_text_keys(dtype: Any, encoding: KeyEncoding, config: HashShardedWriteConfig) -> None:
    write(
        frame_of(key=pd.Series(TEXTS, dtype=dtype), v=values_of(5)),
        config,
        ValueSpec.binary_col("v"),
        key_encoding=encoding,
    )
    with ShardedReader(config.s3_prefix) as reader:
        assert reader.multi_get(TEXTS) == {key: f"value {i}".encode() for i, key in enumerate(TEXTS)}


@pytest.mark.parametrize("dtype", BYTES_DTYPES, ids=str)
def test_bytes_keys_and_bytes_values(dtype: Any, config: HashShardedWriteConfig) -> None:
    keys = pd.Series(BYTES, dtype=dtype)
    write(frame_of(key=keys, v=keys), config, ValueSpec.binary_col("v"), key_encoding=KeyEncoding.RAW)
    with ShardedReader(config.s3_prefix) as reader:
        assert reader.multi_get(BYTES) == {key: key for key in BYTES}


def test_the_named_index_is_a_key(config: HashShardedWriteConfig) -> None:
    frame = pd.DataFrame({"v": values_of(5).tolist()}, index=pd.Index(INTEGERS, name="key"))
    write(dd.from_pandas(frame, npartitions=2), config, ValueSpec.json_cols())
    with ShardedReader(config.s3_prefix) as reader:
        assert reader.get(127) == b'{"v":"value 4"}'


def test_an_integer_key_beside_floats_keeps_its_exact_value(config: HashShardedWriteConfig) -> None:
    """A row-wise conversion would make both of these keys 9007199254740992.0."""
    keys = [2**53, 2**53 + 1]
    ddf = frame_of(key=keys, f=[1.5, np.nan])
    write(ddf, config, ValueSpec.callable_encoder(lambda row: repr((row["key"], row.f)).encode()))
    with ShardedReader(config.s3_prefix) as reader:
        assert reader.multi_get(keys) == {2**53: b"(9007199254740992, 1.5)", 2**53 + 1: b"(9007199254740993, nan)"}


def test_every_spelling_of_null_is_an_empty_value(config: HashShardedWriteConfig) -> None:
    nulls = pd.Series([None, np.nan, pd.NA, pd.NaT, b"\x00"], dtype=object)
    write(frame_of(key=INTEGERS, v=nulls), config, ValueSpec.binary_col("v"))
    assert sorted(contents(config.s3_prefix).values()) == [b"", b"", b"", b"", b"\x00"]


def test_json_of_every_column_type(config: HashShardedWriteConfig, tmp_path: Path) -> None:
    """Read from Parquet, where lists, dicts and decimals are promised."""
    table = pa.table(
        {
            "key": pa.array([1, 2], pa.int64()),
            "int": pa.array([-(2**62), None], pa.int64()),
            "float": [float("nan"), 1e20],
            "bool": [True, None],
            "text": ['é"\\', None],
            "when": pa.array([dt.datetime(2026, 11, 20, 10, 30), None], pa.timestamp("us")),
            "decimal": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(9, 2)),
            "list": pa.array([[1, None], []], pa.list_(pa.int64())),
            "dict": pa.array([{"b": 1, "a": "x"}, None], pa.struct([("b", pa.int64()), ("a", pa.string())])),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    write(dd.read_parquet(tmp_path / "in.parquet", dtype_backend="pyarrow"), config, ValueSpec.json_cols())
    with ShardedReader(config.s3_prefix) as reader:
        first, second = reader.get(1), reader.get(2)
    assert first is not None
    assert second is not None
    assert json.loads(first) == {
        "bool": True,
        "decimal": "1.50",
        "dict": {"a": "x", "b": 1},
        "float": None,
        "int": -(2**62),
        "key": 1,
        "list": [1, None],
        "text": 'é"\\',
        "when": "2026-11-20T10:30:00",
    }
    assert second.startswith(b'{"bool":null,"decimal":null,"dict":null,"float":1e+20,"int":null,"key":2,"list":[],')


def test_columns_that_dask_turned_into_text_are_warned_about_once(config: HashShardedWriteConfig) -> None:
    frame = pd.DataFrame({"key": range(6), "v": [[i, i + 1] for i in range(6)]})
    with pytest.warns(UserWarning, match=r"column 'v'.*turned into text") as caught:
        write(dd.from_pandas(frame, npartitions=3), config, ValueSpec.json_cols(["v"]))
    assert len(caught) == 1


def test_nullable_integers_with_nulls_are_refused_as_keys_and_exact_as_values(config: HashShardedWriteConfig) -> None:
    big = pd.Series([2**62 + 1, None], dtype="Int64")
    write(frame_of(key=[1, 2], v=big), config, ValueSpec.json_cols(["v"]))
    with ShardedReader(config.s3_prefix) as reader:
        assert reader.multi_get([1, 2]) == {1: b'{"v":4611686018427387905}', 2: b'{"v":null}'}
