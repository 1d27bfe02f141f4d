"""All the Dask there is: looking at a frame without computing it, and the graph that computes a write.

What the tasks do is in `writer/encode.py` and `writer/shard.py`; nothing here touches a row.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.base import compute
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from shardyfusion.config import CARRIED, DaskWriteOptions, Shuffle
from shardyfusion.errors import ComputeError, ConfigValidationError, ShardCoverageError, ShardyfusionError
from shardyfusion.writer.dask.exchange import exchange_directory, is_in_process, scheduler_kind, shards_at_once
from shardyfusion.writer.dask.overlap import ShardThreads, build_beside_other_tasks, is_far, results_of
from shardyfusion.writer.encode import (
    EncodedPartition,
    PartitionReport,
    SplitPartition,
    Tally,
    combine_reports,
    encode_partition,
    split_partition,
)
from shardyfusion.writer.partition_files import StoredPartition, load_rows, store_partition
from shardyfusion.writer.plan import EncodePlan, ShardPlan, WritePlan
from shardyfusion.writer.seals import Seal
from shardyfusion.writer.shard import ShardResult, build_shard


@dataclass(frozen=True, kw_only=True)
class FrameFacts:
    """What is known of the input before any data is touched. `dtypes` includes a named index."""

    columns: tuple[str, ...]
    dtypes: Mapping[str, Any]


def frame_facts(ddf: Any) -> FrameFacts:
    """Columns and dtypes from the frame's metadata; `ConfigValidationError` if it is no Dask DataFrame."""
    if not isinstance(ddf, dd.DataFrame):
        raise ConfigValidationError(
            f"ddf is a {type(ddf).__module__}.{type(ddf).__name__}; give a Dask DataFrame, such as "
            "dask.dataframe.from_pandas(frame, npartitions=4) or dask.dataframe.read_parquet(path)"
        )
    columns = tuple(ddf.columns)
    dtypes = dict(zip(columns, ddf.dtypes, strict=True))
    index = ddf.index
    index_name = index.name if isinstance(index.name, str) else None
    if index_name is not None and index_name not in dtypes:
        dtypes[index_name] = index.dtype
    return FrameFacts(columns=columns, dtypes=dtypes)


def count_rows(ddf: dd.DataFrame, key_col: str) -> int:
    """Rows of the frame, by one pass over the key column only."""
    keys = ddf[[key_col]] if key_col in ddf.columns else ddf[[]]
    lengths = keys.map_partitions(len, meta=pd.Series([], dtype="int64"))
    return int(_compute(lengths, {}).sum())


def compute_partitions(
    ddf: dd.DataFrame, columns: Sequence[str], work: Callable[[pd.DataFrame, int], Any]
) -> list[Any]:
    """What `work` gives for each partition and its number, by one pass over these columns (and the index) only."""
    parts: Any = ddf[list(columns)].optimize()
    token = uuid.uuid4().hex
    name = f"shardyfusion-survey-{token}"
    tasks: dict[Any, Any] = {(name, number): (work, key, number) for number, key in enumerate(parts.__dask_keys__())}
    collect = f"shardyfusion-surveyed-{token}"
    tasks[collect] = (_listed, *tasks)
    return _compute(Delayed(collect, HighLevelGraph.from_collections(collect, tasks, dependencies=[parts])), {})


def compute_write(
    ddf: dd.DataFrame, columns: Sequence[str], plan: WritePlan, exchange: Shuffle, options: DaskWriteOptions,
    shard_id_col: str,
) -> tuple[Tally, list[ShardResult]]:  # fmt: skip
    """The one computation of a write: read and encode every partition once, place rows by shard, build every shard."""
    kwargs = {"retries": options.retries} if scheduler_kind() == "distributed" else {}
    with_threads = scheduler_kind() == "threads" and is_far(plan.shard.address.kind)
    with ShardThreads() if with_threads else nullcontext() as threads:
        graph = _WriteGraph(ddf[list(columns)].optimize(), plan, threads)
        if exchange == "disk":
            with exchange_directory(plan.shard.local_root) as directory:
                at_once = shards_at_once(plan.encode.num_dbs, plan.shard.address.kind)
                return _compute(graph.through_files(directory, at_once), kwargs)
        if exchange == "direct":
            return _compute(graph.in_one_process() if is_in_process() else graph.direct(), kwargs)
        return _compute(graph.shuffled(exchange, shard_id_col), kwargs)


