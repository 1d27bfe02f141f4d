"""Rows that are lost, invented, misplaced or changed between the encode tasks and the shard tasks never get published."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from dask.local import get_sync
from distributed import Client, LocalCluster

from shardyfusion import HashShardedWriteConfig, ShardedReader, SqliteFactory
from shardyfusion.errors import ShardCoverageError, SnapshotNotFoundError
from shardyfusion.storage import StoreAddress, open_store
from tests.writer.exchange_faults import FAULTS, Flight, changed_shards, damaged, rows_of
from tests.writer.faulty_exchange import (
    DELIVERED,
    ENCODED,
    FILES,
    GIVEN,
    PIECES,
    Crossing,
    Get,
    Method,
    Seam,
    damage,
    get_apart,
    scheduler_that,
    write_over,
)
from tests.writer.frames import contents, object_names

SHARDS, PARTITIONS, ROWS = 3, 2, 36
ENCODINGS = {"int": "u64be", "text": "utf8", "bytes": "raw"}
POLICIES = ("fail", "first", "last")
INPUTS = 4
"""Frames for each type of key; each is written with many faults."""
SEEDS = {"direct": 4, "direct, apart": 4, "disk": 4, "tasks, given": 3, "tasks, delivered": 3}
"""Faults of each kind for each type of key: 24 x 3 x (4 + 4 + 4 + 3 + 3) = 1,296, each in a write of its own."""
EXCHANGES: dict[str, tuple[Method, Seam]] = {
    "direct": ("direct", ENCODED),
    "direct, apart": ("direct", PIECES),
    "disk": ("disk", FILES),
    "tasks, given": ("tasks", GIVEN),
    "tasks, delivered": ("tasks", DELIVERED),
    "p2p, given": ("p2p", GIVEN),
    "p2p, delivered": ("p2p", DELIVERED),
}


def make_key(kind: str, rng: random.Random) -> Any:
    match kind:
        case "int":
            return rng.randrange(2**63)
        case "text":
            return "".join(rng.choices("abcdé", k=rng.randrange(1, 12)))
        case _:
            return rng.randbytes(rng.randrange(1, 12))


@cache
def frame(kind: str, number: int, *, repeats: int = 0) -> dd.DataFrame:
    """Distinct keys of a kind, and values of which some are empty and some are equal; then `repeats` keys again."""
    rng = random.Random(f"{kind} {number}")
    keys: dict[Any, bytes] = {}
    while len(keys) < ROWS:
        keys[make_key(kind, rng)] = rng.randbytes(rng.choice([0, 1, 3, 8, 20])) if rng.random() < 0.8 else b"same"
    rows = [*keys.items(), *((key, b"again") for key in rng.sample(list(keys), repeats))]
    with dask.config.set({"dataframe.convert-string": False}):
        table = pd.DataFrame(rows, columns=["key", "value"], dtype=object)
        return dd.from_pandas(table, npartitions=PARTITIONS, sort=False)


def config_for(prefix: str, kind: str, policy: Any = "fail") -> HashShardedWriteConfig:
    return HashShardedWriteConfig(
        num_dbs=SHARDS,
        s3_prefix=prefix,
        adapter_factory=SqliteFactory(),
        key_encoding=ENCODINGS[kind],
        on_duplicate_key=policy,
    )


def check_error(error: ShardCoverageError, before: Flight, after: Flight) -> None:
    """It names the first shard that got other rows, both counts, and what is wrong."""
    shard = changed_shards(before, after)[0]
    expected, arrived = len(rows_of(before, shard)), len(rows_of(after, shard))
    difference = "lost" if arrived < expected else "invented" if arrived > expected else "changed"
    assert error.facts["db_id"] == shard
    assert (error.facts["expected_rows"], error.facts["arrived_rows"]) == (expected, arrived)
    assert error.facts["difference"] == difference
    assert f"shard {shard}: {expected} rows were read" in str(error)
    assert difference in str(error)


def assert_nothing_published(prefix: str, wrong: list[int]) -> None:
    """Nor is any of the wrong shards sealed."""
    with pytest.raises(SnapshotNotFoundError):
        ShardedReader(prefix)
    names = object_names(prefix)
    assert {name.split("/")[0] for name in names} <= {"runs", "shards"}
    assert not [name for name in names if name.startswith("runs/outcome/")]
    assert not built_shards(names) & set(wrong)


def built_shards(names: list[str]) -> set[int]:
    """`shards/run_id=…/db=…/attempt=…/…`"""
    return {int(name.split("/")[2].removeprefix("db=")) for name in names if name.startswith("shards/")}


def without_cluster(exchange: str, tmp_path: Path) -> tuple[Get, str]:
    """A scheduler, and a new prefix that a write with it can use."""
    if exchange == "direct, apart":
        return get_apart, f"file://{tmp_path}/{uuid4().hex}"
    return get_sync, f"memory://{uuid4().hex}/snap"


def check_write_over_fault(exchange: str, fault: str, kind: str, seed: int, prefix: str, get: Get) -> None:
    method, seam = EXCHANGES[exchange]
    policy = POLICIES[seed % len(POLICIES)]
    config = config_for(prefix, kind, policy)
    change = damage(seam, partial(damaged, fault=FAULTS[fault], seed=f"{exchange} {kind} {seed}"))
    try:
        with scheduler_that(change, seam, get) as seen, pytest.raises(ShardCoverageError) as caught:
            write_over(frame(kind, seed % INPUTS), config, method)
        check_error(caught.value, *seen)
        assert_nothing_published(prefix, changed_shards(*seen))
    except BaseException as exc:
        exc.add_note(f"{exchange}: {fault}, {kind} keys, seed {seed}, on_duplicate_key={policy!r}")
        raise


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("exchange", SEEDS)
def test_a_write_over_a_faulty_exchange_publishes_nothing(exchange: str, fault: str, kind: str, tmp_path: Path) -> None:
    for seed in range(SEEDS[exchange]):
        get, prefix = without_cluster(exchange, tmp_path)
        check_write_over_fault(exchange, fault, kind, seed, prefix, get)
        open_store(StoreAddress.parse(prefix)).delete(object_names(prefix))


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("exchange", SEEDS)
def test_an_exchange_without_a_fault_passes_in_whatever_order(
    exchange: str, policy: str, kind: str, tmp_path: Path
) -> None:
    method, seam = EXCHANGES[exchange]
    get, prefix = without_cluster(exchange, tmp_path)
    repeats = 0 if policy == "fail" else 5
    with scheduler_that(damage(seam, in_other_order), seam, get) as seen:
        result = write_over(frame(kind, 0, repeats=repeats), config_for(prefix, kind, policy), method)
    assert seen[0] != seen[1]
    assert result.input_rows == ROWS + repeats
    assert len(contents(prefix)) == ROWS
    assert built_shards(object_names(prefix)) == set(range(SHARDS))


def in_other_order(flight: Flight) -> Flight:
    rng = random.Random(1)
    return {place: rng.sample(rows, len(rows)) for place, rows in flight.items()}


# -- a shuffle that takes rows to a shard that they say they are not of --------------------------------------------------


def exchange_two_shards(frames: Crossing) -> Crossing:
    (one, a), (other, b) = sorted(frames.items())[:2]
    return {**frames, one: b, other: a}


def repeat_a_shard_in_another(frames: Crossing) -> Crossing:
    (_, a), (other, b) = sorted(frames.items())[:2]
    return {**frames, other: pd.concat([b, a])}


def move_a_row(frames: Crossing) -> Crossing:
    (one, a), (other, b) = sorted(frames.items())[-2:]
    return {**frames, one: pd.concat([a, b[:1]]), other: b[1:]}


def trade_a_row(frames: Crossing) -> Crossing:
    """Each of the two has as many as before."""
    (one, a), (other, b) = sorted(frames.items())[1:3]
    return {**frames, one: pd.concat([a[1:], b[:1]]), other: pd.concat([b[1:], a[:1]])}


STRAYS = [exchange_two_shards, repeat_a_shard_in_another, move_a_row, trade_a_row]


def check_strays(stray: Callable[[Crossing], Crossing], method: Method, prefix: str, get: Get = get_sync) -> None:
    with (
        scheduler_that(stray, DELIVERED, get),
        pytest.raises(ShardCoverageError, match="rows of other shards") as caught,
    ):
        write_over(frame("int", 0), config_for(prefix, "int"), method)
    assert caught.value.facts["difference"] == "misplaced"
    assert {"db_id", "expected_rows", "arrived_rows"} < set(caught.value.facts)
    assert_nothing_published(prefix, [caught.value.facts["db_id"]])


@pytest.mark.parametrize("stray", STRAYS)
def test_rows_that_come_to_the_wrong_shard_are_found(stray: Any, memory_prefix: str) -> None:
    """They say themselves where they belong."""
    check_strays(stray, "tasks", memory_prefix)


# -- p2p, on a cluster ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def p2p() -> Iterator[Get]:
    """Two workers in this process: rows cross from one to the other, and through files, as they do between hosts."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client.get


