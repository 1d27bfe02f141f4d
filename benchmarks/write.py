"""How fast `write_hash_sharded` is, against `to_parquet` after a Dask shuffle of the same rows; prints Markdown tables.

Every measurement has a process of its own, so that no peak of memory is inherited. No claims here: those are in docs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import platform
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, LocalCluster

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    ShardedReader,
    SlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.writer.dask import write_hash_sharded

BASELINE = "to_parquet"
BACKENDS = {"sqlite": SqliteFactory, "slatedb": SlateDbFactory}
SCHEDULERS = ("threads", "cluster")
VALUE_BYTES = 100
WARM_UP_ROWS = 20_000
SAMPLE = 1_000


# -- what is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement. `what` is a backend, or the baseline."""

    what: str
    scheduler: str
    rows: int
    files: int
    shards: int
    data: Path


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one job took. `peak_bytes` is the largest sum of resident memory over driver and workers."""

    what: str
    scheduler: str
    rows: int
    seconds: float
    peak_bytes: int
    phases: dict[str, float] = field(default_factory=dict[str, float])


def measure(job: Job) -> Measurement:
    """Runs in a fresh process: warm up, then time the job once, then check what it wrote."""
    with scheduler(job):
        timed(job, WARM_UP_ROWS)
        return timed(job, job.rows)


def timed(job: Job, rows: int) -> Measurement:
    files = parquet_files(job.data, rows, job.files)
    # Parquet's binary columns come as Python objects by default; "pyarrow" dtypes spare both sides the detour.
    frame = dd.read_parquet(files, dtype_backend="pyarrow")
    target = Path(tempfile.mkdtemp(prefix="out-", dir=job.data))
    try:
        with peak_memory() as peak:
            started = time.perf_counter()
            phases = WRITERS[job.what](frame, target, job)
            seconds = time.perf_counter() - started
        CHECKS.get(job.what, check_snapshot)(files, target, rows)
    finally:
        shutil.rmtree(target)
    return Measurement(
        what=job.what, scheduler=job.scheduler, rows=rows, seconds=seconds, peak_bytes=peak.bytes, phases=phases
    )


def write_snapshot(frame: dd.DataFrame, target: Path, job: Job) -> dict[str, float]:
    config = HashShardedWriteConfig(s3_prefix=target, num_dbs=job.shards, adapter_factory=BACKENDS[job.what]())
    result = write_hash_sharded(
        frame, config, ColumnWriteInput(key_col="key", value_spec=ValueSpec.binary_col("value"))
    )
    return {"total": result.seconds.total, **asdict(result.seconds)}


def write_parquet(frame: dd.DataFrame, target: Path, job: Job) -> dict[str, float]:
    """The baseline: the same rows, brought together by key with Dask's default shuffle, as plain Parquet files."""
    frame.shuffle(on="key", npartitions=job.shards).to_parquet(target, write_index=False)
    return {}


def check_snapshot(files: list[Path], target: Path, rows: int) -> None:
    """As many rows as went in, and a sample of them equal to the input."""
    chooser = random.Random(rows)
    expected: dict[int, bytes] = {}
    for file in chooser.sample(files, min(2, len(files))):
        table = pq.read_table(file)
        picked = table.take(chooser.sample(range(len(table)), min(SAMPLE // 2, len(table))))
        expected |= dict(zip(picked["key"].to_pylist(), picked["value"].to_pylist(), strict=True))
    with ShardedReader(target) as reader:
        stored, found = reader.snapshot_info().rows, reader.multi_get(expected)
    if stored != rows or found != expected:
        wrong = sum(found[key] != value for key, value in expected.items())
        sys.exit(f"the snapshot is wrong: {stored} of {rows} rows, {wrong} of {len(expected)} sampled values differ")


def check_parquet(files: list[Path], target: Path, rows: int) -> None:
    stored = sum(pq.read_metadata(file).num_rows for file in target.glob("*.parquet"))
    if stored != rows:
        sys.exit(f"the baseline is wrong: {stored} of {rows} rows")


WRITERS: dict[str, Callable[[dd.DataFrame, Path, Job], dict[str, float]]] = {
    BASELINE: write_parquet,
    **dict.fromkeys(BACKENDS, write_snapshot),
}
CHECKS: dict[str, Callable[[list[Path], Path, int], None]] = {BASELINE: check_parquet}


# -- the circumstances ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scheduler(job: Job) -> Iterator[None]:
    if job.scheduler == "threads":
        with dask.config.set(scheduler="threads"):
            yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="dask-", dir=job.data) as scratch,
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            local_directory=scratch,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster),
    ):
        yield


@dataclass
class Peak:
    bytes: int = 0


