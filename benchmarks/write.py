"""How fast `write_hash_sharded` is, against `to_parquet` after a Dask shuffle of the same rows; prints Markdown tables.

Each scheduler has one process; in it both sides are warm and take turns. No claims here: those are in docs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping

from arguments import add_run, add_size, chosen, parser
from jobs import BASELINE, BASELINE_TASKS, Job, Measurement, best, run
from measuring import SCHEDULERS, WORKERS
from report import CLUSTER, machine, markdown, mebibytes, write_json
from rows import KINDS

CASES = ("keys", "json", "small", "large", "slatedb")


def plan_jobs(args: argparse.Namespace) -> list[list[Job]]:
    """For every scheduler and case the jobs that take turns: those that are compared with each other."""
    groups: dict[str, list[tuple[str, str, int]]] = {
        "keys": [
            (BASELINE, "int", args.rows),
            ("sqlite", "int", args.rows),
            (BASELINE_TASKS, "int", args.rows),
            ("sqlite", "text", args.rows),
        ],
        "json": [("sqlite", "json", args.rows)],
        "small": [(BASELINE, "small", args.rows), ("sqlite", "small", args.rows)],
        "large": [
            (what, "large", max(args.files, args.rows // KINDS["large"].divisor)) for what in (BASELINE, "sqlite")
        ],
        "slatedb": [(BASELINE, "int", args.slatedb_rows), ("slatedb", "int", args.slatedb_rows)],
    }
    return [
        [
            Job(what=what, kind=kind, scheduler=name, rows=rows, files=args.files, shards=args.shards, data=args.data)
            for what, kind, rows in groups[case]
        ]
        for name in chosen(args.scheduler, SCHEDULERS)
        for case in chosen(args.case, CASES)
    ]


# -- tables -----------------------------------------------------------------------------------------------------------


def results_table(results: Mapping[Job, Measurement]) -> str:
    head = ["scheduler", "what", "rows are", "rows", "seconds", "rows/s", "peak memory", "at start"]
    lines = [[*head, f"time / {BASELINE}", f"time / {BASELINE_TASKS}", "time / int keys"]]
    for job, one in results.items():
        ratios = [
            _ratio(one, _same_rows(results, job, BASELINE)),
            _ratio(one, _same_rows(results, job, BASELINE_TASKS)),
            _ratio(one, _same_rows(results, job, "sqlite", kind="int") if job.kind == "text" else None),
        ]
        figures = [f"{job.rows:,}", f"{one.seconds:.2f}", f"{one.rows_per_second:,.0f}"]
        memory = [mebibytes(one.peak_bytes), mebibytes(one.before_bytes)]
        lines.append([job.scheduler, job.what, KINDS[job.kind].words, *figures, *memory, *ratios])
    return markdown(lines, words=3)


def _same_rows(results: Mapping[Job, Measurement], job: Job, what: str, kind: str | None = None) -> Measurement | None:
    """The measurement of `what` that a job is compared with."""
    same = {"scheduler": job.scheduler, "rows": job.rows, "kind": kind or job.kind, "what": what}
    return next((one for other, one in results.items() if all(getattr(other, k) == v for k, v in same.items())), None)


def _ratio(one: Measurement, other: Measurement | None) -> str:
    return f"{one.seconds / other.seconds:.2f}" if other else ""


def stages_table(results: Iterable[Measurement]) -> str:
    """Where the time of our own writes went, one column each."""
    ours = [one for one in results if one.phases]
    names = sorted({name: None for one in ours for name in one.stages}, key=lambda name: name.split(":")[0])
    lines = [["seconds of both workers", *(_column(one.job) for one in ours)]]
    lines += [[name, *(f"{one.stages[name]:.2f}" if name in one.stages else "" for one in ours)] for name in names]
    lines.append(["reading, moving rows, waiting", *(f"{_rest(one):.2f}" for one in ours)])
    lines.append([f"sum: build x {WORKERS}", *(f"{one.phases['build'] * WORKERS:.2f}" for one in ours)])
    lines += [
        [f"wall clock: {phase}", *(f"{one.phases[phase]:.2f}" for one in ours)]
        for phase in ("plan", "build", "publish", "sweep", "total")
    ]
    return markdown(lines, words=1)


def _column(job: Job) -> str:
    return job.what if job.what != "sqlite" else f"{job.what}, {job.kind}"


def _rest(one: Measurement) -> float:
    return one.phases["build"] * WORKERS - sum(one.stages.values())


# -- running ----------------------------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--case", choices=[*CASES, "all"], default="all", help="what to measure (default: all)")
    arguments.add_argument(
        "--slatedb-rows", type=int, default=1_000_000, help="rows for SlateDB (default: %(default)s)"
    )
    add_size(arguments)
    add_run(arguments)
    return arguments.parse_args()


def main() -> None:
    args = parse_args()
    where, groups = machine(), plan_jobs(args)
    runs = run(groups, args.repeat)
    write_json(args.json, runs)
    results = best(runs)
    print(
        f"{where} {args.files} Parquet files to {args.shards} shards in a local directory; best of {args.repeat}, in "
        f"turns in one warm process. {CLUSTER}.\n\n{results_table(results)}"
    )
    for name in dict.fromkeys(job.scheduler for job in results):
        one_column_each = stages_table(one for job, one in results.items() if job.scheduler == name)
        print(f"\nWhere the time went, {name}:\n\n{one_column_each}")


if __name__ == "__main__":
    main()
