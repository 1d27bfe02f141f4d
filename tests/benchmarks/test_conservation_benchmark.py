"""The benchmark runs both kinds of write, checks what they wrote, and prints their table. The cost is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "conservation.py"


def test_small_run_measures_with_and_without_digests(tmp_path: Path):
    data, report = tmp_path / "data", tmp_path / "runs.json"
    command = [sys.executable, SCRIPT, "--rows", "30000", "--files", "3", "--shards", "2", "--repeat", "1"]
    ran = subprocess.run(
        [*command, "--data", data, "--json", report], capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stderr
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ran.stdout.splitlines() if line[:1] == "|"]
    assert cells[0] == ["what", "scheduler", "rows", "seconds", "rows/s", "peak memory", "cost"]
    assert [row[:3] for row in cells[2:]] == [["without", "threads", "30,000"], ["with digests", "threads", "30,000"]]
    assert cells[3][-1].endswith(" %")
    runs = json.loads(report.read_text())
    assert sorted(one["what"] for one in runs) == ["with digests", "without"]
    assert all(one["rows"] == 30_000 and one["seconds"] > 0 and one["peak_bytes"] > 0 for one in runs)
