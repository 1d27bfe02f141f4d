"""Whole writes over an exchange that does something wrong: a scheduler puts one more task where the rows are under way.

That task gets all of them at once, changes what it likes, and the rest of the write goes on from what came of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Literal
from uuid import uuid4

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.local import get_sync

from shardyfusion import ColumnWriteInput, DaskWriteOptions, HashShardedWriteConfig, ValueSpec
from shardyfusion.writer.dask import BuildResult, write_hash_sharded
from shardyfusion.writer.encode import ORDINAL_SHIFT, EncodedPartition, PartitionReport
from shardyfusion.writer.partition_files import StoredPartition, load_rows, store_partition
from tests.writer.exchange_faults import Flight, Row

Method = Literal["direct", "disk", "tasks", "p2p"]
Graph = dict[Any, Any]
Crossing = dict[tuple[int, ...], Any]
"""What crosses a seam, by the numbers in the names of its tasks."""
Change = Callable[[Crossing], Crossing]
Get = Callable[..., Any]

INPUT = ColumnWriteInput("key", ValueSpec.binary_col("value"))


def write_over(ddf: dd.DataFrame, config: HashShardedWriteConfig, method: Method) -> BuildResult:
    """A write whose rows go from the encode tasks to the shard tasks by the given method."""
    return write_hash_sharded(ddf, config, INPUT, DaskWriteOptions(shuffle=method, verify_routing=False))


@contextmanager
def scheduler_that(change: Change, seam: Seam, get: Get = get_sync) -> Iterator[list[Flight]]:
    """What is computed in the block goes through `get`, and through `change` where it crosses the seam.

    Yields a list that gets the rows in flight before and after that.
    """
    seen: list[Flight] = []

    @wraps(get)  # the write must take it for the scheduler that it uses
    def changing(expression: Any, keys: Any, **kwargs: Any) -> Any:
        graph = dict(expression.__dask_graph__())
        cut = seam.cut(graph)
        assert cut, "nothing crosses the seam"
        places = [_place(sound) for sound in cut]
        changed = f"changed-{uuid4().hex}"
        graph[changed] = (partial(_both, change, places), *cut)
        for place, after in zip(places, cut.values(), strict=True):
            graph[after] = (partial(_after, place), changed)
        results, both = get(graph, [keys, changed], **kwargs)
        seen.extend(map(seam.flight, both))
        return results

    with dask.config.set(scheduler=changing):
        yield seen


def get_apart(graph: Any, keys: Any, **kwargs: Any) -> Any:
    """Everything in this process, but the write cannot know that."""
    return get_sync(graph, keys, **kwargs)


def _place(key: tuple[Any, ...]) -> tuple[int, ...]:
    """Nothing for a step that is a single task."""
    return tuple(part for part in key if isinstance(part, int))


def _both(change: Change, places: list[tuple[int, ...]], *values: Any) -> tuple[Crossing, Crossing]:
    crossing = dict(zip(places, values, strict=True))
    return crossing, change(crossing)


def _after(place: tuple[int, ...], both: tuple[Crossing, Crossing]) -> Any:
    return both[1][place]


@dataclass(frozen=True)
class Seam:
    """A place in the writer's graph that all rows cross.

    `cut` prepares the graph for other values there: it returns the tasks of the values as they are, and what the later
    tasks take them for. `flight` tells the rows in such values; `like` makes one that holds those of another flight.
    """

    cut: Callable[[Graph], dict[Any, Any]]
    flight: Callable[[Crossing], Flight]
    like: Callable[[tuple[int, ...], Any, Flight], Any]


def damage(seam: Seam, fault: Callable[[Flight], Flight]) -> Change:
    """A fault of rows as a change of the values at a seam."""

    def change(crossing: Crossing) -> Crossing:
        after = fault(seam.flight(crossing))
        return {place: seam.like(place, value, after) for place, value in crossing.items()}

    return change


def _cut_after(step: str) -> Callable[[Graph], dict[Any, Any]]:
    def cut(graph: Graph) -> dict[Any, Any]:
        cut = {("sound", key) if isinstance(key, str) else ("sound", *key): key for key in _of_step(graph, step)}
        for sound, key in cut.items():
            graph[sound] = graph.pop(key)
        return cut

    return cut


def _cut_before_shards(graph: Graph) -> dict[Any, Any]:
    cut: dict[Any, Any] = {}
    for shard in _of_step(graph, "shard"):
        *arguments, frame = graph[shard]
        cut[frame] = ("unsound", *frame)
        graph[shard] = (*arguments, cut[frame])
    return cut


def _of_step(graph: Graph, step: str) -> list[Any]:
    """The tasks of one step of the writer's graph, in order."""
    names = {key: key[0] if isinstance(key, tuple) else key for key in graph}
    return sorted(key for key, name in names.items() if name.rpartition("-")[0] == f"shardyfusion-{step}")


def _rows(*columns: list[bytes]) -> list[Row]:
    return list(zip(*columns, strict=True))


# -- pieces: a table for each partition and shard ----------------------------------------------------------------------


def _pieces_in_flight(pieces: Crossing) -> Flight:
    return {
        (number, shard): [] if piece is None else _rows(*(piece[name].to_pylist() for name in ("key", "value")))
        for (number, shard), piece in pieces.items()
    }


