"""The benchmark runs both kinds of write, checks what they wrote, and prints their table. The cost is not asserted."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.scripts import run_script


def test_small_run_measures_with_and_without_digests(tmp_path: Path) -> None:
    report = tmp_path / "runs.json"
    size = ["--rows", 12_000, "--files", 3, "--shards", 2, "--repeat", 1]
    (results,) = run_script("conservation.py", *size, "--data", tmp_path / "data", "--json", report)
    assert results[0] == ["what", "scheduler", "rows", "seconds", "rows/s", "peak memory", "cost"]
    assert [row[:3] for row in results[1:]] == [["without", "threads", "12,000"], ["with digests", "threads", "12,000"]]
    assert [row[-1][-2:] for row in results[1:]] == ["", " %"]
    runs = json.loads(report.read_text())
    assert sorted(run["job"]["what"] for run in runs) == ["with digests", "without"]
