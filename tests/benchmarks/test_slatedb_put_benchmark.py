"""The benchmark writes with both kinds of calls, checks what they wrote, and prints their table. No speed is asserted."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.scripts import column, run_script


def test_small_run_measures_both_kinds_of_calls_at_two_sizes(tmp_path: Path) -> None:
    report = tmp_path / "runs.json"
    size = ["--rows", 24_000, "--files", 3, "--shards", 2, "--repeat", 1]
    (results,) = run_script("slatedb_put.py", *size, "--data", tmp_path / "data", "--json", report)
    assert results[0] == ["binding", "scheduler", "rows", "seconds", "rows/s", "peak memory", "times as fast"]
    kinds = [[kind, "cluster", rows] for rows in ("6,000", "24,000") for kind in ("shipped", "direct")]
    assert [row[:3] for row in results[1:]] == kinds
    assert column(results, "times as fast")[::2] == ["1.00", "1.00"]
    runs = json.loads(report.read_text())
    assert sorted((one["job"]["what"], one["job"]["rows"]) for one in runs) == [
        ("direct", 6_000),
        ("direct", 24_000),
        ("shipped", 6_000),
        ("shipped", 24_000),
    ]
    assert all(one["seconds"] > 0 and one["peak_bytes"] > 0 for one in runs)
