"""Rows that are lost, invented, misplaced or changed between the encode tasks and the shard tasks never get published."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pytest
from dask.local import get_sync

from shardyfusion import (
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    ShardedReader,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.commits import BuildStart
from shardyfusion.errors import ShardCoverageError, SnapshotNotFoundError
from shardyfusion.manifest import ShardingSpec
from shardyfusion.routing.hashing import HashRouter
from shardyfusion.shard_contract import SealedShard
from shardyfusion.writer.dask import write_hash_sharded
from shardyfusion.writer.encode import EncodedPartition, combine_reports, encode_partition
from shardyfusion.writer.outcome import check_conservation
from shardyfusion.writer.plan import WritePlan, make_plan
from shardyfusion.writer.shard import ShardResult, build_shard
from tests.writer.exchange_faults import FAULTS, Fault, Flight, changed_shards, damaged, rows_of
from tests.writer.frames import object_names

SHARDS, PARTITIONS, ROWS = 4, 3, 48
SEEDS = 16
"""Faults of each kind for each type of key: 24 x 3 x 16 = 1,152."""
INPUT = ColumnWriteInput("key", ValueSpec.binary_col("value"))
ENCODINGS = {"int": "u64be", "text": "utf8", "bytes": "raw"}


class Discarding:
    """An engine that only counts."""

    def __init__(self) -> None:
        self.rows = 0

    def write_arrow(self, batch: pa.RecordBatch) -> None:
        self.rows += len(batch)

    def seal(self) -> SealedShard:
        return SealedShard(rows=self.rows, db_bytes=0, objects=())

    def __enter__(self) -> Discarding:
        return self

    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True)
class DiscardingFactory(SqliteFactory):
    def open(self, target: Any) -> Any:
        return Discarding()


def make_key(kind: str, rng: random.Random) -> Any:
    match kind:
        case "int":
            return rng.randrange(2**63)
        case "text":
            return "".join(rng.choices("abcdé", k=rng.randrange(1, 12)))
        case _:
            return rng.randbytes(rng.randrange(1, 12))


def make_frames(kind: str, rng: random.Random) -> list[pd.DataFrame]:
    """Partitions with distinct keys of a kind, and values of which some are empty and some are equal."""
    keys: dict[Any, bytes] = {}
    while len(keys) < ROWS:
        keys[make_key(kind, rng)] = rng.randbytes(rng.choice([0, 1, 3, 8, 20])) if rng.random() < 0.8 else b"same"
    rows = pd.DataFrame({"key": pd.Series(list(keys), dtype=object), "value": pd.Series(list(keys.values()))})
    return [rows.iloc[number::PARTITIONS] for number in range(PARTITIONS)]


def plan_for(kind: str, policy: Any) -> WritePlan:
    config = HashShardedWriteConfig(
        num_dbs=SHARDS,
        s3_prefix=f"memory://{uuid4().hex}/snap",
        adapter_factory=DiscardingFactory(),
        key_encoding=ENCODINGS[kind],
        on_duplicate_key=policy,
    )
    return make_plan(
        config,
        INPUT,
        HashRouter(SHARDS),
        ShardingSpec(),
        run_id="r",
        request="asked",
        start=BuildStart(base=0, started_at=pd.Timestamp("2026-11-20", tz="UTC").to_pydatetime()),
        seals={},
        verify_routing=True,
        with_ordinal=False,
    )


def flight_of(encoded: list[EncodedPartition]) -> Flight:
    return {
        (number, shard): rows_in(piece)
        for number, partition in enumerate(encoded)
        for shard, piece in enumerate(partition.pieces)
    }


def rows_in(piece: pa.Table | None) -> list[tuple[bytes, bytes]]:
    return (
        [] if piece is None else list(zip(*(piece.column(name).to_pylist() for name in ("key", "value")), strict=True))
    )


def piece_of(rows: list[tuple[bytes, bytes]]) -> pa.Table:
    columns = {"key": [key for key, _ in rows], "value": [value for _, value in rows]}
    return pa.table({name: pa.array(column, pa.large_binary()) for name, column in columns.items()})


def build_and_check(encoded: list[EncodedPartition], flight: Flight, plan: WritePlan) -> list[ShardResult]:
    """What the driver and its tasks do with what arrived."""
    tally = combine_reports([partition.report for partition in encoded], plan.encode)
    results = [
        build_shard(shard, tally, [piece_of(rows) for at, rows in sorted(flight.items()) if at[1] == shard], plan.shard)
        for shard in range(SHARDS)
    ]
    for result in results:
        if result.error is not None:
            raise result.error
    check_conservation(tally, results)
    return results


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


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_an_exchange_is_found(fault: str, kind: str) -> None:
    for seed in range(SEEDS):
        rng = random.Random(f"{fault} {kind} {seed}")
        plan = plan_for(kind, rng.choice(["fail", "first", "last"]))
        encoded = [encode_partition(f, number, plan.encode) for number, f in enumerate(make_frames(kind, rng))]
        before = flight_of(encoded)
        after = damaged(before, FAULTS[fault], seed)
        try:
            with pytest.raises(ShardCoverageError) as caught:
                build_and_check(encoded, after, plan)
            check_error(caught.value, before, after)
            sealed = {name.split("/")[2] for name in object_names(plan.shard.address.url)}
            assert not sealed & {f"db={shard:05d}" for shard in changed_shards(before, after)}, (
                "nothing wrong is sealed"
            )
        except BaseException as exc:
            exc.add_note(f"{fault}, {kind} keys, seed {seed}, on_duplicate_key={plan.shard.on_duplicate_key!r}")
            raise


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("policy", ["fail", "first", "last"])
def test_an_exchange_without_a_fault_passes_in_whatever_order(kind: str, policy: str) -> None:
    for seed in range(SEEDS):
        rng = random.Random(f"{kind} {seed}")
        plan = plan_for(kind, policy)
        frames = make_frames(kind, rng)
        if policy != "fail":
            frames[-1] = pd.concat([frames[-1], frames[0].sample(5, random_state=seed)])
        encoded = [encode_partition(frame, number, plan.encode) for number, frame in enumerate(frames)]
        flight = flight_of(encoded)
        for rows in flight.values():
            rng.shuffle(rows)
        results = build_and_check(encoded, flight, plan)
        assert sum(result.arrived.rows for result in results) == sum(map(len, frames)), f"seed {seed}"
        assert sum(result.attempt.rows for result in results if result.attempt) == ROWS, f"seed {seed}"


# -- through whole writes ------------------------------------------------------------------------------------------------


def of_step(step: str) -> Callable[[dict[Any, Any]], list[Any]]:
    """The tasks of one step of the writer's graph."""
    return lambda graph: [key for key in graph if isinstance(key, tuple) and key[0].startswith(f"shardyfusion-{step}-")]


