"""The benchmark runs, checks what it wrote, and prints its tables. How fast it was is not asserted."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.scripts import column, run_script

JOBS = [
    ["to_parquet", "int64 key, 100 bytes", "12,000"],
    ["sqlite", "int64 key, 100 bytes", "12,000"],
    ["to_parquet, tasks", "int64 key, 100 bytes", "12,000"],
    ["sqlite", "text key of 15, 100 bytes", "12,000"],
    ["sqlite", "int64 key, JSON of 4 columns", "12,000"],
    ["to_parquet", "int64 key, 10 bytes", "12,000"],
    ["sqlite", "int64 key, 10 bytes", "12,000"],
    ["to_parquet", "int64 key, 4 KiB", "300"],
    ["sqlite", "int64 key, 4 KiB", "300"],
    ["to_parquet", "int64 key, 100 bytes", "4,000"],
    ["slatedb", "int64 key, 100 bytes", "4,000"],
]
"""What is measured on each scheduler, in this order: what, the rows, how many."""


def test_small_run_prints_every_case_and_leaves_only_the_input(tmp_path: Path) -> None:
    data, report = tmp_path / "data", tmp_path / "runs.json"
    size = ["--rows", 12_000, "--slatedb-rows", 4_000, "--files", 3, "--shards", 2, "--repeat", 1]
    results, *stages = run_script("write.py", *size, "--data", data, "--json", report)
    assert [row[:4] for row in results[1:]] == [[name, *job] for name in ("threads", "cluster") for job in JOBS]
    assert all(seconds > 0 for seconds in map(float, column(results, "seconds")))
    # Ratios stand where there is something to compare with, and only there.
    against = {name: column(results, name) for name in results[0][-3:]}
    compared = {name: [at for at, cell in enumerate(cells[: len(JOBS)]) if cell] for name, cells in against.items()}
    assert compared == {
        "time / to_parquet": [0, 1, 2, 5, 6, 7, 8, 9, 10],
        "time / to_parquet, tasks": [0, 1, 2],
        "time / int keys": [3],
    }
    assert [against["time / to_parquet"][at] for at in (0, 5, 7, 9)] == ["1.00"] * 4

    cases = ["sqlite, int", "sqlite, text", "sqlite, json", "sqlite, small", "sqlite, large", "slatedb"]
    assert [table[0][1:] for table in stages] == [cases, cases]
    for table in stages:
        seconds = {row[0]: [float(cell or 0) for cell in row[1:]] for row in table[1:]}
        tasks = [cells for name, cells in seconds.items() if name.startswith(("encode: ", "shard: "))]
        total = [sum(case) for case in zip(*tasks, seconds["reading, moving rows, waiting"], strict=True)]
        assert len(tasks) >= 8
        assert all(abs(a - b) < 0.1 for a, b in zip(total, seconds["sum: build x 2"], strict=True))

    runs = json.loads(report.read_text())
    assert [run["job"]["what"] for run in runs] == 2 * [job[0] for job in JOBS]
    assert all(run["seconds"] > 0 and run["peak_bytes"] >= run["before_bytes"] > 0 for run in runs)
    assert sorted(found.name for found in data.iterdir()) == [
        "rows=12000-files=3-columns",
        "rows=12000-files=3-text-keys",
        "rows=12000-files=3-value=10",
        "rows=12000-files=3-value=100",
        "rows=300-files=3-value=4096",
        "rows=4000-files=3-value=100",
    ]
