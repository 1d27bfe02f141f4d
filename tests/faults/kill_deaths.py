"""The ways in which a build is stopped at one of its points: by an exception that nothing holds up, or with its process,
at a step of its own or at a request of SlateDB's own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from shardyfusion.layout import SEAL
from shardyfusion.testing import EXIT_STATUS, KillPoint, count_kill_points, exit_at, kill_at, kill_child_at
from tests.faults.kill_jobs import BuildJob
from tests.faults.kill_proxy import RequestCount, rerouted

READS = ("GET", "HEAD")
WRITES = ("DELETE", "POST", "PUT")


class Death(Protocol):
    def points(self, job: BuildJob) -> list[KillPoint]:
        """Run a job to its end and return where it can be stopped."""
        ...

    def stop(self, job: BuildJob, point: KillPoint) -> None: ...

    def check(self, point: KillPoint, left: Set[str]) -> None:
        """That a stopped build has left, by name, what one leaves that was stopped just there."""
        ...

    def close(self) -> None: ...


class ByException:
    def points(self, job: BuildJob) -> list[KillPoint]:
        return list(count_kill_points(job, directories=job.directories))

    def stop(self, job: BuildJob, point: KillPoint) -> None:
        stopped = kill_at(point.number, job, directories=job.directories)
        assert (stopped.when, stopped.action) == (point.when, point.action)

    def check(self, point: KillPoint, left: Set[str]) -> None:
        """A step is not known again by what it left: `kill_at` tells where it stopped, and a process nothing at all."""

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Victim:
    """A job whose process ends at its n-th point: at one of its steps, or at a request of SlateDB by these `methods`."""

    job: BuildJob
    number: int
    methods: tuple[str, ...] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        methods = fields["methods"]
        return cls(BuildJob(**fields["job"]), fields["number"], methods and tuple(methods))

    def die_in_child(self) -> None:
        """From a process that has not used SlateDB. `AssertionError` if the child ends otherwise."""
        if self.methods is None:
            kill_child_at(self.number, self.job, directories=self.job.directories)
            return
        child = os.fork()
        if not child:
            try:
                with rerouted(os.environ["AWS_ENDPOINT_URL"], RequestCount(self.methods, self.number)):
                    self.job()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == EXIT_STATUS, f"#{self.number} of {self.methods} was never reached: exit status {code}"


class WithItsProcess(ByException):
    """At a step, in a child that `die` forks for it."""

    def __init__(self, die: Callable[[Victim], None]) -> None:
        self._die = die

    def stop(self, job: BuildJob, point: KillPoint) -> None:
        self._die(Victim(job, point.number))


class AtRequest:
    """At a request of SlateDB's own client, before it is passed on or before its answer is, with the process.

    Only at every `step`-th point of requests by these methods.
    """

    def __init__(self, die: Callable[[Victim], None], *methods: str, step: int = 1) -> None:
        self._die = die
        self._methods = methods
        self._step = step

    def points(self, job: BuildJob) -> list[KillPoint]:
        requests = RequestCount(self._methods)
        with rerouted(os.environ["AWS_ENDPOINT_URL"], requests):
            job()
        return requests.points[:: self._step]

    def stop(self, job: BuildJob, point: KillPoint) -> None:
        self._die(Victim(job, point.number, self._methods))

    def check(self, point: KillPoint, left: Set[str]) -> None:
        if READS[0] not in self._methods:  # each of the others makes one object
            made = [name for name in left if "/attempt=" in name and not name.endswith(SEAL)]
            assert len(made) == point.number // 2, f"{sorted(made)} after {point}"

    def close(self) -> None:
        pass


class WithFreshProcess(ByException):
    """At a step, in a process that was started for it. The next one starts while this one works."""

    def __init__(self) -> None:
        self._ready = self._start()

    def stop(self, job: BuildJob, point: KillPoint) -> None:
        process, self._ready = self._ready, self._start()
        process.communicate(Victim(job, point.number).to_json(), timeout=120)
        assert process.returncode == EXIT_STATUS

    def close(self) -> None:
        self._ready.communicate("")

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.faults.kill_deaths"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def death_of(name: str, die: Callable[[Victim], None]) -> AbstractContextManager[Death]:
    kinds: Mapping[str, Callable[[], Any]] = {
        "exception": ByException,
        "forked process": lambda: WithItsProcess(die),
        "fresh process": WithFreshProcess,
        "requests of slatedb": lambda: AtRequest(die, *READS, *WRITES),
        "writes of slatedb": lambda: AtRequest(die, *WRITES),
        "some writes of slatedb": lambda: AtRequest(die, *WRITES, step=11),  # each shard makes six, with twelve points
    }
    return closing(kinds[name]())


if __name__ == "__main__":
    if text := sys.stdin.read():
        victim = Victim.from_json(text)
        exit_at(victim.number, victim.job, directories=victim.job.directories)
