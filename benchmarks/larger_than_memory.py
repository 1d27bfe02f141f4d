"""Writes input that is several times larger than the workers' memory, and tells whether they stayed within it.

On a `LocalCluster` of two processes with a memory limit each. Ends with 1 if a worker was killed, if rows are missing,
or if anything is left in a scratch directory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import dask.dataframe as dd
import psutil
from arguments import add_places, add_size, chosen, parser
from dask.utils import parse_bytes
from distributed import Client, LocalCluster
from jobs import BACKENDS, Job, check_snapshot, write_snapshot
from measuring import WORKERS, local_cluster
from places import fresh_target
from report import machine, markdown, mebibytes, write_json
from rows import KINDS

from shardyfusion import DaskWriteOptions
from shardyfusion.config import Shuffle


@dataclass(kw_only=True)
class Strain:
    """What a write asked of the cluster while it ran.

    `peaks` are resident bytes by process id, of every process that was a worker: if there are more than workers, some
    were killed. `paused_seconds` are by worker; Dask pauses one that uses 80 % of its limit, until it uses less.
    """

    peaks: dict[int, int] = field(default_factory=dict[int, int])
    paused_seconds: dict[str, float] = field(default_factory=dict[str, float])
    dask_scratch_bytes: int = 0
    own_scratch_bytes: int = 0
    scratch_bytes: int = 0
    output_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    job: Job
    shuffle: str
    limit_bytes: int
    input_bytes: int
    seconds: float
    strain: Strain
    error: str = ""
    left_behind: tuple[str, ...] = ()

    @property
    def killed(self) -> int:
        return len(self.strain.peaks) - WORKERS


# -- watching ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watched(cluster: LocalCluster, client: Client, places: Mapping[str, Path]) -> Iterator[Strain]:
    """`places` are the directories `dask`, `own` and `output`."""
    strain, done, began = Strain(), threading.Event(), time.time()

    def watch() -> None:
        looked_at_disk = 0.0
        while not done.wait(0.1):
            _look_at_workers(cluster, strain)
            if time.monotonic() - looked_at_disk > 0.5:
                _look_at_disk(places, strain)
                looked_at_disk = time.monotonic()

    _look_at_workers(cluster, strain)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield strain
    finally:
        done.set()
        thread.join()
        _look_at_workers(cluster, strain)
        _look_at_disk(places, strain)
        strain.paused_seconds = paused_seconds(cluster.scheduler.get_events(), began, time.time())


def _look_at_workers(cluster: LocalCluster, strain: Strain) -> None:
    for nanny in list(cluster.workers.values()):
        if (pid := nanny.pid) is not None:
            strain.peaks[pid] = max(strain.peaks.get(pid, 0), peak_resident(pid))


def peak_resident(pid: int) -> int:
    """The most that a process has had, by its own system's account; where that keeps none, what it has now."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return psutil.Process(pid).memory_info().rss
    except (OSError, psutil.NoSuchProcess):
        return 0


def _look_at_disk(places: Mapping[str, Path], strain: Strain) -> None:
    seen: set[int] = set()
    output = disk_bytes(places["output"], seen)
    own = disk_bytes(places["own"], seen)  # without shards that are linked into the output already
    dask = disk_bytes(places["dask"], seen)
    strain.output_bytes = max(strain.output_bytes, output)
    strain.own_scratch_bytes = max(strain.own_scratch_bytes, own)
    strain.dask_scratch_bytes = max(strain.dask_scratch_bytes, dask)
    strain.scratch_bytes = max(strain.scratch_bytes, own + dask)


def disk_bytes(directory: Path, seen: set[int]) -> int:
    """What the files take, without those whose inodes are in `seen`; adds theirs to it."""
    total = 0
    for found, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # gone since
                status = os.stat(os.path.join(found, name))  # noqa: PTH116, PTH118 (many, every half second)
                if status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += status.st_blocks * 512
    return total


def paused_seconds(events: Mapping[str, Any], began: float, ended: float) -> dict[str, float]:
    """By worker, from the scheduler's log of what became of it."""
    found: dict[str, float] = {}
    for worker, log in events.items():
        since = None
        for when, event in log:
            facts = event if isinstance(event, dict) else {}
            status = "gone" if facts.get("action") == "remove-worker" else facts.get("status")
            if status == "paused":
                since = max(when, began)
            elif status is not None and since is not None:
                found[worker], since = found.get(worker, 0.0) + when - since, None
        if since is not None:
            found[worker] = found.get(worker, 0.0) + ended - since
    return found


# -- writing ----------------------------------------------------------------------------------------------------------


