"""Which way rows take from the partition they were read in to the shard they belong to.

The graphs of the ways are in `frame.py`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import dask.dataframe as dd
from dask.base import get_scheduler
from distributed import default_client

from shardyfusion.config import Shuffle
from shardyfusion.errors import ConfigValidationError, ShardWriteError
from shardyfusion.storage.address import StoreKind
from shardyfusion.writer.dask.overlap import is_far

SchedulerKind = Literal["synchronous", "threads", "processes", "distributed", "other"]

DIRECT_TASKS: dict[SchedulerKind, int] = {"synchronous": 20_000, "threads": 20_000, "distributed": 256}
"""Partitions x shards up to which `shuffle="auto"` sends every piece by a task of its own. Beyond it files are as fast
or faster, and workers hold no rows; between processes that are no cluster, every piece would pass through this one."""

FAR_DIRECT_TASKS = 20_000
"""The same for a cluster whose workers share no disk."""


TASKS_OF_A_THREAD = 32
"""So many shard tasks are left for each thread of a cluster when several shards are put into one."""


def scheduler_kind() -> SchedulerKind:
    """The ambient scheduler, as `dask.compute` would pick it for a DataFrame."""
    get = get_scheduler(cls=dd.DataFrame)
    module = "dask.threaded" if get is None else str(getattr(get, "__module__", ""))
    if module.startswith("distributed"):
        return "distributed"
    names: dict[str, SchedulerKind] = {
        "dask.local": "synchronous",
        "dask.threaded": "threads",
        "dask.multiprocessing": "processes",
    }
    return names.get(module, "other")


def is_in_process() -> bool:
    """Whether the ambient scheduler is known to run all tasks in this process."""
    return scheduler_kind() in ("synchronous", "threads")


def choose_exchange(shuffle: Shuffle, partitions: int, num_dbs: int, local_root: Path | None) -> Shuffle:
    """`auto` resolved, by size: see docs/writing.md, "Exchange and memory".

    Raises:
        ConfigValidationError: `disk` was asked for, and the workers share no disk with this process.
    """
    scheduler = scheduler_kind()
    if shuffle == "disk" and not _is_shared(local_root, scheduler):
        raise ConfigValidationError(
            "shuffle='disk' needs a directory that this process and all workers can write to; set output.local_root "
            "to one, or use 'auto', 'direct', 'p2p' or 'tasks'"
        )
    if shuffle != "auto":
        return shuffle
    if partitions * num_dbs <= DIRECT_TASKS.get(scheduler, 0):
        return "direct"
    if _is_shared(local_root, scheduler):
        return "disk"
    if partitions * num_dbs <= FAR_DIRECT_TASKS:
        return "direct"
    return "p2p" if scheduler == "distributed" else "tasks"


def shards_at_once(num_dbs: int, store: StoreKind) -> int:
    """How many shards one task builds, one after the other, when rows move through files.

    A task costs a cluster some milliseconds, which is as much as a small shard. Several are built where many tasks are
    left for each thread, so that none of them waits for the last. On the way to a far store each wants a task to leave.
    """
    if scheduler_kind() != "distributed" or is_far(store):
        return 1
    client: Any = default_client()
    threads = sum(client.nthreads().values())
    return max(1, num_dbs // (TASKS_OF_A_THREAD * max(1, threads)))


@contextmanager
def exchange_directory(local_root: Path | None) -> Generator[Path]:
    """An empty directory for encoded partitions, which is gone afterwards with all that is in it."""
    try:
        if local_root is not None:
            local_root.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="shardyfusion-exchange-", dir=local_root))
    except OSError as exc:
        raise ShardWriteError(
            f"no directory for encoded rows can be made in {local_root or tempfile.gettempdir()}: {exc}; free some "
            "space, or set output.local_root"
        ) from exc
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _is_shared(local_root: Path | None, scheduler: SchedulerKind) -> bool:
    """Whether what a worker writes below `local_root` can be read here, and so by every other worker."""
    if scheduler != "distributed":
        return scheduler != "other"  # local ones; of another nobody knows where it works
    with exchange_directory(local_root) as directory:
        client: Any = default_client()  # Dask's annotations say that it may be asynchronous; `compute` could not use it
        written = client.run(_leave_mark, directory)
        return bool(written) and all(name and (directory / name).exists() for name in written.values())


def _leave_mark(directory: Path) -> str | None:
    try:
        (directory / (name := uuid4().hex)).touch(exist_ok=False)
    except OSError:
        return None
    return name
