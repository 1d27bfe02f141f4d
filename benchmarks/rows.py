"""The rows that are written: kinds of them, and Parquet files that are made once and found again by the next run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardyfusion import KeyEncoding, ValueSpec

VALUE_BYTES = 100
LARGE_VALUE_BYTES = 4096
REGIONS = ("ap", "au", "br", "ca", "eu", "in", "jp", "us")
TIERS = 4
SEGMENTS = 125


@dataclass(frozen=True, kw_only=True)
class RowKind:
    """Rows of one sort: `make` gives those from the first number up to the end, `label` names the directory."""

    words: str
    label: str
    make: Callable[[int, int], pa.Table]
    value_spec: ValueSpec
    key_col: str = "key"
    key_encoding: KeyEncoding = KeyEncoding.U64BE
    divisor: int = 1
    """So many times fewer rows than of 100 bytes each, so that the input stays about as large."""


def make_rows(first: int, end: int, value_bytes: int = VALUE_BYTES) -> pa.Table:
    """Unique int64 keys in no order, random bytes as values."""
    return pa.table({"key": _numbers(first, end).astype(np.int64), "value": _random_bytes(first, end, value_bytes)})


def make_text_rows(first: int, end: int) -> pa.Table:
    """Unique keys of 15 letters and digits in no order."""
    return pa.table({"key": _texts(_numbers(first, end)), "value": _random_bytes(first, end, VALUE_BYTES)})


def make_columns(first: int, end: int) -> pa.Table:
    """An int64 key and four columns: text, an integer, a float with all its digits, a time."""
    numbers, random = _numbers(first, end), np.random.default_rng(first)
    seconds = random.integers(1_500_000_000, 1_800_000_000, len(numbers))
    return pa.table(
        {
            "key": numbers.astype(np.int64),
            "name": _texts(numbers[::-1]),
            "visits": random.integers(0, 100_000, len(numbers)),
            "score": random.random(len(numbers)),
            "seen": pa.array(seconds * 1_000_000, pa.timestamp("us")),
        }
    )


def make_orders(first: int, end: int) -> pa.Table:
    """What expressions go by, in no order: a unique int64 id, a region, a tier; region and segment are 1,000 pairs."""
    random, rows = np.random.default_rng(first), end - first
    segments = [f"s{number:03}" for number in range(SEGMENTS)]
    return pa.table(
        {
            "id": _numbers(first, end).astype(np.int64),
            "region": pa.array(REGIONS).take(pa.array(random.integers(0, len(REGIONS), rows))),
            "tier": random.integers(0, TIERS, rows),
            "segment": pa.array(segments).take(pa.array(random.integers(0, SEGMENTS, rows))),
            "value": _random_bytes(first, end, VALUE_BYTES),
        }
    )


def _numbers(first: int, end: int) -> npt.NDArray[np.uint64]:
    # Multiplying by an odd number permutes the residues of a power of two: keys are unique without remembering any.
    numbers = np.arange(first, end, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return numbers & np.uint64(2**63 - 1)


def _texts(numbers: npt.NDArray[np.uint64]) -> pa.StringArray:
    """15 hexadecimal digits: the low 60 bits, which are unique as well."""
    digits = np.frombuffer(numbers.astype(">u8").tobytes().hex().encode(), np.uint8).reshape(-1, 16)[:, 1:]
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * 15
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(digits.tobytes()))


def _random_bytes(first: int, end: int, value_bytes: int) -> pa.BinaryArray:
    offsets = np.arange(end - first + 1, dtype=np.int32) * value_bytes
    values = np.random.default_rng(first).bytes((end - first) * value_bytes)
    return pa.BinaryArray.from_buffers(pa.binary(), end - first, [None, pa.py_buffer(offsets), pa.py_buffer(values)])


_BYTES = ValueSpec.binary_col("value")

KINDS = {
    "int": RowKind(words="int64 key, 100 bytes", label="value=100", make=make_rows, value_spec=_BYTES),
    "text": RowKind(
        words="text key of 15, 100 bytes",
        label="text-keys",
        make=make_text_rows,
        value_spec=_BYTES,
        key_encoding=KeyEncoding.UTF8,
    ),
    "json": RowKind(
        words="int64 key, JSON of 4 columns",
        label="columns",
        make=make_columns,
        value_spec=ValueSpec.json_cols(["name", "visits", "score", "seen"]),
    ),
    "small": RowKind(
        words="int64 key, 10 bytes",
        label="value=10",
        make=lambda first, end: make_rows(first, end, 10),
        value_spec=_BYTES,
    ),
    "large": RowKind(
        words="int64 key, 4 KiB",
        label="value=4096",
        make=lambda first, end: make_rows(first, end, LARGE_VALUE_BYTES),
        value_spec=_BYTES,
        divisor=LARGE_VALUE_BYTES // VALUE_BYTES,
    ),
    "orders": RowKind(
        words="int64 id, region, tier, segment, 100 bytes",
        label="orders",
        make=make_orders,
        value_spec=_BYTES,
        key_col="id",
    ),
}


def stored_values(table: pa.Table) -> list[bytes]:
    """What a snapshot must hold for these rows."""
    if "value" in table.column_names:
        return table["value"].to_pylist()
    rows = table.drop_columns("key").to_pylist()
    return [
        json.dumps(row | {"seen": row["seen"].isoformat()}, sort_keys=True, separators=(",", ":")).encode()
        for row in rows
    ]


def parquet_files(data: Path, rows: int, files: int, kind: str = "int") -> list[Path]:
    """The input in `data`, made if it is not there yet."""
    directory = data / f"rows={rows}-files={files}-{KINDS[kind].label}"
    if not directory.exists():
        data.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix="building-", dir=data))
        try:
            for number in range(files):
                table = KINDS[kind].make(rows * number // files, rows * (number + 1) // files)
                pq.write_table(table, building / f"part-{number:03}.parquet", use_dictionary=False)
            building.rename(directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return sorted(directory.glob("*.parquet"))
