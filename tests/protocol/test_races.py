"""Many writers on one prefix: one chain without gaps, nothing lost, and readers that are never led back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.racer import Racer, Told, run
from tests.protocol.tiny_writes import history, served_run, store_of

ROOT = Path(__file__).parents[2]


def started(racer: Racer) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.protocol.racer", json.dumps(asdict(racer))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert process.stdin
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


def finished(process: subprocess.Popen[str]) -> Told:
    output, errors = process.communicate(timeout=1_100)  # the test's own timeout is shorter
    assert process.returncode == 0, errors
    return Told(**json.loads(output.splitlines()[-1]))


def race(racers: Sequence[Racer], threads: int, reader: Racer, stop: Path) -> tuple[list[Told], Told]:
    """The first `threads` racers here and the others each in a process, with a reader in one more until all are done.

    Something is published before, so that the reader has what to begin with.
    """
    told = [run(replace(racers[0], name="first", role="publisher", target=1))]
    processes = [started(racer) for racer in [replace(reader, stop=str(stop)), *racers[threads:]]]
    try:
        for process in processes:
            let_go(process)
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            told += pool.map(run, racers[:threads])
        told += [finished(process) for process in processes[1:]]
        stop.touch()
        return told, finished(processes[0])
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def check_race(prefix: str, told: Sequence[Told], seen: Told) -> None:
    records = history(prefix)
    committed = {run_id: seq for writer in told for run_id, seq in writer.committed.items()}
    assert {record.run_id: record.seq for record in records} == committed, "what was reported is what is in the log"
    assert not committed.keys() & {run_id for writer in told for run_id in writer.stale}
    assert served_run(prefix) == records[-1].run_id
    assert json.loads(store_of(prefix).get("_CURRENT").body)["seq"] == len(records)
    manifests = {info.name for info in store_of(prefix).list("manifests/")}
    assert all(record.manifest_ref.removeprefix(f"{store_of(prefix).url}/") in manifests for record in records)
    assert falls(seen.seen) == [], "a reader went back"
    assert len(set(seen.seen)) > 1, "the reader was not there during the race"


def falls(numbers: Sequence[int]) -> list[tuple[int, int]]:
    return [(before, after) for before, after in pairwise(numbers) if after < before]


def run_race(prefix: str, commits: int, refreshes: int, stop: Path, **options: Any) -> Told:
    """Eight publishers in threads and four in processes."""
    seed = time.time_ns() % 1_000_000
    print(f"{seed=}")  # shown if it fails
    racers = [Racer(prefix=prefix, name=f"w{n}", target=commits, seed=seed, **options) for n in range(12)]
    told, seen = race(racers, 8, Racer(prefix=prefix, name="r", role="reader", target=refreshes), stop)
    check_race(prefix, told, seen)
    assert len(seen.seen) >= refreshes
    assert len(history(prefix)) >= commits
    assert sum(bool(writer.committed) for writer in told) > 6, "a race has more than one winner"
    return seen


def test_twelve_publishers_in_a_directory(local_prefix: str, tmp_path: Path) -> None:
    seen = run_race(local_prefix, 200, 10_000, tmp_path / "stop")
    assert falls(seen.pointers) == [], "with a conditional update the pointer never goes back"


def test_twelve_publishers_on_s3(s3_prefix: str, tmp_path: Path) -> None:
    seen = run_race(s3_prefix, 200, 1_000, tmp_path / "stop", build_seconds=2.0)
    assert falls(seen.pointers) == []


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_twelve_publishers_on_s3_and_ten_thousand_refreshes(s3_prefix: str, tmp_path: Path) -> None:
    seen = run_race(s3_prefix, 400, 10_000, tmp_path / "stop", build_seconds=5.0)
    assert falls(seen.pointers) == []


def test_without_conditional_update_only_the_pointer_lags(local_prefix: str, tmp_path: Path) -> None:
    run_race(local_prefix, 200, 10_000, tmp_path / "stop", if_match=False)


@pytest.mark.parametrize("store", ["local", "s3"])
def test_whole_writes_in_three_processes(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    prefix = request.getfixturevalue(f"{store}_prefix")
    racers = [Racer(prefix=prefix, name=f"w{n}", role="writer", target=5) for n in range(3)]
    told, seen = race(racers, 0, Racer(prefix=prefix, name="r", role="reader", target=100), tmp_path / "stop")
    check_race(prefix, told, seen)
    assert len(history(prefix)) == 16
