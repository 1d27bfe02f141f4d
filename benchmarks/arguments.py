"""The command-line arguments that several benchmarks take."""

from __future__ import annotations

import argparse
import atexit
import tempfile
from collections.abc import Iterable
from pathlib import Path

from measuring import SCHEDULERS
from places import remove_what_was_written


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Described by the first line of a module's docstring."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def add_size(to: argparse.ArgumentParser, *, rows: int = 4_000_000, files: int = 16, shards: int | None = 8) -> None:
    to.add_argument("--rows", type=int, default=rows, help="rows for SQLite (default: %(default)s)")
    to.add_argument("--files", type=int, default=files, help="Parquet files of the input (default: %(default)s)")
    if shards:
        to.add_argument("--shards", type=int, default=shards, help="shards to build (default: %(default)s)")


def add_run(to: argparse.ArgumentParser, *, repeat: int = 5, schedulers: bool = True) -> None:
    if schedulers:
        to.add_argument("--scheduler", choices=[*SCHEDULERS, "all"], default="all")
    to.add_argument("--repeat", type=_positive, default=repeat, help="best of so many runs (default: %(default)s)")
    add_places(to)


def add_places(to: argparse.ArgumentParser) -> None:
    # As text, argparse gives it to _directory like one that was asked for.
    to.add_argument("--data", type=_directory, default=str(Path(tempfile.gettempdir()) / "shardyfusion-benchmark"),
                    help="where input is kept and output is written (default: %(default)s)")  # fmt: skip
    to.add_argument("--json", type=Path, metavar="FILE", help="also write every single run to FILE")


def chosen(asked: str, names: Iterable[str]) -> list[str]:
    return list(names) if asked == "all" else [asked]


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _directory(text: str) -> Path:
    """Made if need be; what benchmarks write there goes away with the process that was asked for them."""
    directory = Path(text).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    atexit.register(remove_what_was_written, directory)
    return directory
