"""A build is stopped before and after every durable step; what is left is read, built again and cleaned up."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from shardyfusion.testing import KillPoint, kill_at
from tests.faults.kill_jobs import BuildJob, Killer
from tests.faults.kill_sweep import State, Stop, Sweep

STATES: dict[tuple[str, str], set[State]] = defaultdict(set)
"""What stopped builds have left, and was followed up, by kind of store and engine."""


@pytest.fixture
def quick_directory() -> Iterator[Path]:
    """In memory where the system has such a place: what a machine's crash would lose is not of interest here."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None, prefix="kill-points-") as directory:
        yield Path(directory)


@pytest.fixture
def root(request: pytest.FixtureRequest, kind: str, quick_directory: Path) -> str:
    match kind:
        case "memory":
            return f"memory://{uuid4().hex}"
        case "local":
            return str(quick_directory / "snapshots")
        case _:
            return request.getfixturevalue("s3_prefix")


def stop_by_exception(job: BuildJob, point: KillPoint) -> None:
    stopped = kill_at(point.number, job, directories=job.directories)
    assert (stopped.when, stopped.action) == (point.when, point.action)


def sweep_and_report(
    kind: str, engine: str, root: str, directory: Path, stop: Stop, followed: set[State] | None
) -> None:
    sweep = Sweep(root, engine, directory / "scratch", stop, followed=followed)
    points = sweep.run()
    print(f"{engine} on {kind}: stopped at {len(points)} points, followed up after {sweep.follow_ups}")
    assert [point.number for point in points] == list(range(1, len(points) + 1))
    assert len(points) > 100
    assert sweep.follow_ups == len(points) if followed is None else len(followed) > 10


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("local", "sqlite"),
        ("s3", "sqlite"),
        ("memory", "local_slatedb"),
        ("local", "slatedb"),
        ("s3", "local_slatedb"),
    ],
)
def test_stopped_by_an_exception(kind: str, engine: str, root: str, quick_directory: Path) -> None:
    """At every point, and followed up wherever a build has left what none has left before."""
    sweep_and_report(kind, engine, root, quick_directory, stop_by_exception, STATES[kind, engine])


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("memory", "sqlite"),
        pytest.param("local", "sqlite", marks=pytest.mark.slow),
        pytest.param("s3", "sqlite", marks=pytest.mark.slow),
        pytest.param("memory", "local_slatedb", marks=pytest.mark.slow),
        pytest.param("local", "slatedb", marks=pytest.mark.slow),
        pytest.param("s3", "slatedb", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(7200)
def test_stopped_by_an_exception_and_followed_up_everywhere(
    kind: str, engine: str, root: str, quick_directory: Path
) -> None:
    sweep_and_report(kind, engine, root, quick_directory, stop_by_exception, None)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_stopped_by_the_end_of_a_forked_process(kind: str, root: str, quick_directory: Path) -> None:
    killer = Killer(fork=True)

    def stop(job: BuildJob, point: KillPoint) -> None:
        killer.stop(job, point.number)

    try:
        followed = set[State]() if kind == "local" else STATES[kind, "sqlite"]  # files may be held, objects are not
        sweep_and_report(kind, "sqlite", root, quick_directory, stop, followed)
    finally:
        assert killer.end() == 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_stopped_by_the_end_of_a_fresh_process(kind: str, root: str, quick_directory: Path) -> None:
    """SlateDB does not work in a child of a process that has used it."""
    ready = [Killer(fork=False)]

    def stop(job: BuildJob, point: KillPoint) -> None:
        killer = ready.pop()
        ready.append(Killer(fork=False))  # it starts while the other one works
        killer.stop(job, point.number)

    try:
        sweep_and_report(kind, "slatedb", root, quick_directory, stop, set())
    finally:
        assert ready.pop().end() == 0
