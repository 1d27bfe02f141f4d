"""What is measured: one write of rows, ours or Dask's, timed and checked; and rounds of several in turn."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import psutil
import pyarrow.parquet as pq
from measuring import in_fresh_process, scheduler, watched_memory
from places import Bucket, Target, fresh_target
from rows import KINDS, parquet_files, stored_values

from shardyfusion import (
    CelColumn,
    CelShardedWriteConfig,
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    OutputOptions,
    ShardedReader,
    SlateDbFactory,
    SqliteFactory,
    cel_sharding,
)
from shardyfusion.writer.dask import BuildResult, write_cel_sharded, write_hash_sharded

BASELINE, BASELINE_TASKS = "to_parquet", "to_parquet, tasks"
BACKENDS = {"sqlite": SqliteFactory, "slatedb": SlateDbFactory}
WARM_UP_FILES = 2
SAMPLE = 1_000


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """By a CEL expression: what `cel_sharding` takes."""

    expression: str
    columns: tuple[CelColumn, ...]
    routing_values: tuple[int | str, ...] | None = None
    infer_routing_values_from_data: bool = False
    num_dbs: int | None = None

    @property
    def mode(self) -> str:
        if self.routing_values is not None:
            return "categorical"
        if self.infer_routing_values_from_data:
            return "inferred"
        return "direct" if self.num_dbs else "direct, no num_dbs"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One write to measure. `what` is a backend, or a baseline; `kind` a key of `KINDS`. `sharding` is by hash if None;
    if not, `shards` are as many as it must come to."""

    what: str
    scheduler: str
    rows: int
    files: int
    shards: int
    data: Path
    kind: str = "int"
    bucket: Bucket | None = None
    sharding: Sharding | None = None

    @property
    def input_files(self) -> list[Path]:
        return parquet_files(self.data, self.rows, self.files, self.kind)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one job took.

    `peak_bytes` is the largest sum of resident memory over driver and workers while it ran, of which `before_bytes`
    were there at the start: what is loaded, and what earlier runs left with the allocators. `phases` and `stages` are
    those of the result's `seconds`, `routing` is how it says that rows found their shard, and `server_seconds` the
    processor time of the S3 server.
    """

    job: Job
    seconds: float
    peak_bytes: int
    before_bytes: int
    phases: Mapping[str, float] = field(default_factory=dict[str, float])
    stages: Mapping[str, float] = field(default_factory=dict[str, float])
    routing: str = ""
    server_seconds: float = 0.0

    @property
    def rows_per_second(self) -> float:
        return self.job.rows / self.seconds


# -- one write --------------------------------------------------------------------------------------------------------


def timed(job: Job, files: Sequence[Path]) -> Measurement:
    """Run the job once on the ambient scheduler, then check what it wrote, and remove it."""
    # Parquet's binary columns come as Python objects by default; "pyarrow" dtypes spare both sides the detour.
    frame = dd.read_parquet(list(files), dtype_backend="pyarrow")
    with fresh_target(job.data, job.bucket) as target:
        server = _processor_seconds(job.bucket)
        with watched_memory() as memory:
            started = time.perf_counter()
            result = _WRITERS.get(job.what, write_snapshot)(frame, target, job)
            seconds = time.perf_counter() - started
        server = _processor_seconds(job.bucket) - server
        check = check_parquet if result is None else check_snapshot
        check(files, target, job)
    return Measurement(
        job=job,
        seconds=seconds,
        peak_bytes=memory.peak,
        before_bytes=memory.before,
        phases=phases(result) if result else {},
        stages=stages(result) if result else {},
        routing=result.routing if result else "",
        server_seconds=server,
    )


def write_snapshot(
    frame: dd.DataFrame, target: Target, job: Job, options: DaskWriteOptions | None = None
) -> BuildResult:
    kind = KINDS[job.kind]
    common: dict[str, Any] = {
        "s3_prefix": target.prefix,
        "adapter_factory": BACKENDS[job.what](),
        "key_encoding": kind.key_encoding,
        "output": OutputOptions(local_root=target.scratch),
        "allow_unsafe_store": not target.safe,
        **target.connection,
    }
    rows = ColumnWriteInput(kind.key_col, kind.value_spec)
    if job.sharding is None:
        return write_hash_sharded(frame, HashShardedWriteConfig(num_dbs=job.shards, **common), rows, options)
    return write_cel_sharded(frame, CelShardedWriteConfig(**unmet(job.sharding), **common), rows, options)


def unmet(sharding: Sharding) -> dict[str, Any]:
    """Spelt as no process has met it, so that nothing is compiled or remembered from an earlier run."""
    arguments = {name: value for name, value in vars(sharding).items() if name not in ("expression", "columns")}
    return dict(cel_sharding(sharding.expression + " " * next(_SPELLINGS), *sharding.columns, **arguments))


_SPELLINGS = count()


def write_parquet(frame: dd.DataFrame, target: Target, job: Job) -> None:
    """The baseline: the same rows, brought together by the key's remainder with Dask's default shuffle."""
    placed = frame.assign(s=frame["key"].astype("int64") % job.shards)
    method = "tasks" if job.what == BASELINE_TASKS else None
    placed.shuffle(on="s", npartitions=job.shards, shuffle_method=method).to_parquet(target.prefix, write_index=False)


_WRITERS: dict[str, Callable[[dd.DataFrame, Target, Job], BuildResult | None]] = {
    BASELINE: write_parquet,
    BASELINE_TASKS: write_parquet,
}


def phases(result: BuildResult) -> dict[str, float]:
    seconds = result.seconds
    return {name: getattr(seconds, name) for name in ("total", "plan", "build", "publish", "sweep")}


def stages(result: BuildResult) -> dict[str, float]:
    """Summed over workers, in the order of the work."""
    seconds = result.seconds
    return {
        f"{task}: {name}": spent
        for task, found in (("encode", seconds.encode_stages), ("shard", seconds.shard_stages))
        for name, spent in found.items()
    }


def _processor_seconds(bucket: Bucket | None) -> float:
    return sum(psutil.Process(bucket.server_pid).cpu_times()[:2]) if bucket else 0.0


# -- what was written -------------------------------------------------------------------------------------------------


def check_snapshot(files: Sequence[Path], target: Target, job: Job) -> None:
    """As many rows as went in, in as many shards as were asked for, and a sample of them equal to the input."""
    rows, key_col = count_rows(files), KINDS[job.kind].key_col
    routed_by = [column.name for column in job.sharding.columns if column.name != key_col] if job.sharding else []
    chooser = random.Random(rows)
    expected: dict[tuple[tuple[str, Any], ...], dict[int | str, bytes]] = {}
    for file in chooser.sample(files, min(2, len(files))):
        table = pq.read_table(file)
        picked = table.take(chooser.sample(range(len(table)), min(SAMPLE // 2, len(table))))
        for row, value in zip(picked.to_pylist(), stored_values(picked), strict=True):
            expected.setdefault(tuple((name, row[name]) for name in routed_by), {})[row[key_col]] = value
    with ShardedReader(target.prefix, **target.connection) as reader:
        stored, shards = reader.snapshot_info().rows, reader.snapshot_info().num_dbs
        found = {context: reader.multi_get(some, routing_context=dict(context)) for context, some in expected.items()}
    if (stored, shards) != (rows, job.shards) or found != expected:
        wrong = sum(found[context][key] != value for context, some in expected.items() for key, value in some.items())
        sys.exit(f"wrong: {stored} of {rows} rows in {shards} of {job.shards} shards, {wrong} sampled values differ")


def check_parquet(files: Sequence[Path], target: Target, _job: Job) -> None:
    rows, stored = count_rows(files), count_rows(Path(target.prefix).glob("*.parquet"))
    if stored != rows:
        sys.exit(f"the baseline is wrong: {stored} of {rows} rows")


def count_rows(files: Iterable[Path]) -> int:
    return sum(pq.read_metadata(file).num_rows for file in files)


# -- several of them --------------------------------------------------------------------------------------------------


def run(groups: Iterable[Sequence[Job]], repeat: int) -> list[Measurement]:
    """Every single run. A scheduler has one fresh process; in it the jobs of a group take turns, once all are warm."""
    by_scheduler = groupby(groups, key=_scheduler_of)
    return [one for _, found in by_scheduler for one in in_fresh_process(measure_groups, list(found), repeat)]


def measure_groups(groups: Sequence[Sequence[Job]], repeat: int) -> list[Measurement]:
    """In this process."""
    with scheduler(_scheduler_of(groups[0]), groups[0][0].data):
        return [one for group in groups for one in rounds(group, repeat)]


def rounds(group: Sequence[Job], repeat: int) -> Iterator[Measurement]:
    """On the ambient scheduler: every job once with a part of its input, then so many rounds of all of them."""
    files = {job: job.input_files for job in group}
    for job in group:
        timed(job, files[job][:WARM_UP_FILES])
    for number in range(repeat):
        # To and fro: what the first of a pair leaves behind meets either equally often.
        for job in group if number % 2 == 0 else reversed(group):
            one = timed(job, files[job])
            print(_line(one), file=sys.stderr, flush=True)
            yield one


def _scheduler_of(group: Sequence[Job]) -> str:
    (name,) = {job.scheduler for job in group}
    return name


def _line(one: Measurement) -> str:
    job = one.job
    where = " to S3" if job.bucket else ""
    how = f" {job.sharding.expression}" if job.sharding else ""
    return (
        f"{job.scheduler:<8} {job.what + where:<18} {job.kind:<6} {job.rows:>11,} rows {job.shards:>4} shards "
        f"{one.seconds:8.2f} s {one.peak_bytes / 2**20:8,.0f} MiB{how}"
    )


def best(measurements: Iterable[Measurement]) -> dict[Job, Measurement]:
    """By job, in order of their first run: the fastest, with the memory of the run that had the highest peak."""
    runs: dict[Job, list[Measurement]] = {}
    for one in measurements:
        runs.setdefault(one.job, []).append(one)
    highest = {job: max(found, key=lambda one: one.peak_bytes) for job, found in runs.items()}
    return {
        job: replace(
            min(found, key=lambda one: one.seconds),
            peak_bytes=highest[job].peak_bytes,
            before_bytes=highest[job].before_bytes,
        )
        for job, found in runs.items()
    }