def placed_partitions(graph: dict[Any, Any]) -> list[Any]:
    """What Dask's shuffle made for each shard task, whose last argument it is."""
    return [graph[key][-1] for key in of_step("shard")(graph)]


@contextmanager
def scheduler_that(change: Callable[[dict[Any, Any]], dict[Any, Any]], moving: Any) -> Iterator[None]:
    """A Dask scheduler that computes the tasks `moving`, changes what they came to, and goes on from there."""

    def get(expression: Any, keys: Any, **kwargs: Any) -> Any:
        graph = dict(expression.__dask_graph__())
        under_way = moving(graph)
        arrived = dict(zip(under_way, get_sync(graph, under_way), strict=True))
        graph |= {key: (lambda value=value: value,) for key, value in change(arrived).items()}
        return get_sync(graph, keys, **kwargs)

    with dask.config.set(scheduler=get):
        yield


def damage_pieces(fault: Fault, seed: int, seen: list[Flight]) -> Callable[[dict[Any, Any]], dict[Any, Any]]:
    """For `direct`: what the piece tasks hand over."""

    def change(pieces: dict[Any, Any]) -> dict[Any, Any]:
        before = {key[1:]: rows_in(piece) for key, piece in pieces.items()}
        after = damaged(before, fault, seed)
        seen.extend((before, after))
        return {key: piece_of(after[key[1:]]) if key[1:] in after else None for key in pieces}

    return change