def _piece_like(place: tuple[int, ...], piece: pa.Table | None, flight: Flight) -> pa.Table | None:
    """None for a place that is gone altogether, and a table without rows for one that was emptied."""
    number, shard = place
    rows = flight.get((number, shard))
    if rows is None:
        return None
    return _table(rows)


def _table(rows: list[Row]) -> pa.Table:
    return pa.table(
        {name: pa.array([row[i] for row in rows], pa.large_binary()) for i, name in enumerate(("key", "value"))}
    )


# -- partitions: a table of all rows, sorted by shard ------------------------------------------------------------------


def _partitions_in_flight(values: Crossing) -> Flight:
    return _pieces_in_flight(
        {
            (number, shard): encoded.piece(shard)
            for number, encoded in enumerate(values[()])
            for shard in range(len(encoded.ends))
        }
    )


def _partitions_like(
    place: tuple[int, ...], partitions: list[EncodedPartition], flight: Flight
) -> list[EncodedPartition]:
    """There are no rows in a partition that is gone altogether."""
    return [
        _partition_like(number, encoded.report, len(encoded.ends), flight) for number, encoded in enumerate(partitions)
    ]


def _partition_like(number: int, report: PartitionReport, shards: int, flight: Flight) -> EncodedPartition:
    pieces = [flight.get((number, shard)) for shard in range(shards)]
    here = [rows for rows in pieces if rows is not None]
    rows = _table([row for rows in here for row in rows]) if here else None
    return EncodedPartition(report=report, rows=rows, ends=np.cumsum([len(rows or ()) for rows in pieces]))


# -- files: one for each partition, sorted by shard --------------------------------------------------------------------


def _files_in_flight(values: Crossing) -> Flight:
    return _pieces_in_flight(
        {
            (number, shard): load_rows([stored], shard)
            for number, stored in enumerate(values[()])
            for shard in range(_shards(stored))
        }
    )


def _files_like(place: tuple[int, ...], files: list[StoredPartition], flight: Flight) -> list[StoredPartition]:
    """Other files beside them. There is none for a partition that is gone altogether."""
    return [
        store_partition(_partition_like(number, stored.report, _shards(stored), flight), stored.path.parent)
        for number, stored in enumerate(files)
    ]


def _shards(stored: StoredPartition) -> int:
    return stored.edges.shape[1] - 1


# -- frames: one for each partition, whose first column names the shard ------------------------------------------------


def _frames_given(frames: Crossing) -> Flight:
    flight: Flight = {}
    for (number,), frame in frames.items():
        shards, *columns = (frame[name].tolist() for name in frame.columns[:3])
        for shard, row in zip(shards, _rows(*columns), strict=True):
            flight.setdefault((number, shard), []).append(row)
    return flight


def _given_like(place: tuple[int, ...], frame: pd.DataFrame, flight: Flight) -> pd.DataFrame:
    (number,) = place
    rows = [(at[1], *row) for at, rows in sorted(flight.items()) if at[0] == number for row in rows]
    return _frame_of(rows, frame, number)


# -- frames: one for each shard, whose number is their index -----------------------------------------------------------


def _frames_delivered(frames: Crossing) -> Flight:
    """Which partition a row is from cannot be seen any more: it counts as one of its shard's number."""
    return {
        (shard, shard): _rows(*(frame[name].tolist() for name in frame.columns[:2]))
        for (shard,), frame in frames.items()
    }


def _delivered_like(place: tuple[int, ...], frame: pd.DataFrame, flight: Flight) -> pd.DataFrame:
    """Every row says that it is of the shard that it comes to, as if the shuffle had taken it for one."""
    (shard,) = place
    rows = flight.get((shard, shard), [])
    labels = pd.Index([shard] * len(rows), name=frame.index.name, dtype=frame.index.dtype)
    return _frame_of(rows, frame, shard).set_index(labels)


def _frame_of(rows: list[tuple[Any, ...]], like: pd.DataFrame, number: int) -> pd.DataFrame:
    """Where rows carry their place in the input, they get new ones: a fault knows only keys and values."""
    columns = list(zip(*rows, strict=True)) or [()] * len(like.columns)
    if len(columns) < len(like.columns):
        columns.append(tuple((number << ORDINAL_SHIFT) + i for i in range(len(rows))))
    series = zip(like.columns, columns, strict=True)
    return pd.DataFrame({name: pd.Series(column, dtype=like[name].dtype) for name, column in series})


PIECES = Seam(_cut_after("piece"), _pieces_in_flight, _piece_like)
"""What `direct` hands over between processes."""
ENCODED = Seam(_cut_after("partitions"), _partitions_in_flight, _partitions_like)
"""What `direct` takes rows from within one process."""
FILES = Seam(_cut_after("files"), _files_in_flight, _files_like)
"""What shard tasks find on a shared disk."""
GIVEN = Seam(_cut_after("frame"), _frames_given, _given_like)
"""What one of Dask's shuffles gets."""
DELIVERED = Seam(_cut_before_shards, _frames_delivered, _delivered_like)
"""What one of Dask's shuffles makes of it."""