def measure(job: Job, shuffle: Shuffle, memory_limit: str, deadline: float) -> Outcome:
    files = job.input_files
    error = ""
    with (
        local_cluster(job.data, memory_limit=memory_limit) as (cluster, client, scratch),
        fresh_target(job.data, None) as target,
        watched(cluster, client, {"dask": scratch, "own": target.scratch, "output": Path(target.prefix)}) as strain,
    ):
        frame = dd.read_parquet(list(files), dtype_backend="pyarrow")
        started = time.perf_counter()
        # Workers that all stay paused wait for ever: closing the client ends the write with an error.
        giving_up = threading.Timer(deadline, client.close)
        giving_up.start()
        try:
            write_snapshot(frame, target, job, DaskWriteOptions(shuffle=shuffle))
        except Exception as exc:  # told with the rest
            error = f"{type(exc).__name__}: {exc}"
        finally:
            giving_up.cancel()
        seconds = time.perf_counter() - started
        error += f"; given up after {deadline:.0f} s" if seconds >= deadline else ""
        left = [*left_by_dask(scratch), *(path for path in target.scratch.rglob("*") if path.is_file())]
        if not error:
            check_snapshot(files, target, job)
    return Outcome(
        job=job,
        shuffle=shuffle,
        limit_bytes=parse_bytes(memory_limit),
        input_bytes=sum(file.stat().st_size for file in files),
        seconds=seconds,
        strain=strain,
        error=error,
        left_behind=tuple(sorted(map(str, left))),
    )


def left_by_dask(scratch: Path, patience: float = 10.0) -> list[Path]:
    """Files of data. Workers are told to let go of it just after a write returns, so they get a moment."""
    deadline = time.monotonic() + patience
    while True:
        left = [path for path in scratch.rglob("*") if path.is_file() and not path.name.endswith("lock")]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def results_table(outcomes: Sequence[Outcome]) -> str:
    """One column each."""
    lines = [["", *(one.job.what for one in outcomes)]]
    for name, value in FACTS.items():
        lines.append([name, *(value(one) for one in outcomes)])
    return markdown(lines, words=1)


FACTS: dict[str, Callable[[Outcome], str]] = {
    "rows": lambda one: f"{one.job.rows:,}",
    "input": lambda one: f"{mebibytes(one.input_bytes)} in {one.job.files} files",
    "shards": lambda one: f"{one.job.shards}",
    "shuffle": lambda one: one.shuffle,
    "seconds": lambda one: f"{one.seconds:.1f}",
    "rows/s": lambda one: "" if one.error else f"{one.job.rows / one.seconds:,.0f}",
    "limit of each worker": lambda one: mebibytes(one.limit_bytes),
    "most memory of each worker": lambda one: ", ".join(mebibytes(peak) for peak in one.strain.peaks.values()),
    "workers killed": lambda one: f"{one.killed}",
    "workers paused": lambda one: f"{sum(one.strain.paused_seconds.values()):.1f} s",
    "scratch at most, Dask's": lambda one: mebibytes(one.strain.dask_scratch_bytes),
    "scratch at most, ours": lambda one: mebibytes(one.strain.own_scratch_bytes),
    "scratch at most, both": lambda one: mebibytes(one.strain.scratch_bytes),
    "output": lambda one: mebibytes(one.strain.output_bytes),
    "files left in scratch": lambda one: f"{len(one.left_behind)}",
}


def parse_args() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--backend", choices=[*BACKENDS, "all"], default="all")
    add_size(arguments, rows=40_000_000, files=160, shards=64)
    arguments.add_argument("--slatedb-rows", type=int, default=10_000_000,
                           help="rows for SlateDB (default: %(default)s)")  # fmt: skip
    arguments.add_argument("--memory-limit", default="1GiB", help="of each of two workers (default: %(default)s)")
    arguments.add_argument("--shuffle", choices=get_args(Shuffle), default="auto",
                           help="how rows reach their shard (default: %(default)s)")  # fmt: skip
    arguments.add_argument("--deadline", type=float, default=1800.0, metavar="SECONDS",
                           help="give a write up after so long (default: %(default)s)")  # fmt: skip
    add_places(arguments)
    return arguments.parse_args()


def main() -> None:
    args = parse_args()
    where, outcomes = machine(), []
    for backend in chosen(args.backend, BACKENDS):
        rows = {"sqlite": args.rows, "slatedb": args.slatedb_rows}[backend]
        job = Job(what=backend, scheduler="cluster", rows=rows, files=args.files, shards=args.shards, data=args.data)
        outcomes.append(measure(job, args.shuffle, args.memory_limit, args.deadline))
        print(f"{backend}: {outcomes[-1].seconds:.1f} s {outcomes[-1].error}", file=sys.stderr, flush=True)
    write_json(args.json, outcomes)
    print(
        f"{where} `LocalCluster` with 2 processes of 1 thread. {KINDS['int'].words.capitalize()}; to a local directory."
        f"\n\n{results_table(outcomes)}"
    )
    failures = [f"{one.job.what}: {one.error}" for one in outcomes if one.error]
    failures += [f"{one.job.what}: {one.killed} workers were killed" for one in outcomes if one.killed]
    failures += [f"{one.job.what} left {', '.join(one.left_behind[:5])}" for one in outcomes if one.left_behind]
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
