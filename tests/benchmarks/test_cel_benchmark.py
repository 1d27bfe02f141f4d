"""The benchmark writes by every expression and by hash, checks what they wrote, and prints ratios. They are not asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.scripts import column, run_script

JOBS = [
    ["hash of the key", "", "hash", "8"],
    ["`id % 8`", "direct", "cel, vectorised", "8"],
    ["`id % 8`", "direct, no num_dbs", "cel, vectorised", "8"],
    ["`region`", "categorical", "cel, vectorised", "8"],
    ['`[region, segment].exists(s, s == "eu") ? "eu" : region`', "categorical", "cel, memoised", "8"],
    ["hash of the key", "", "hash", "16"],
    ["`shard_hash(id) % 16u`", "direct", "cel, vectorised", "16"],
    ["hash of the key", "", "hash", "32"],
    ['`region + ":" + string(tier)`', "inferred", "cel, vectorised", "32"],
]
"""What is measured on each scheduler, in this order: the expression, its mode, its path, the shards."""


def test_small_run_compares_every_expression_with_the_hash_of_as_many_shards(tmp_path: Path) -> None:
    data, report = tmp_path / "data", tmp_path / "runs.json"
    size = ["--rows", 6_000, "--files", 3, "--repeat", 2, "--scheduler", "threads"]
    (results,) = run_script("cel.py", *size, "--data", data, "--json", report)
    assert [row[:6] for row in results[1:]] == [["threads", *job, "6,000"] for job in JOBS]

    runs = json.loads(report.read_text())
    assert [run["routing"] for run in runs[: len(JOBS)]] == [job[2] for job in JOBS]
    fastest = [min(first["seconds"], second["seconds"]) for first, second in zip(runs, reversed(runs), strict=True)]
    by_hash = {job[3]: seconds for job, seconds in zip(JOBS, fastest, strict=False) if job[2] == "hash"}
    ratios = [seconds / by_hash[job[3]] for job, seconds in zip(JOBS, fastest, strict=False)]
    assert list(map(float, column(results, "time / hash"))) == pytest.approx(ratios, abs=0.006)
    assert [found.name for found in data.iterdir()] == ["rows=6000-files=3-orders"]
