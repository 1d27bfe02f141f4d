"""Of rows with one key the first or the last in input order stays, however the work is divided; or none, and it is said."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyfusion import (
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    ShardedReader,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.errors import DuplicateKeyError, SnapshotNotFoundError
from shardyfusion.writer.dask import BuildResult, write_hash_sharded
from tests.writer.frames import contents
from tests.writer.schedulers import scheduler

INPUT = ColumnWriteInput("key", ValueSpec.binary_col("value"))
ENCODINGS = {"int": "u64be", "text": "utf8"}
SEED = 11

Pairs = list[tuple[Any, bytes]]


def pairs_of(kind: str) -> Pairs:
    """600 rows with 60 keys: 10 each on average, all values different."""
    rng = np.random.default_rng(SEED)
    keys = [int(key) for key in rng.integers(0, 60, 600)]
    return [(key if kind == "int" else f"key-{'x' * (key % 7)}{key}", b"%d" % row) for row, key in enumerate(keys)]


def frame(pairs: Pairs, ends: list[int]) -> dd.DataFrame:
    """The rows in this order, cut into partitions at `ends`; some of them may be empty."""
    rows = pd.DataFrame({"key": pd.Series([key for key, _ in pairs], dtype=object)})
    rows["value"] = pd.Series([value for _, value in pairs], dtype=object)
    cuts = [0, *sorted(ends), len(pairs)]
    parts = [rows.iloc[start:end] for start, end in pairwise(cuts)]
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(lambda part: part, parts, meta=rows.iloc[:0])


def kept(pairs: Pairs, policy: str) -> dict[bytes, bytes]:
    """What a dict of Python would keep."""
    ordered = pairs if policy == "last" else pairs[::-1]
    return {key.to_bytes(8, "big") if isinstance(key, int) else key.encode(): value for key, value in ordered}


def write(ddf: dd.DataFrame, prefix: object, policy: Any, exchange: Any, kind: str = "int") -> BuildResult:
    config = HashShardedWriteConfig(
        num_dbs=3,
        s3_prefix=prefix,
        adapter_factory=SqliteFactory(),
        key_encoding=ENCODINGS[kind],
        on_duplicate_key=policy,
    )
    return write_hash_sharded(ddf, config, INPUT, DaskWriteOptions(shuffle=exchange))


@pytest.mark.parametrize("policy", ["first", "last"])
@pytest.mark.parametrize("exchange", ["direct", "disk", "tasks"])
@settings(max_examples=15)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=3)), min_size=1, max_size=30),
    ends=st.lists(st.integers(0, 30), max_size=5),
)
def test_what_stays_is_what_a_dict_would_keep(policy: str, exchange: str, pairs: Pairs, ends: list[int]) -> None:
    prefix = f"memory://{uuid4().hex}/snap"
    result = write(frame(pairs, [min(end, len(pairs)) for end in ends]), prefix, policy, exchange)
    assert contents(prefix) == kept(pairs, policy)
    assert (result.rows, result.input_rows) == (len(kept(pairs, policy)), len(pairs))
    assert sum(winner.duplicates_dropped for winner in result.winners) == len(pairs) - result.rows


CASES = [
    ("text", "last", [50, 300]),
    ("int", "first", [200, 400]),
    ("text", "last", [50, 300]),
    ("int", "last", [1, 7, 7, 599]),
    ("text", "first", []),
]
"""Keys, policy, and where the input is cut. One comes twice: a repeated run."""


@pytest.mark.parametrize(
    ("scheduler_name", "exchange", "cases"),
    [
        ("synchronous", "direct", CASES),
        ("synchronous", "tasks", CASES),
        ("threads", "direct", CASES),
        ("threads", "tasks", CASES),
        ("threads", "disk", CASES),
        ("processes", "direct", CASES[:1]),  # each starts its processes anew
        ("distributed", "direct", CASES[:2]),
        ("distributed", "disk", CASES[:2]),
        ("distributed", "tasks", CASES[1:3]),
        ("distributed", "p2p", CASES[:3]),
    ],
)
def test_every_scheduler_exchange_and_partitioning_keeps_the_same_rows(
    scheduler_name: str, exchange: str, cases: list[Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with scheduler(scheduler_name, request):
        for number, (kind, policy, ends) in enumerate(cases):
            pairs = pairs_of(kind)
            write(frame(pairs, ends), tmp_path / str(number), policy, exchange, kind)
            assert contents(tmp_path / str(number)) == kept(pairs, policy), f"{kind} {policy} {ends}, seed {SEED}"


@pytest.mark.parametrize(
    ("scheduler_name", "exchange"),
    [("synchronous", "tasks"), ("threads", "direct"), ("distributed", "p2p")],
)
def test_the_error_is_the_same_for_every_scheduler_exchange_and_partitioning(
    scheduler_name: str, exchange: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pairs = pairs_of("int")
    with pytest.raises(DuplicateKeyError) as first:
        write(frame(pairs, []), tmp_path / "one", "fail", "direct")
    with scheduler(scheduler_name, request):
        for ends in ([300], [10, 20, 590]):
            with pytest.raises(DuplicateKeyError) as again:
                write(frame(pairs, ends), tmp_path / "other", "fail", exchange)
            assert again.value.message == first.value.message, f"{ends}, seed {SEED}"
    keys = {key for key, _ in pairs}
    assert 0 < first.value.facts["keys"] < len(keys), "those of one shard"
    assert first.value.facts["surplus_rows"] >= first.value.facts["keys"]


def test_duplicate_keys_fail_with_their_count_and_examples(memory_prefix: str) -> None:
    pairs = [(7, b"a"), (7, b"b"), (7, b"c"), (8, b"d")]
    with pytest.raises(DuplicateKeyError, match=r"1 different, 2 surplus rows.*\b7\b.*on_duplicate_key"):
        write(frame(pairs, [2]), memory_prefix, "fail", "auto")
    with pytest.raises(SnapshotNotFoundError):
        ShardedReader(memory_prefix)
