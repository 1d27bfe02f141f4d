"""The benchmark builds every shape both ways, checks what it built, and prints its table. Speed is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sqlite_build.py"


def test_small_run_measures_both_ways(tmp_path: Path):
    data, report = tmp_path / "data", tmp_path / "runs.json"
    command = [sys.executable, SCRIPT, "--rows", "3000", "--repeat", "1", "--data", data, "--json", report]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ran.stdout.splitlines() if line[:1] == "|"]
    assert cells[0][:6] == ["keys", "value bytes", "rows", "rows/s, inserts", "rows/s, pages", "ratio"]
    assert [row[:3] for row in cells[2:4]] == [["int64", "10", "3,000"], ["int64", "100", "3,000"]]
    assert cells[-1][0] == "text"
    runs = json.loads(report.read_text())
    assert [one["what"] for one in runs] == ["inserts", "pages"] * (len(cells) - 2)
    assert all(one["rows"] == 3000 and one["build_seconds"] > 0 and one["seal_seconds"] > 0 for one in runs)
    for inserts, pages in zip(runs[::2], runs[1::2], strict=True):
        assert inserts["file_bytes"] != pages["file_bytes"], "both ways were taken"
    assert list(data.iterdir()) == []
