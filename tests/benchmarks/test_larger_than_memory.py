"""Input that is larger than the workers' memory: what the benchmark tells of it, and the real thing behind `slow`."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.scripts import BENCHMARKS, run_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("larger_than_memory")


def test_pauses_are_added_up_until_they_or_their_worker_or_the_write_end(script: Any) -> None:
    def became(status: str) -> dict[str, str]:
        return {"action": "worker-status-change", "status": status}

    events = {
        "twice": [
            (90.0, became("paused")),
            (101.0, became("running")),
            (105.0, became("paused")),
            (107.0, became("running")),
        ],
        "killed": [(100.0, became("running")), (102.0, became("paused")), (103.0, {"action": "remove-worker"})],
        "still": [(110.0, ("another", "event")), (118.0, became("paused")), (118.5, {"action": "add-keys"})],
        "never": [(100.0, became("running"))],
    }
    assert script.paused_seconds(events, began=100.0, ended=120.0) == {"twice": 3.0, "killed": 1.0, "still": 2.0}


def test_a_file_that_is_linked_twice_counts_once(script: Any, tmp_path: Path) -> None:
    for name in ("output", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "output" / "shard").write_bytes(bytes(100_000))
    (tmp_path / "scratch" / "shard").hardlink_to(tmp_path / "output" / "shard")
    (tmp_path / "scratch" / "rows").write_bytes(bytes(50_000))
    seen: set[int] = set()
    assert script.disk_bytes(tmp_path / "output", seen) >= 100_000
    assert 50_000 <= script.disk_bytes(tmp_path / "scratch", seen) < 100_000


def test_small_run_prints_what_it_watched(tmp_path: Path) -> None:
    data, report = tmp_path / "data", tmp_path / "outcomes.json"
    size = ["--rows", 12_000, "--files", 6, "--shards", 3, "--backend", "sqlite", "--shuffle", "disk"]
    (results,) = run_script("larger_than_memory.py", *size, "--data", data, "--json", report)
    facts = {row[0]: row[1] for row in results[1:]}
    assert (facts["rows"], facts["shards"], facts["shuffle"]) == ("12,000", "3", "disk")
    assert facts["limit of each worker"] == "1,024 MiB"
    assert (facts["workers killed"], facts["files left in scratch"]) == ("0", "0")
    assert len(facts["most memory of each worker"].split(", ")) == 2
    (outcome,) = json.loads(report.read_text())
    assert all(peak > 50 * 2**20 for peak in outcome["strain"]["peaks"].values())
    assert outcome["strain"]["output_bytes"] > 12_000 * 100
    assert [found.name for found in data.iterdir()] == ["rows=12000-files=6-value=100"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", ["sqlite", "slatedb"])
def test_input_of_several_times_the_memory_is_written_within_it(backend: str, tmp_path: Path) -> None:
    """40 million rows to SQLite, 10 million to SlateDB, by two workers of 1 GiB. Needs 15 GB of disk."""
    data, report = tmp_path / "data", tmp_path / "outcomes.json"
    try:
        run_script("larger_than_memory.py", "--backend", backend, "--data", data, "--json", report, timeout=3500)
        (outcome,) = json.loads(report.read_text())
        assert outcome["job"]["rows"] == {"sqlite": 40_000_000, "slatedb": 10_000_000}[backend]
        assert outcome["input_bytes"] > outcome["job"]["rows"] * 100
        assert outcome["error"] == ""
        peaks = outcome["strain"]["peaks"]
        assert len(peaks) == 2, "a worker was killed and replaced"
        assert max(peaks.values()) < outcome["limit_bytes"] == 2**30
        assert outcome["left_behind"] == []
        assert [found.name for found in data.iterdir() if not found.name.startswith("rows=")] == []
    finally:
        shutil.rmtree(data, ignore_errors=True)
