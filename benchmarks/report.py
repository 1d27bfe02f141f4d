"""How results are told: Markdown tables, and what they were measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("dask", "pyarrow", "pandas", "apsw", "slatedb", "shardyfusion")
CLUSTER = "`cluster` is `LocalCluster` with 2 processes of 1 thread, `threads` is Dask's threaded scheduler with 2"


def markdown(lines: Sequence[Sequence[str]], words: int = 2) -> str:
    """The first line is the head. The first `words` columns are words; the others are figures, aligned right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        [cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    rows.insert(1, ["-" * w if i < words else "-" * (w - 1) + ":" for i, w in enumerate(widths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine() -> str:
    """In one sentence. Call it before the first measurement: it tells the load that was there already."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{os.cpu_count()} CPUs (load {os.getloadavg()[0]:.1f} before the start), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, {versions}."
    )


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def percent_more(value: float, than: float) -> str:
    return f"{100 * (value / than - 1):+.1f} %"


def write_json(path: Path | None, records: Iterable[Any]) -> None:
    """Every single run, if it was asked for. `records` are dataclasses."""
    if path:
        path.write_text(json.dumps([asdict(one) for one in records], indent=2, default=str) + "\n")