@pytest.mark.parametrize("exchange", ["p2p, given", "p2p, delivered"])
@pytest.mark.parametrize(("seed", "fault"), list(enumerate(FAULTS)))
def test_a_write_over_a_faulty_p2p_publishes_nothing(
    seed: int, fault: str, exchange: str, p2p: Get, tmp_path: Path
) -> None:
    check_write_over_fault(exchange, fault, list(ENCODINGS)[seed // 2 % 3], seed, f"file://{tmp_path}/snap", p2p)


@pytest.mark.parametrize("stray", STRAYS)
def test_rows_that_p2p_takes_to_the_wrong_shard_are_found(stray: Any, p2p: Get, tmp_path: Path) -> None:
    check_strays(stray, "p2p", f"file://{tmp_path}/snap", p2p)


@pytest.mark.parametrize("exchange", ["p2p, given", "p2p, delivered"])
def test_p2p_without_a_fault_passes_in_whatever_order(exchange: str, p2p: Get, tmp_path: Path) -> None:
    method, seam = EXCHANGES[exchange]
    prefix = f"file://{tmp_path}/snap"
    with scheduler_that(damage(seam, in_other_order), seam, p2p) as seen:
        result = write_over(frame("text", 1, repeats=5), config_for(prefix, "text", "last"), method)
    assert seen[0] != seen[1]
    assert result.input_rows == ROWS + 5
    assert len(contents(prefix)) == ROWS
