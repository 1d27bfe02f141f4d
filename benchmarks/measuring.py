"""Under what circumstances something is measured: the Dask scheduler, the memory in use, a process of its own."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import Client, LocalCluster

SCHEDULERS = ("threads", "cluster")
WORKERS = 2
"""Threads of the threaded scheduler, and processes of one thread each of the cluster."""


@contextlib.contextmanager
def scheduler(name: str, data: Path) -> Iterator[None]:
    """The ambient scheduler, with Dask's own scratch in `data`."""
    if name == "cluster":
        with local_cluster(data):
            yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="dask-", dir=data) as scratch,
        dask.config.set(scheduler="threads", num_workers=WORKERS, temporary_directory=scratch),
    ):
        yield


@contextlib.contextmanager
def local_cluster(data: Path, **options: Any) -> Iterator[tuple[LocalCluster, Client, Path]]:
    """With Dask's own scratch, which is the last that is given."""
    with (
        tempfile.TemporaryDirectory(prefix="dask-", dir=data) as scratch,
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            local_directory=scratch,
            silence_logs=logging.ERROR,
            **options,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield cluster, client, Path(scratch)


@dataclass
class Memory:
    """Resident bytes of this process and all below it: when measuring began, and at most."""

    before: int = 0
    peak: int = 0


@contextlib.contextmanager
def watched_memory(interval: float = 0.05) -> Iterator[Memory]:
    """Looks from time to time: a peak that is shorter than `interval` seconds can be missed."""
    family = _Family()
    memory = Memory(before=family.resident())
    done = threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            memory.peak = max(memory.peak, family.resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()
        memory.peak = max(memory.peak, memory.before, family.resident())


class _Family:
    """This process and its descendants. Finding those takes long, so they are looked for only now and then."""

    ROUNDS = 40

    def __init__(self) -> None:
        self._driver, self._round = psutil.Process(), 0
        self._processes: list[psutil.Process] = []

    def resident(self) -> int:
        if self._round % self.ROUNDS == 0:
            self._processes = [self._driver, *self._driver.children(recursive=True)]
        self._round += 1
        total = 0
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns, from a process that has run nothing before it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