@contextlib.contextmanager
def peak_memory(interval: float = 0.05) -> Iterator[Peak]:
    """Samples the resident memory of this process and everything below it."""
    peak, done, driver = Peak(), threading.Event(), psutil.Process()

    def sample() -> None:
        while True:
            total = 0
            for process in (driver, *driver.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
            peak.bytes = max(peak.bytes, total)
            if done.wait(interval):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def parquet_files(data: Path, rows: int, files: int) -> list[Path]:
    """The input: unique int64 keys in no order, random bytes as values. Made once, found again by the next run."""
    directory = data / f"rows={rows}-files={files}-value={VALUE_BYTES}"
    if not directory.exists():
        building = Path(tempfile.mkdtemp(prefix="building-", dir=data))
        for number in range(files):
            first, end = rows * number // files, rows * (number + 1) // files
            pq.write_table(make_rows(first, end), building / f"part-{number:03}.parquet", use_dictionary=False)
        building.rename(directory)
    return sorted(directory.glob("*.parquet"))


def make_rows(first: int, end: int) -> pa.Table:
    # Multiplying by an odd number permutes the residues of a power of two: keys are unique without remembering any.
    numbers = np.arange(first, end, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = (numbers & np.uint64(2**63 - 1)).astype(np.int64)
    offsets = np.arange(end - first + 1, dtype=np.int32) * VALUE_BYTES
    values = np.random.default_rng(first).bytes((end - first) * VALUE_BYTES)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.table({"key": keys, "value": pa.BinaryArray.from_buffers(pa.binary(), end - first, buffers)})


# -- running and reporting --------------------------------------------------------------------------------------------


def run(job: Job) -> Measurement:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        measurement = pool.submit(measure, job).result()
    note = f"{job.scheduler:<8} {job.what:<10} {job.rows:>10,} rows"
    print(
        f"{note} {measurement.seconds:8.2f} s {measurement.peak_bytes / 2**20:8,.0f} MiB", file=sys.stderr, flush=True
    )
    return measurement


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """For every scheduler and size: the baseline, then the backends, right after each other."""
    rows = {"sqlite": args.rows, "slatedb": args.slatedb_rows}
    backends = sorted(chosen(args.backend, BACKENDS), key=lambda backend: -rows[backend])
    return [
        Job(what=what, scheduler=name, rows=size, files=args.files, shards=args.shards, data=args.data)
        for name in chosen(args.scheduler, SCHEDULERS)
        for size, group in groupby(backends, key=rows.__getitem__)
        for what in (BASELINE, *group)
    ]


def chosen(asked: str, names: Any) -> list[str]:
    return list(names) if asked == "all" else [asked]


def median(runs: list[Measurement]) -> Measurement:
    """The run in the middle, with the highest peak of all."""
    middle = sorted(runs, key=lambda one: one.seconds)[len(runs) // 2]
    return replace(middle, peak_bytes=max(one.peak_bytes for one in runs))


def results_table(results: list[Measurement]) -> str:
    baseline = {(one.scheduler, one.rows): one.seconds for one in results if one.what == BASELINE}
    lines = [["scheduler", "what", "rows", "seconds", "rows/s", "peak memory", f"time / {BASELINE}"]]
    lines += [
        [
            one.scheduler,
            one.what,
            f"{one.rows:,}",
            f"{one.seconds:.2f}",
            f"{one.rows / one.seconds:,.0f}",
            f"{one.peak_bytes / 2**20:,.0f} MiB",
            f"{one.seconds / baseline[one.scheduler, one.rows]:.2f}",
        ]
        for one in results
    ]
    return markdown(lines)


def phases_table(results: list[Measurement]) -> str:
    names = ("total", "plan", "build", "publish", "sweep", "encode_tasks", "shard_tasks")
    lines = [["scheduler", "what", *names]]
    lines += [[one.scheduler, one.what, *(f"{one.phases[n]:.2f}" for n in names)] for one in results if one.phases]
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """The first two columns are words; the others are figures, aligned right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    rows.insert(1, ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def circumstances(args: argparse.Namespace) -> str:
    packages = ("dask", "pyarrow", "pandas", "apsw", "slatedb", "shardyfusion")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    machine = (
        f"{os.cpu_count()} CPUs (load {os.getloadavg()[0]:.1f} before the start), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} {platform.machine()}"
    )
    return (
        f"{machine}, Python {platform.python_version()}, {versions}. Rows: int64 key, {VALUE_BYTES} random bytes; "
        f"{args.files} Parquet files to {args.shards} shards in a local directory; median of {args.repeat}. "
        "`cluster` is `LocalCluster` with 2 processes of 1 thread."
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=[*BACKENDS, "all"], default="all")
    parser.add_argument("--scheduler", choices=[*SCHEDULERS, "all"], default="all")
    parser.add_argument("--slatedb-rows", type=int, default=1_000_000, help="rows for SlateDB (default: %(default)s)")
    return parse_shared(parser, repeat=1)


def parse_shared(parser: argparse.ArgumentParser, *, repeat: int) -> argparse.Namespace:
    """Parse the arguments that every benchmark of writes takes, and those that `parser` has besides."""
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows for SQLite (default: %(default)s)")
    parser.add_argument("--files", type=int, default=16, help="Parquet files of the input (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=8, help="shards to build (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=repeat,
                        help="median of so many runs, an odd number (default: %(default)s)")  # fmt: skip
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "shardyfusion-benchmark",
                        help="where input is kept and output is written (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single run to FILE")
    args = parser.parse_args()
    if args.repeat < 1 or args.repeat % 2 == 0:
        parser.error("--repeat must be odd, so that one run is in the middle")
    return args


def main() -> None:
    args = parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    where, jobs = circumstances(args), plan_jobs(args)
    for rows in sorted({WARM_UP_ROWS, *(job.rows for job in jobs)}):
        parquet_files(args.data, rows, args.files)
    # Rounds, not repetitions: a slow minute of the machine then meets every job, not all runs of one.
    rounds = [[run(job) for job in jobs] for _ in range(args.repeat)]
    results = [median(list(runs)) for runs in zip(*rounds, strict=True)]
    print(f"{where}\n\n{results_table(results)}\n")
    print(f"Seconds by phase; `_tasks` are summed over workers:\n\n{phases_table(results)}")
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for runs in rounds for one in runs], indent=2) + "\n")


if __name__ == "__main__":
    main()