class _WriteGraph:
    """The tasks of one write, under names unique to its plan."""

    def __init__(self, parts: dd.DataFrame, plan: WritePlan, threads: ShardThreads | None) -> None:
        self._parts: Any = parts  # a collection, though Dask's own annotations do not agree
        self._plan = plan
        self._num_dbs = plan.encode.num_dbs
        self._inputs = parts.__dask_keys__()
        self._numbers = range(len(self._inputs))
        encode = self._name("encode-plan")
        self._tasks: dict[Any, Any] = {
            encode: (_constant, [plan.encode]),
            self._name("shard-plan"): (_constant, [plan.shard]),
            self._name("threads"): (_constant, [threads]),
        }
        for number in self._numbers:
            self._tasks[self._name("report"), number] = (_report, (self._name("encode"), number))
        reports = [(self._name("report"), number) for number in self._numbers]
        # The gate: every shard task depends on it, so bad data anywhere stops the write before a shard is built.
        self._tasks[self._name("gate")] = (_combine, encode, *reports)

    def in_one_process(self) -> Delayed:
        """Nothing is handed over: a shard's task takes its rows out of the encoded partitions."""
        tasks = self._encoding_by(encode_partition)
        partitions = self._name("partitions")
        tasks[partitions] = (_listed, *[(self._name("encode"), number) for number in self._numbers])
        for db_id in range(self._num_dbs):
            tasks[self._name("shard"), db_id] = self._shard_task(_build_from_partitions, db_id, partitions)
        return self._finish(tasks, [self._parts])

    def direct(self) -> Delayed:
        """One small task per partition and shard hands the piece over: exact, in order, on every scheduler."""
        tasks = self._encoding_by(split_partition)
        for number in self._numbers:
            for db_id in range(self._num_dbs):
                tasks[self._name("piece"), number, db_id] = (_piece, (self._name("encode"), number), db_id)
        for db_id in range(self._num_dbs):
            pieces = [(self._name("piece"), number, db_id) for number in self._numbers]
            tasks[self._name("shard"), db_id] = self._shard_task(_build, db_id, *pieces)
        return self._finish(tasks, [self._parts])

    def through_files(self, directory: Path, at_once: int) -> Delayed:
        """Every partition goes into a file on a disk that all workers share; the task of a shard, or of so many, reads
        its part of each."""
        tasks = self._encoding_by(_encode_to_file, directory)
        files = self._name("files")
        tasks[files] = (_files, *[(self._name("encode"), number) for number in self._numbers])
        for first in range(0, self._num_dbs, at_once):
            shards = range(first, min(first + at_once, self._num_dbs))
            seals = [self._seals(db_id) for db_id in shards]
            key = (self._name("shard"), first) if at_once == 1 else (self._name("shard"), first, shards[-1])
            tasks[key] = (_build_from_files, shards, *self._for_shards(), seals, files)
        return self._finish(tasks, [self._parts])

    def shuffled(self, method: str, shard_id_col: str) -> Delayed:
        """Dask's own shuffle: spills to disk, scales past memory. `set_index` with one division per shard is exact."""
        tasks = self._encoding_by(encode_partition)
        for number in self._numbers:
            tasks[self._name("frame"), number] = (
                _to_frame, (self._name("encode"), number), self._name("encode-plan"), shard_id_col,
            )  # fmt: skip
        base = HighLevelGraph.from_collections(self._name("encoded"), tasks, dependencies=[self._parts])
        frames = [Delayed((self._name("frame"), number), base, layer=self._name("encoded")) for number in self._numbers]
        encoded = dd.from_delayed(frames, meta=_meta(self._plan.encode, shard_id_col), verify_meta=False)
        divisions = [*range(self._num_dbs), self._num_dbs - 1]
        placed = encoded.set_index(shard_id_col, divisions=divisions, shuffle_method=method).to_delayed()
        shards: dict[Any, Any] = {}
        for db_id, partition in enumerate(placed):
            shards[self._name("shard"), db_id] = self._shard_task(_build_from_frame, db_id, partition.key)
        return self._finish(shards, [*placed, *frames])

    def _encoding_by(self, encode: Callable[..., Any], *extra: Any) -> dict[Any, Any]:
        """The tasks that every exchange begins with."""
        tasks = dict(self._tasks)
        for number, key in enumerate(self._inputs):
            tasks[self._name("encode"), number] = (encode, key, number, self._name("encode-plan"), *extra)
        return tasks

    def _finish(self, tasks: dict[Any, Any], dependencies: list[Any]) -> Delayed:
        name = self._name("collect")
        tasks[name] = (_collect, self._name("gate"), *[key for key in tasks if key[0] == self._name("shard")])
        return Delayed(name, HighLevelGraph.from_collections(name, tasks, dependencies=dependencies))

    def _shard_task(self, build: Callable[..., list[_Shard]], db_id: int, *rows: Any) -> tuple[Any, ...]:
        return build, db_id, *self._for_shards(), self._seals(db_id), *rows

    def _for_shards(self) -> list[str]:
        """What the tasks of all shards are given."""
        return [self._name(step) for step in ("gate", "shard-plan", "threads")]

    def _seals(self, db_id: int) -> list[Seal]:
        """They go along with the shard that they are of, as the plan travels to every worker whole."""
        return list(self._plan.seals.get(db_id, ()))

    def _name(self, step: str) -> str:
        return f"shardyfusion-{step}-{self._plan.token}"


