"""The benchmark runs, checks what it wrote, and prints its tables. How fast it was is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "write.py"


def test_small_run_prints_tables_and_leaves_only_the_input(tmp_path: Path):
    data, report = tmp_path / "data", tmp_path / "runs.json"
    command = [sys.executable, SCRIPT, "--rows", "30000", "--files", "3", "--shards", "2"]
    command += ["--backend", "sqlite", "--scheduler", "threads", "--data", data, "--json", report]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ran.stdout.splitlines() if line[:1] == "|"]
    assert cells[0] == ["scheduler", "what", "rows", "seconds", "rows/s", "peak memory", "time / to_parquet"]
    assert [row[:3] for row in cells[2:4]] == [["threads", "to_parquet", "30,000"], ["threads", "sqlite", "30,000"]]
    assert cells[2][-1] == "1.00"
    assert [row[:2] for row in cells[4:]] == [["scheduler", "what"], ["---------", "------"], ["threads", "sqlite"]]
    runs = json.loads(report.read_text())
    assert [one["what"] for one in runs] == ["to_parquet", "sqlite"]
    assert all(one["rows"] == 30_000 and one["seconds"] > 0 and one["peak_bytes"] > 0 for one in runs)
    assert sorted(found.name for found in data.iterdir()) == [
        "rows=20000-files=3-value=100",
        "rows=30000-files=3-value=100",
    ]
