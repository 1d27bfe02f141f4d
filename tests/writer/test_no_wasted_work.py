"""The input is read once, only the columns that are needed, and no row becomes a Python object on its way to a shard."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardyfusion import (
    CelShardedWriteConfig,
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    ValueSpec,
)
from shardyfusion.writer.dask import write_cel_sharded, write_hash_sharded
from tests.writer.frames import contents

PAYLOAD = ColumnWriteInput("id", ValueSpec.binary_col("payload"))
BY_PYTHON = ColumnWriteInput("id", ValueSpec.callable_encoder(lambda row: row.payload, columns=["payload"]))
PARTITIONS = 2


def table(rows: int, **more: Any) -> pa.Table:
    values = pa.array([b"%040d" % number for number in range(rows)], pa.binary())
    return pa.table({"id": pa.array(np.arange(rows)), "payload": values, **more})


def source(directory: Path, rows: int) -> dd.DataFrame:
    directory.mkdir()
    for number in range(PARTITIONS):
        part = table(rows).slice(number * rows // PARTITIONS, rows // PARTITIONS)
        pq.write_table(part, directory / f"{number}.parquet")
    return dd.read_parquet(directory, dtype_backend="pyarrow")


@pytest.mark.parametrize("way", ["direct", "disk", "tasks"])
def test_the_input_is_evaluated_once(way: Any, config: HashShardedWriteConfig, counted: Any, tmp_path: Path) -> None:
    ddf, evaluations = counted(source(tmp_path / "in", 100))
    write_hash_sharded(ddf, config, PAYLOAD, DaskWriteOptions(shuffle=way))
    assert evaluations() == PARTITIONS


def test_a_column_that_is_not_needed_is_not_read(config: HashShardedWriteConfig, tmp_path: Path) -> None:
    """Its bytes in the file are garbage, so reading it would fail."""
    file = tmp_path / "in.parquet"
    pq.write_table(table(1_000, junk=pa.array([f"{n}" for n in range(1_000)])), file, compression="snappy")
    column = next(
        chunk
        for chunk in (pq.read_metadata(file).row_group(0).column(i) for i in range(3))
        if chunk.path_in_schema == "junk"
    )
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(file.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)snappy|page|thrift"):
        pq.read_table(file, columns=["junk"])
    write_hash_sharded(dd.read_parquet(file, dtype_backend="pyarrow"), config, PAYLOAD)
    assert len(contents(config.s3_prefix)) == 1_000


def calls_of(work: Any) -> int:
    """How many functions, of Python or of C, are called by Python code."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("way", ["direct", "disk", "tasks"])
def test_more_rows_are_not_more_calls(way: Any, config: HashShardedWriteConfig, tmp_path: Path) -> None:
    few, many = (source(tmp_path / str(rows), rows) for rows in (2_000, 12_000))

    def calls(ddf: dd.DataFrame, how: ColumnWriteInput) -> int:
        return calls_of(lambda: write_hash_sharded(ddf, config, how, DaskWriteOptions(shuffle=way)))

    calls(few, PAYLOAD)  # whatever is imported, prepared or cached
    assert calls(many, PAYLOAD) - calls(few, PAYLOAD) < 1_000
    assert calls(many, BY_PYTHON) - calls(few, BY_PYTHON) > 10_000, "it would be seen"


EXPRESSIONS: dict[str, dict[str, Any]] = {
    "direct": {"cel_expr": "id % 3"},
    "hashed": {"cel_expr": "shard_hash(id) % 3u", "num_dbs": 3},
    "inferred": {"cel_expr": "string(id % 3) + ':' + place", "infer_routing_values_from_data": True},
    "given": {"cel_expr": "place", "routing_values": ["eu", "us"]},
    "memoised": {"cel_expr": "[place, 'eu'].exists(x, x == 'us') ? 1 : 0"},
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_more_rows_are_not_more_calls_by_an_expression(
    name: str, config: HashShardedWriteConfig, tmp_path: Path
) -> None:
    by_expression = CelShardedWriteConfig(
        s3_prefix=config.s3_prefix,
        adapter_factory=config.adapter_factory,
        cel_columns={"id": "int", "place": "string"},
        **EXPRESSIONS[name],
    )

    def calls(rows: int) -> int:
        ddf = source(tmp_path / f"{rows}-{uuid4().hex}", rows)
        ddf["place"] = ddf["payload"].map_partitions(places, meta=("place", "object"))
        return calls_of(lambda: write_cel_sharded(ddf, by_expression, PAYLOAD))

    calls(2_000)  # whatever is imported, prepared or cached
    assert calls(12_000) - calls(2_000) < 1_000


def places(column: pd.Series) -> pd.Series:
    return pd.Series(np.where(np.arange(len(column)) % 2, "eu", "us"), index=column.index, name="place")


@contextmanager
def most_objects() -> Iterator[list[int]]:
    """The largest number of small objects that there were at any time in the block, beyond those before it."""
    most, done = [0], threading.Event()
    before, interval = sys.getallocatedblocks(), sys.getswitchinterval()

    def sample() -> None:
        while not done.is_set():
            most[0] = max(most[0], sys.getallocatedblocks() - before)
            time.sleep(0.0005)

    sampler = threading.Thread(target=sample)
    sys.setswitchinterval(1e-5)
    sampler.start()
    try:
        yield most
    finally:
        done.set()
        sampler.join()
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("way", ["direct", "disk", "tasks"])
def test_no_column_becomes_python_objects_in_between(way: Any, config: HashShardedWriteConfig, tmp_path: Path) -> None:
    rows = 400_000
    ddf, options = source(tmp_path / "in", rows), DaskWriteOptions(shuffle=way)
    write_hash_sharded(source(tmp_path / "first", 1_000), config, PAYLOAD, options)
    with dask.config.set(scheduler="synchronous"):
        with most_objects() as most:
            write_hash_sharded(ddf, config, PAYLOAD, options)
        assert most[0] < rows // 8
        with most_objects() as most:
            write_hash_sharded(ddf, config, BY_PYTHON, options)
        assert most[0] > rows // 8, "it would be seen"
