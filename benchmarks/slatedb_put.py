"""What direct calls of SlateDB's functions gain: the same write with them, and with its Python binding as shipped.

At `--rows` and at a quarter of them, a process of its own for each measurement after a warm-up, the two kinds in turn.
No claims here: those are in docs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from arguments import add_run, add_size, parser
from distributed import get_client
from jobs import BACKENDS, Job, Measurement, best, rounds
from measuring import SCHEDULERS, in_fresh_process, scheduler
from report import CLUSTER, machine, markdown, mebibytes, write_json

from shardyfusion import SlateDbFactory
from shardyfusion.slatedb_adapter.direct_calls import direct_calls

DIRECT, SHIPPED = "direct", "shipped"
SETTINGS = {DIRECT: "auto", SHIPPED: "shipped"}


def are_direct() -> bool:
    return direct_calls() is not None


def measure_kind(kind: str, job: Job) -> Measurement:
    """Runs in a fresh process. A fallback would make the two kinds the same."""
    BACKENDS["slatedb"] = partial(SlateDbFactory, binding=SETTINGS[kind])
    with scheduler(job.scheduler, job.data):
        (one,) = rounds([job], repeat=1)
        if kind == DIRECT:
            found = get_client().run(are_direct).values() if job.scheduler == "cluster" else [are_direct()]
            if not all(found):
                sys.exit("direct calls are not possible here: the log says why")
    return replace(one, job=replace(job, what=kind))


def results_table(results: Mapping[Job, Measurement]) -> str:
    shipped = {job.rows: one.seconds for job, one in results.items() if job.what == SHIPPED}
    lines = [["binding", "scheduler", "rows", "seconds", "rows/s", "peak memory", "times as fast"]]
    for job, one in sorted(results.items(), key=lambda item: (item[0].rows, item[0].what == DIRECT)):
        lines.append([job.what, job.scheduler, f"{job.rows:,}", f"{one.seconds:.2f}", f"{one.rows_per_second:,.0f}"])
        lines[-1] += [mebibytes(one.peak_bytes), f"{shipped[job.rows] / one.seconds:.2f}"]
    return markdown(lines)


def parse_args() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--scheduler", choices=SCHEDULERS, default="cluster", help="(default: %(default)s)")
    add_size(arguments)
    add_run(arguments, repeat=3, schedulers=False)
    return arguments.parse_args()


def main() -> None:
    args = parse_args()
    size = {"files": args.files, "shards": args.shards, "data": args.data}
    jobs = [Job(what="slatedb", scheduler=args.scheduler, rows=rows, **size) for rows in (args.rows // 4, args.rows)]
    where = machine()
    # The order changes from round to round: what the first of a pair leaves behind meets each kind equally often.
    order = [(DIRECT, SHIPPED), (SHIPPED, DIRECT)]
    runs = [
        in_fresh_process(measure_kind, kind, job)
        for number in range(args.repeat)
        for job in jobs
        for kind in order[number % 2]
    ]
    write_json(args.json, runs)
    print(
        f"{where} SlateDB; int64 key, 100 bytes; {args.files} Parquet files to {args.shards} shards in a local "
        f"directory; best of {args.repeat}, in turns. {CLUSTER}.\n\n{results_table(best(runs))}"
    )


if __name__ == "__main__":
    main()
