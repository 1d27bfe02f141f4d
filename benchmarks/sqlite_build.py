"""How fast one SQLite shard is built from sorted rows: as pages, and by SQLite's own inserts; prints a Markdown table.

The two build the same rows in turns, through the adapter that shard tasks use, into a local directory. No claims here.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from report import machine, markdown, write_json

from shardyfusion import SqliteFactory
from shardyfusion.shard_contract import ShardTarget
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.writer.shard import BATCH_ROWS

PAGES, INSERTS = "pages", "inserts"
MOST_BYTES = 400_000_000
"""Cases with larger rows have fewer of them."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows of one shape: `value_bytes` are the least and the most."""

    keys: str
    value_bytes: tuple[int, int]

    @property
    def name(self) -> str:
        least, most = self.value_bytes
        return f"{least}" if least == most else f"{least} to {most}"

    def rows(self, most: int) -> int:
        return max(1, min(most, MOST_BYTES // max(self.value_bytes)))


CASES = [
    Case(keys=keys, value_bytes=value_bytes)
    for keys in ("int64", "text")
    for value_bytes in ((10, 10), (100, 100), (50, 150), (10, 1000), (4096, 4096), (2000, 6000))
]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """`build_seconds` until all rows were given to the adapter, `seal_seconds` for what follows until it is stored."""

    what: str
    keys: str
    value_bytes: str
    rows: int
    build_seconds: float
    seal_seconds: float
    cpu_seconds: float
    file_bytes: int


def make_rows(case: Case, rows: int) -> pa.RecordBatch:
    """Sorted unique keys, random bytes as values, from a fixed seed."""
    rng = np.random.default_rng(7)
    numbers = np.cumsum(rng.integers(1, 1000, rows, dtype=np.uint64))
    if case.keys == "int64":
        keys = strings(np.full(rows, 8), numbers.astype(">u8").tobytes())
    else:
        text = sorted(f"user-{number}" for number in numbers.tolist())
        keys = pa.array([key.encode() for key in text], pa.large_binary())
    least, most = case.value_bytes
    lengths = rng.integers(least, most + 1, rows)
    values = strings(lengths, rng.bytes(int(lengths.sum())))
    return pa.record_batch([keys, values], names=["key", "value"])


def strings(lengths: np.ndarray, data: bytes) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pa.Array.from_buffers(pa.large_binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def batches(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]


def measure(what: str, case: Case, rows: pa.RecordBatch, page_size: int, data: Path) -> Measurement:
    directory = Path(tempfile.mkdtemp(prefix="build-", dir=data))
    address = StoreAddress.parse(directory)
    scratch = directory / "scratch"
    scratch.mkdir()
    target = ShardTarget(db_id=0, store=open_store(address), address=address, directory="shard", scratch=scratch)
    try:
        started, cpu = time.perf_counter(), time.process_time()
        with SqliteFactory(page_size=page_size).open(target) as adapter:
            if what == INSERTS:
                adapter.write_batch([])  # from then on SQLite writes
            for batch in batches(rows):
                adapter.write_arrow(batch)
            built = time.perf_counter()
            sealed = adapter.seal()
        ended = time.perf_counter()
        cpu = time.process_time() - cpu
        check(directory / "shard" / sealed.objects[0].path, rows)
    finally:
        shutil.rmtree(directory)
    return Measurement(
        what=what,
        keys=case.keys,
        value_bytes=case.name,
        rows=len(rows),
        build_seconds=built - started,
        seal_seconds=ended - built,
        cpu_seconds=cpu,
        file_bytes=sealed.db_bytes,
    )


def check(path: Path, rows: pa.RecordBatch) -> None:
    """SQLite finds the file sound, with all rows; some of them are compared."""
    connection = sqlite3.connect(path)
    try:
        (verdict,) = connection.execute("PRAGMA quick_check").fetchone()
        (stored,) = connection.execute("SELECT count(*) FROM kv").fetchone()
        for number in np.linspace(0, len(rows) - 1, 100).astype(int).tolist():
            key, value = rows["key"][number].as_py(), rows["value"][number].as_py()
            if connection.execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchone() != (value,):
                sys.exit(f"{path} is wrong: it does not hold row {number} as it was written")
    finally:
        connection.close()
    if verdict != "ok" or stored != len(rows):
        sys.exit(f"{path} is wrong: {verdict}, {stored} rows of {len(rows)}")


def results_table(runs: list[Measurement]) -> str:
    """The fastest run of each: what disturbs a run only makes it slower."""
    lines = [["keys", "value bytes", "rows", "rows/s, inserts", "rows/s, pages", "ratio"]]
    lines[0] += ["seal, inserts", "seal, pages", "MB, inserts", "MB, pages"]
    for shape in dict.fromkeys((one.keys, one.value_bytes, one.rows) for one in runs):
        of = [one for one in runs if (one.keys, one.value_bytes, one.rows) == shape]
        kinds = [[one for one in of if one.what == what] for what in (INSERTS, PAGES)]
        build = [min(one.build_seconds for one in kind) for kind in kinds]
        seal = [min(one.seal_seconds for one in kind) for kind in kinds]
        lines.append([shape[0], shape[1], f"{shape[2]:,}"])
        lines[-1] += [f"{shape[2] / seconds:,.0f}" for seconds in build] + [f"{build[0] / build[1]:.1f}"]
        lines[-1] += [f"{seconds:.2f} s" for seconds in seal] + [f"{kind[0].file_bytes / 1e6:,.1f}" for kind in kinds]
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows at most (default: %(default)s)")
    parser.add_argument("--page-size", type=int, default=4096, help="bytes of a page (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="fastest of so many runs (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "shardyfusion-benchmark",
                        help="where files are built (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single run to FILE")
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    where = machine()
    runs: list[Measurement] = []
    for case in CASES:
        rows = make_rows(case, case.rows(args.rows))
        both = (INSERTS, PAGES) * args.repeat  # in turns: a slow minute of the machine meets both
        runs += [measure(what, case, rows, args.page_size, args.data) for what in both]
        print(f"{case.keys} {case.name}", file=sys.stderr, flush=True)
    print(f"{where} One thread, pages of {args.page_size} bytes, fastest of {args.repeat}.\n\n{results_table(runs)}")
    write_json(args.json, runs)


if __name__ == "__main__":
    main()
