"""Things to kill: encoders and adapters that announce themselves from inside a worker, and a killer that acts on it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed import LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

from shardyfusion import SlateDbFactory, SqliteFactory
from shardyfusion.shard_contract import DbAdapter, SealedShard, ShardTarget
from shardyfusion.testing import FactoryOver

HOLD_SECONDS = 0.3
"""How long a task that announced itself stays where it is, so that a kill meets it there."""


@dataclass(frozen=True)
class Bell:
    """Rung by tasks in any process. Only the first `hits` strokes count: what runs again is left in peace."""

    directory: Path
    hits: int = 1

    def ring(self) -> None:
        for number in range(self.hits):
            private = self.directory / f"{number}.{uuid4().hex}"
            private.write_text(str(os.getpid()))
            with suppress(FileExistsError):
                (self.directory / f"{number}.pid").hardlink_to(private)
                time.sleep(HOLD_SECONDS)
                return

    def rung(self) -> list[int]:
        """The processes that have rung it."""
        return [int(path.read_text()) for path in sorted(self.directory.glob("*.pid"))]


@dataclass(frozen=True)
class RingingEncoder:
    """Encodes `payload` as it is, and rings when it meets `key`."""

    bell: Bell
    key: int

    def __call__(self, row: Any) -> bytes:
        if row.id == self.key:
            self.bell.ring()
        return row.payload


@dataclass(frozen=True)
class RingingFactory(FactoryOver):
    """A backend whose adapters ring in the named phase: `build` (half-way through the rows), `seal` (just before the
    inner seal) or `sealed` (just after it)."""

    bell: Bell
    phase: str

    def open(self, target: ShardTarget) -> RingingAdapter:
        return RingingAdapter(self.inner.open(target), self)


class RingingAdapter:
    def __init__(self, inner: DbAdapter, settings: RingingFactory) -> None:
        self.inner, self.settings = inner, settings

    def write_arrow(self, batch: Any) -> None:
        half = batch.num_rows // 2
        self.inner.write_arrow(batch.slice(0, half))
        self._ring("build")
        self.inner.write_arrow(batch.slice(half))

    def seal(self) -> SealedShard:
        self._ring("seal")
        sealed = self.inner.seal()
        self._ring("sealed")
        return sealed

    def _ring(self, phase: str) -> None:
        if self.settings.phase == phase:
            self.settings.bell.ring()

    def __enter__(self) -> RingingAdapter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.inner.close()


BACKENDS = (SqliteFactory(), SlateDbFactory(sst_bytes=1024 * 1024))


def worker_pids(cluster: LocalCluster) -> list[int]:
    """The workers of a cluster of ours that are up. (A nanny gives up a worker that dies while it starts.)"""
    processes = [nanny.process for nanny in cluster.workers.values()]
    return [process.pid for process in processes if process and process.status.name == "running"]


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def killing_who_rings(bell: Bell, cluster: LocalCluster, rng: random.Random) -> Iterator[list[int]]:
    """For each stroke of the bell kill, after a moment, whoever rang it or any worker. Gives the list of the killed."""
    killed: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for ringer in bell.rung()[len(killed) :]:
                time.sleep(rng.uniform(0, HOLD_SECONDS))
                victim = rng.choice([ringer, ringer, *worker_pids(cluster)])
                killed.append(victim)
                kill(victim)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


class KillAtTask(SchedulerPlugin):
    """Kills the worker that is given the `number`-th task whose key holds one of `parts`, `delay` seconds later."""

    def __init__(self, cluster: LocalCluster, parts: tuple[str, ...], number: int, delay: float) -> None:
        self.name = f"kill-{uuid4().hex}"
        self.killed: list[int] = []
        self._cluster, self._parts, self._left, self._delay = cluster, parts, number, delay

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if finish != "processing" or not any(part in str(key) for part in self._parts):
            return
        self._left -= 1
        if self._left:
            return
        task = self._cluster.scheduler.tasks[key]
        worker = task.processing_on.address if task.processing_on else None
        pids = [n.process.pid for n in self._cluster.workers.values() if n.process and n.worker_address == worker]
        for pid in pids or worker_pids(self._cluster)[:1]:
            self.killed.append(pid)
            threading.Timer(self._delay, kill, [pid]).start()
