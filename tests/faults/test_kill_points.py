"""A build is stopped before and after every durable step; what is left is read, built again and cleaned up."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from tests.faults.kill_lanes import Lane, Order
from tests.faults.kill_sweep import Report

LANES = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
"""Where test processes share the processors already, one more for each is enough."""

pytestmark = pytest.mark.timeout(1200)
slow = pytest.mark.slow
hours = pytest.mark.timeout(7200)


class Sweep(Protocol):
    def __call__(self, engine: str, death: str, *, everywhere: bool) -> None:
        """Stop builds at every point, and follow up at all of them, or wherever one has left what none had before."""
        ...


@pytest.fixture
def quick_directory() -> Iterator[Path]:
    """In memory where the system has such a place: what a machine's crash would lose is not of interest here."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None, prefix="kill-points-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def lanes(s3: str) -> Iterator[list[Lane]]:
    """The variables that point to `s3` are theirs, too."""
    started = [Lane() for _ in range(LANES)]
    try:
        yield started
    finally:
        for lane in started:
            lane.close()


def _sweep(lanes: list[Lane], root: str, directory: Path, engine: str, death: str, *, everywhere: bool) -> None:
    for part, lane in enumerate(lanes):
        scratch = directory / f"part-{part}"
        scratch.mkdir()
        lane.start(Order(f"{root}/part-{part}", engine, str(scratch), death, everywhere, part, len(lanes)))
    answers = [lane.report() for lane in lanes]
    wrong = [answer for answer in answers if isinstance(answer, str)]
    assert not wrong, "\n".join(wrong)
    reports = [answer for answer in answers if isinstance(answer, Report)]
    stopped = sorted(number for report in reports for number in report.stopped)
    followed = sorted(number for report in reports for number in report.followed)
    print(
        f"{engine} below {root}, by {death}: stopped at {len(stopped)} points, followed up after {len(followed)}, "
        f"{[report.seconds for report in reports]} seconds"
    )
    points = reports[0].points
    assert all(report.points == points for report in reports)
    assert len(points) > (40 if death != "some writes of slatedb" else 4)
    assert stopped == points
    assert len(followed) > 3
    assert not everywhere or followed == points


@pytest.fixture
def on_memory(lanes: list[Lane], quick_directory: Path) -> Sweep:
    return partial(_sweep, lanes, f"memory://{uuid4().hex}", quick_directory)


@pytest.fixture
def on_disk(lanes: list[Lane], quick_directory: Path) -> Sweep:
    return partial(_sweep, lanes, str(quick_directory / "snapshots"), quick_directory)


@pytest.fixture
def on_s3(lanes: list[Lane], s3_prefix: str, quick_directory: Path) -> Sweep:
    def sweep(engine: str, death: str, *, everywhere: bool) -> None:
        # A character that SlateDB would rewrite: so shards are read from copies, with a quarter of the requests.
        root = f"{s3_prefix}~" if engine == "local_slatedb" else s3_prefix
        _sweep(lanes, root, quick_directory, engine, death, everywhere=everywhere)

    return sweep


@pytest.mark.parametrize("engine", ["sqlite", "local_slatedb"])
def test_stopped_by_an_exception_in_memory(engine: str, on_memory: Sweep) -> None:
    on_memory(engine, "exception", everywhere=True)


@pytest.mark.parametrize("engine", ["sqlite", "slatedb"])
def test_stopped_by_an_exception_on_disk(engine: str, on_disk: Sweep) -> None:
    on_disk(engine, "exception", everywhere=True)


@pytest.mark.parametrize("engine", ["sqlite", "local_slatedb"])
def test_stopped_by_an_exception_on_s3(engine: str, on_s3: Sweep) -> None:
    on_s3(engine, "exception", everywhere=False)


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("slatedb", marks=[slow, hours])])
def test_stopped_with_its_process_on_disk(engine: str, on_disk: Sweep) -> None:
    on_disk(engine, "forked process", everywhere=True)


def test_stopped_with_its_process_on_s3(on_s3: Sweep) -> None:
    on_s3("sqlite", "forked process", everywhere=False)


def test_stopped_at_some_writes_of_slatedb_on_s3(on_s3: Sweep) -> None:
    on_s3("slatedb", "some writes of slatedb", everywhere=False)


@pytest.mark.parametrize(
    ("engine", "death"),
    [
        ("sqlite", "exception"),
        ("sqlite", "forked process"),
        ("local_slatedb", "exception"),
        ("slatedb", "exception"),
        ("slatedb", "forked process"),
    ],
)
@slow
@hours
def test_stopped_and_followed_up_everywhere_on_s3(engine: str, death: str, on_s3: Sweep) -> None:
    on_s3(engine, death, everywhere=True)


@pytest.mark.parametrize(("death", "everywhere"), [("writes of slatedb", True), ("requests of slatedb", False)])
@slow
@hours
def test_stopped_at_a_request_of_slatedb_on_s3(death: str, everywhere: bool, on_s3: Sweep) -> None:
    """What only reads leaves the objects as they were."""
    on_s3("slatedb", death, everywhere=everywhere)


@slow
@hours
def test_stopped_with_a_fresh_process_on_disk(on_disk: Sweep) -> None:
    on_disk("slatedb", "fresh process", everywhere=False)


@slow
@hours
def test_stopped_with_a_fresh_process_on_s3(on_s3: Sweep) -> None:
    on_s3("slatedb", "fresh process", everywhere=False)
