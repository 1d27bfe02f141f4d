"""Running a benchmark as its user does, and reading the tables that it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

Table = list[list[str]]


def run_script(name: str, *arguments: object, timeout: float = 240) -> list[Table]:
    """The cells of each table that it prints, heads first and without the line below them."""
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    return tables(ran.stdout)


def tables(printed: str) -> list[Table]:
    found: list[Table] = []
    inside = False
    for line in printed.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            found[-1].append([cell.strip() for cell in line.split("|")[1:-1]])
        inside = line.startswith("|")
    for table in found:
        rule = table.pop(1)
        assert all(set(cell) <= set("-:") for cell in rule), rule
    return found


def column(table: Table, name: str) -> list[str]:
    at = table[0].index(name)
    return [row[at] for row in table[1:]]
