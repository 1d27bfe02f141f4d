"""What the row digests of a write cost: `write_hash_sharded` with them, and with nothing in their place.

Like `write.py`, which it takes its rows from: a process of its own for each measurement, the two kinds in turn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from write import WARM_UP_ROWS, Job, Measurement, circumstances, markdown, measure, median, parquet_files, parse_shared

from shardyfusion.writer import conservation

WITH, WITHOUT = "with digests", "without"


def take_digests_away() -> None:
    """In this process every digest is 0 from now on, so that all of them agree and none is computed."""

    def zeros(hashes: Any, shards: Any, num_dbs: int) -> Any:
        return np.zeros(num_dbs, dtype=np.uint64)

    conservation.row_hashes = lambda keys, values: None
    conservation.digest_by_shard = zeros
    conservation.digest_total = lambda hashes: 0


def measure_kind(kind: str, job: Job) -> Measurement:
    """Runs in a fresh process."""
    if kind == WITHOUT:
        take_digests_away()
    return replace(measure(job), what=kind)


def run(kind: str, job: Job) -> Measurement:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        one = pool.submit(measure_kind, kind, job).result()
    print(f"{kind:<12} {one.seconds:8.2f} s {one.peak_bytes / 2**20:8,.0f} MiB", file=sys.stderr, flush=True)
    return one


def results_table(results: list[Measurement]) -> str:
    without = next(one.seconds for one in results if one.what == WITHOUT)
    lines = [["what", "scheduler", "rows", "seconds", "rows/s", "peak memory", "cost"]]
    lines += [
        [
            one.what,
            one.scheduler,
            f"{one.rows:,}",
            f"{one.seconds:.2f}",
            f"{one.rows / one.seconds:,.0f}",
            f"{one.peak_bytes / 2**20:,.0f} MiB",
            "" if one.what == WITHOUT else f"{100 * (one.seconds / without - 1):.1f} %",
        ]
        for one in results
    ]
    return markdown(lines)


def main() -> None:
    args = parse_shared(argparse.ArgumentParser(description=__doc__.splitlines()[0]), repeat=3)
    args.data.mkdir(parents=True, exist_ok=True)
    job = Job(what="sqlite", scheduler="threads", rows=args.rows, files=args.files, shards=args.shards, data=args.data)
    where = circumstances(args)
    for rows in sorted({WARM_UP_ROWS, args.rows}):
        parquet_files(args.data, rows, args.files)
    # The order changes from round to round: what the first of a pair leaves behind meets each kind equally often.
    order = [(WITH, WITHOUT), (WITHOUT, WITH)]
    runs = [run(kind, job) for number in range(args.repeat) for kind in order[number % 2]]
    results = [median([one for one in runs if one.what == kind]) for kind in (WITHOUT, WITH)]
    print(f"{where}\n\n{results_table(results)}")
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in runs], indent=2) + "\n")


if __name__ == "__main__":
    main()