def damage_frames(fault: Fault, seed: int, seen: list[Flight]) -> Callable[[dict[Any, Any]], dict[Any, Any]]:
    """For `tasks`: the frames that the shuffle is given."""

    def change(frames: dict[Any, Any]) -> dict[Any, Any]:
        before: Flight = {(key[1], shard): [] for key in frames for shard in range(SHARDS)}
        for key, frame in frames.items():
            shard, *columns = frame.columns
            for row in zip(frame[shard], *(frame[name] for name in columns), strict=True):
                before[key[1], int(row[0])].append(row[1:])
        after = damaged(before, fault, seed)
        seen.extend((before, after))
        return {key: frame_like(frame, key[1], after) for key, frame in frames.items()}

    return change


def frame_like(frame: pd.DataFrame, number: int, flight: Flight) -> pd.DataFrame:
    rows = [(at[1], *row) for at, rows in sorted(flight.items()) if at[0] == number for row in rows]
    columns = list(zip(*rows, strict=True)) or [()] * len(frame.columns)
    made = {name: pd.Series(list(column), dtype=frame[name].dtype) for name, column in zip(frame, columns, strict=True)}
    return pd.DataFrame(made)


EXCHANGES = {"direct": (of_step("piece"), damage_pieces), "tasks": (of_step("frame"), damage_frames)}


def write(frames: list[pd.DataFrame], kind: str, directory: Path, exchange: Any) -> None:
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.concat([dd.from_pandas(frame, npartitions=1, sort=False) for frame in frames])
    config = HashShardedWriteConfig(
        num_dbs=SHARDS, s3_prefix=directory, adapter_factory=SqliteFactory(), key_encoding=ENCODINGS[kind]
    )
    write_hash_sharded(ddf, config, INPUT, DaskWriteOptions(exchange=exchange, verify_routing=False))


def assert_nothing_published(directory: Path) -> None:
    with pytest.raises(SnapshotNotFoundError):
        ShardedReader(directory)
    assert {name.split("/")[0] for name in object_names(directory)} <= {"runs", "shards"}
    assert not [name for name in object_names(directory) if name.startswith("runs/outcome/")]


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(("seed", "fault"), list(enumerate(FAULTS)))
def test_a_write_over_a_faulty_exchange_publishes_nothing(seed: int, fault: str, exchange: str, tmp_path: Path) -> None:
    kind = list(ENCODINGS)[seed % 3]
    moving, damage = EXCHANGES[exchange]
    seen: list[Flight] = []
    with scheduler_that(damage(FAULTS[fault], seed, seen), moving), pytest.raises(ShardCoverageError) as caught:
        write(make_frames(kind, random.Random(seed)), kind, tmp_path, exchange)
    check_error(caught.value, *seen)
    assert_nothing_published(tmp_path)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_same_scheduler_without_a_fault_publishes(exchange: str, tmp_path: Path) -> None:
    moved: list[Any] = []
    with scheduler_that(lambda arrived: moved.extend(arrived) or arrived, EXCHANGES[exchange][0]):
        write(make_frames("int", random.Random(1)), "int", tmp_path, exchange)
    assert moved
    with ShardedReader(tmp_path) as reader:
        assert reader.snapshot_info().rows == ROWS


def test_a_shuffle_that_delivers_to_the_wrong_shard_is_found(tmp_path: Path) -> None:
    """Its rows say themselves where they belong."""

    def exchange_two(arrived: dict[Any, Any]) -> dict[Any, Any]:
        (one, a), (other, b) = sorted(arrived.items())[:2]
        return {**arrived, one: b, other: a}

    seed = 5
    with (
        scheduler_that(exchange_two, placed_partitions),
        pytest.raises(ShardCoverageError, match="rows of other shards") as caught,
    ):
        write(make_frames("int", random.Random(seed)), "int", tmp_path, "tasks")
    assert caught.value.facts["difference"] == "misplaced", f"seed {seed}"
    assert {"db_id", "expected_rows", "arrived_rows"} < set(caught.value.facts)
    assert_nothing_published(tmp_path)
