"""What S3 costs a SQLite write: the same to a local S3 server and to a local directory; prints a Markdown table.

In turns, in one warm process for each scheduler. The server is `rclone serve s3`, which stores in a directory beside
the other. First it shares the processors with the write, so its own time is told as well; then, where there are two, it
has one to itself, and all writes have the others. No claims here: those are in docs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import psutil
from arguments import add_run, add_size, chosen, parser
from jobs import Job, Measurement, best, run
from measuring import SCHEDULERS
from places import rclone_bucket
from report import CLUSTER, machine, markdown, mebibytes, write_json


def results_table(results: Mapping[Job, Measurement]) -> str:
    local = {job.scheduler: one.seconds for job, one in results.items() if not job.bucket}
    head = ["scheduler", "to", "rows", "seconds", "rows/s", "peak memory", "uploads", "server's CPU", "time / local"]
    lines = [head]
    for job, one in results.items():
        lines.append([job.scheduler, "S3" if job.bucket else "local", f"{job.rows:,}", f"{one.seconds:.2f}"])
        lines[-1] += [f"{one.rows_per_second:,.0f}", mebibytes(one.peak_bytes), f"{one.stages['shard: upload']:.2f} s"]
        lines[-1] += [f"{one.server_seconds:.2f} s" if job.bucket else "", f"{one.seconds / local[job.scheduler]:.2f}"]
    return markdown(lines)


@contextlib.contextmanager
def apart(server_pid: int) -> Iterator[None]:
    """The server on the last processor, and this process and those that it starts on the others."""
    every = sorted(os.sched_getaffinity(0))
    server = psutil.Process(server_pid)
    server.cpu_affinity(every[-1:])
    os.sched_setaffinity(0, every[:-1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)
        server.cpu_affinity(every)


def main() -> None:
    arguments = parser(__doc__)
    add_size(arguments)
    add_run(arguments)
    args = arguments.parse_args()
    where, schedulers = machine(), chosen(args.scheduler, SCHEDULERS)
    size = {"rows": args.rows, "files": args.files, "shards": args.shards, "data": args.data}
    with rclone_bucket(args.data) as bucket:
        groups = [
            [Job(what="sqlite", scheduler=name, bucket=place, **size) for place in (None, bucket)]
            for name in schedulers
        ]
        shared, separate = run(groups, args.repeat), []
        if len(os.sched_getaffinity(0)) > 1:
            with apart(bucket.server_pid):
                separate = run(groups, args.repeat)
    write_json(args.json, [*shared, *separate])
    print(
        f"{where} SQLite; int64 key, 100 bytes; {args.files} Parquet files to {args.shards} shards; best of "
        f"{args.repeat}, in turns in one warm process. {CLUSTER}. Uploads are summed over both workers."
        f"\n\n{results_table(best(shared))}"
    )
    if separate:
        print(f"\nThe server on one processor, all writes on the others:\n\n{results_table(best(separate))}")


if __name__ == "__main__":
    main()