def _listed(*items: Any) -> list[Any]:
    return list(items)


def _constant(box: list[Any]) -> Any:
    return box[0]


def _encode_to_file(frame: pd.DataFrame, number: int, plan: EncodePlan, directory: Path) -> StoredPartition:
    return store_partition(encode_partition(frame, number, plan), directory)


def _report(encoded: EncodedPartition | SplitPartition | StoredPartition) -> PartitionReport:
    return encoded.report


def _files(*stored: StoredPartition) -> list[StoredPartition]:
    """Without the reports, which every worker would be sent in vain."""
    return [replace(each, report=PartitionReport(partition=each.report.partition, rows=0)) for each in stored]


def _combine(plan: EncodePlan, *reports: PartitionReport) -> Tally:
    return combine_reports(reports, plan)


def _piece(encoded: SplitPartition, db_id: int) -> pa.Table | None:
    return encoded.pieces[db_id]


_Shard = ShardResult | Future[ShardResult]
"""A future where a thread of ours has the shard on its way to the store."""


def _build(
    db_id: int, tally: Tally, plan: ShardPlan, threads: ShardThreads | None, seals: Sequence[Seal],
    *pieces: pa.Table | None,
) -> list[_Shard]:  # fmt: skip
    return [_build_beside(db_id, tally, pieces, plan, seals, threads)]


def _build_from_partitions(
    db_id: int, tally: Tally, plan: ShardPlan, threads: ShardThreads | None, seals: Sequence[Seal],
    encoded: Sequence[EncodedPartition],
) -> list[_Shard]:  # fmt: skip
    pieces = [] if tally.error else [each.piece(db_id) for each in encoded]
    return [_build_beside(db_id, tally, pieces, plan, seals, threads)]


def _build_from_files(
    shards: Sequence[int],
    tally: Tally,
    plan: ShardPlan,
    threads: ShardThreads | None,
    seals: Sequence[Sequence[Seal]],
    stored: Sequence[StoredPartition],
) -> list[_Shard]:
    def build_one(db_id: int, seals: Sequence[Seal]) -> _Shard:
        rows = None if tally.error else load_rows(stored, db_id)
        return _build_beside(db_id, tally, [rows], plan, seals, threads)

    return [build_one(db_id, own) for db_id, own in zip(shards, seals, strict=True)]


def _build_beside(
    db_id: int, tally: Tally, pieces: Sequence[pa.Table | None], plan: ShardPlan, seals: Sequence[Seal],
    threads: ShardThreads | None,
) -> _Shard:  # fmt: skip
    work = partial(build_shard, db_id, tally, pieces, plan, seals)
    return threads.build(work) if threads else build_beside_other_tasks(plan.address.kind, work)


