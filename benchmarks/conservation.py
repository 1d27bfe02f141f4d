"""What the row digests of a write cost: `write_hash_sharded` with them, and with nothing in their place.

A process of its own for each measurement, after a warm-up; the two kinds in turn. No claims here: those are in docs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from arguments import add_run, add_size, parser
from jobs import Job, Measurement, best, measure_groups
from measuring import in_fresh_process
from report import machine, markdown, mebibytes, percent_more, write_json

from shardyfusion.writer import conservation

WITH, WITHOUT = "with digests", "without"


def take_digests_away() -> None:
    """In this process every digest is 0 from now on, so that all of them agree and none is computed."""

    def zeros(hashes: Any, shards: Any, num_dbs: int) -> Any:
        return np.zeros(num_dbs, dtype=np.uint64)

    conservation.row_hashes = lambda keys, values: None
    conservation.digest_by_shard = zeros
    conservation.digest_total = lambda hashes: 0


def digests_are_taken() -> bool:
    row = pa.array([b"row"], pa.large_binary())
    return conservation.row_sum(row, row).digest != 0


def measure_kind(kind: str, job: Job) -> Measurement:
    """Runs in a fresh process."""
    if kind == WITHOUT:
        take_digests_away()
    if digests_are_taken() != (kind == WITH):
        sys.exit(f"this is no write {kind}: has the library got another way to take them?")
    (one,) = measure_groups([[job]], repeat=1)
    return replace(one, job=replace(job, what=kind))


def results_table(results: Mapping[Job, Measurement]) -> str:
    without = next(one.seconds for job, one in results.items() if job.what == WITHOUT)
    lines = [["what", "scheduler", "rows", "seconds", "rows/s", "peak memory", "cost"]]
    for job, one in sorted(results.items(), key=lambda item: item[0].what == WITH):
        lines.append([job.what, job.scheduler, f"{job.rows:,}", f"{one.seconds:.2f}", f"{one.rows_per_second:,.0f}"])
        lines[-1] += [mebibytes(one.peak_bytes), "" if job.what == WITHOUT else percent_more(one.seconds, without)]
    return markdown(lines)


def main() -> None:
    arguments = parser(__doc__)
    add_size(arguments)
    add_run(arguments, schedulers=False)
    args = arguments.parse_args()
    where = machine()
    job = Job(what="sqlite", scheduler="threads", rows=args.rows, files=args.files, shards=args.shards, data=args.data)
    # The order changes from round to round: what the first of a pair leaves behind meets each kind equally often.
    order = [(WITH, WITHOUT), (WITHOUT, WITH)]
    runs = [in_fresh_process(measure_kind, kind, job) for number in range(args.repeat) for kind in order[number % 2]]
    write_json(args.json, runs)
    print(
        f"{where} SQLite; int64 key, 100 bytes; {args.files} Parquet files to {args.shards} shards in a local "
        f"directory; best of {args.repeat}, in turns.\n\n{results_table(best(runs))}"
    )


if __name__ == "__main__":
    main()
