"""The benchmark measures every size and number of shards, and draws what it prints."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from tests.benchmarks.scripts import column, run_script

SVG = "{http://www.w3.org/2000/svg}"


def test_small_run_prints_two_tables_and_draws_them(tmp_path: Path) -> None:
    picture = tmp_path / "scaling.svg"
    size = ["--sizes", "2000,4000,8000", "--rows", 4000, "--shards", "2,4", "--file-rows", 2000, "--repeat", 1]
    where = ["--scheduler", "threads", "--data", tmp_path / "data", "--svg", picture]
    by_rows, by_shards = run_script("scaling.py", *size, *where)
    assert [row[:4] for row in by_rows[1:]] == [
        ["threads", "2,000", "1", "2"],
        ["threads", "4,000", "2", "2"],
        ["threads", "8,000", "4", "2"],
    ]
    assert [row[:4] for row in by_shards[1:]] == [["threads", "4,000", "2", "2"], ["threads", "4,000", "2", "4"]]
    for table in (by_rows, by_shards):
        per_row = [float(cell) for cell in column(table, "µs per row")]
        growth = column(table, "growth")
        assert growth[0] == ""
        for grown, cell in zip(per_row[1:], growth[1:], strict=True):
            assert abs(float(cell.removesuffix(" %")) - 100 * (grown / per_row[0] - 1)) < 0.5

    drawn = ET.parse(picture).getroot()
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert {"2 shards", "4k rows", "µs per row", "rows", "shards", "2k", "4k", "8k", "2", "4", "threads"} <= set(texts)
    assert len(list(drawn.iter(f"{SVG}circle"))) == 3 + 2 + 1  # points, and the legend's
    assert "prefers-color-scheme: dark" in picture.read_text()
