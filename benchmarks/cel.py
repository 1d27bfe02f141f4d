"""What sharding by a CEL expression costs: such writes, and the hash write of the same rows to as many shards.

Each scheduler has one process, in which all are warm and take turns. No write finds what an earlier one has compiled or
remembered of its expression. No claims here: those are in docs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from arguments import add_run, add_size, chosen, parser
from jobs import Job, Measurement, Sharding, best, run
from measuring import SCHEDULERS
from report import CLUSTER, machine, markdown, mebibytes, write_json
from rows import REGIONS

from shardyfusion import CelColumn, CelType

ID, TIER = CelColumn("id", CelType.INT), CelColumn("tier", CelType.INT)
REGION, SEGMENT = CelColumn("region"), CelColumn("segment")

SHARDINGS: Mapping[int, list[Sharding]] = {
    8: [
        Sharding(expression="id % 8", columns=(ID,), num_dbs=8),
        Sharding(expression="id % 8", columns=(ID,)),
        Sharding(expression="region", columns=(REGION,), routing_values=REGIONS),
        Sharding(
            expression='[region, segment].exists(s, s == "eu") ? "eu" : region',
            columns=(REGION, SEGMENT),
            routing_values=REGIONS,
        ),
    ],
    16: [Sharding(expression="shard_hash(id) % 16u", columns=(ID,), num_dbs=16)],
    32: [
        Sharding(expression='region + ":" + string(tier)', columns=(REGION, TIER), infer_routing_values_from_data=True)
    ],
}
"""By the number of shards that each comes to. With the list and its macro, one is outside of what is evaluated in
columns; its columns have 1,000 distinct pairs of values."""


def plan_jobs(args: argparse.Namespace) -> list[list[Job]]:
    """For every scheduler one group, so that all of its writes take turns."""
    size = {"rows": args.rows, "files": args.files, "data": args.data}
    return [
        [
            Job(what="sqlite", kind="orders", scheduler=name, shards=shards, sharding=sharding, **size)
            for shards, shardings in SHARDINGS.items()
            for sharding in (None, *shardings)
        ]
        for name in chosen(args.scheduler, SCHEDULERS)
    ]


def results_table(results: Mapping[Job, Measurement]) -> str:
    head = ["scheduler", "sharded by", "mode", "path", "shards", "rows", "seconds", "of that plan", "rows/s"]
    lines = [[*head, "peak memory", "time / hash"]]
    by_hash = {(job.scheduler, job.shards): one.seconds for job, one in results.items() if not job.sharding}
    for job, one in results.items():
        by, mode = (f"`{job.sharding.expression}`", job.sharding.mode) if job.sharding else ("hash of the key", "")
        lines.append([job.scheduler, by, mode, one.routing, f"{job.shards}", f"{job.rows:,}", f"{one.seconds:.2f}"])
        lines[-1] += [f"{one.phases['plan']:.2f}", f"{one.rows_per_second:,.0f}", mebibytes(one.peak_bytes)]
        lines[-1].append(f"{one.seconds / by_hash[job.scheduler, job.shards]:.2f}")
    return markdown(lines, words=4)


def main() -> None:
    arguments = parser(__doc__)
    add_size(arguments, rows=1_000_000, shards=None)
    add_run(arguments)
    args = arguments.parse_args()
    where = machine()
    runs = run(plan_jobs(args), args.repeat)
    write_json(args.json, runs)
    print(
        f"{where} SQLite; int64 key, 100 bytes; {args.files} Parquet files to a local directory; best of "
        f"{args.repeat}, in turns in one warm process. {CLUSTER}.\n\n{results_table(best(runs))}"
    )


if __name__ == "__main__":
    main()