def _collect(tally: Tally, *results: list[_Shard]) -> tuple[Tally, list[ShardResult]]:
    return tally, results_of([result for each in results for result in each])


_ARROW_TYPES = {"key": pa.large_binary(), "value": pa.large_binary(), "ordinal": pa.int64()}


def _meta(plan: EncodePlan, shard_id_col: str) -> pd.DataFrame:
    names = ["key", "value", "ordinal"] if plan.with_ordinal else ["key", "value"]
    columns: dict[str, Any] = {shard_id_col: pd.Series([], dtype="int64")}
    columns |= {_carried(name): pd.Series([], dtype=pd.ArrowDtype(_ARROW_TYPES[name])) for name in names}
    return pd.DataFrame(columns)


def _carried(name: str) -> str:
    """Column names inside a shuffle; `shard_id_col` never starts like that."""
    return CARRIED + name


def _to_frame(encoded: EncodedPartition, plan: EncodePlan, shard_id_col: str) -> pd.DataFrame:
    """An encoded partition as the pandas frame that Dask's shuffles move."""
    if encoded.rows is None:
        return _meta(plan, shard_id_col)
    counts = np.diff(encoded.ends, prepend=0)
    columns: dict[str, Any] = {shard_id_col: np.repeat(np.arange(plan.num_dbs), counts)}
    for name in encoded.rows.column_names:
        columns[_carried(name)] = pd.arrays.ArrowExtensionArray(encoded.rows.column(name).cast(_ARROW_TYPES[name]))
    return pd.DataFrame(columns)


def _build_from_frame(
    db_id: int, tally: Tally, plan: ShardPlan, threads: ShardThreads | None, seals: Sequence[Seal], frame: pd.DataFrame
) -> list[_Shard]:
    strangers = frame.index[frame.index != db_id]
    if len(strangers):
        error = ShardCoverageError(
            f"{len(strangers)} rows of other shards arrived at shard {db_id}, the first of shard {strangers[0]}; "
            "nothing was published. Try another DaskWriteOptions.shuffle",
            db_id=db_id,
            expected_rows=tally.of(db_id).rows,
            arrived_rows=len(frame),
            difference="misplaced",
        )
        return [ShardResult(db_id=db_id, error=error)]
    columns = {name.removeprefix(CARRIED): pa.array(frame[name].array) for name in frame.columns}
    return [_build_beside(db_id, tally, [pa.table(columns)], plan, seals, threads)]


def _compute(collection: Any, kwargs: dict[str, Any]) -> Any:
    """Compute, and let nothing but our own errors out; the original is chained."""
    try:
        (value,) = compute(collection, **kwargs)
    except ShardyfusionError:
        raise
    except Exception as exc:
        if type(exc).__name__ in ("KilledWorker", "BrokenProcessPool"):
            step, db_id = _step_of(str(getattr(exc, "task", "")))
            raise ShardCoverageError(
                f"workers died too often while working on {step}; they often ran out of memory. Give them more, or use "
                "more shards or smaller partitions; nothing was published",
                **({} if db_id is None else {"db_id": db_id}),
            ) from exc
        raise ComputeError(
            f"computing the DataFrame failed with {type(exc).__name__}: {exc}; nothing was published"
        ) from exc
    return value


_OF_A_SHUFFLE = re.compile("shuffle|set_partitions|sort_index")


def _step_of(task: str) -> tuple[str, int | None]:
    """What a task of ours, named by Dask, was doing, and for which shard."""
    match = re.search(r"shardyfusion-([a-z-]+)-[0-9a-f]{32}'?, (\d+)(?:, (\d+))?", task)
    if match is None:
        return ("the shuffle" if _OF_A_SHUFFLE.search(task) else "the input" if task else "a task"), None
    if match[1] == "shard" and match[3]:
        return f"shards {match[2]} to {match[3]}", None
    if match[1] == "shard":
        return f"shard {match[2]}", int(match[2])
    return f"partition {match[2]}", None
