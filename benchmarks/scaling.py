"""How the time of a SQLite write grows with the rows, and with the shards; prints Markdown tables, and draws them.

Best of several runs in turns, in one warm process for each scheduler and kind of growth. No claims here: those are in
docs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from arguments import add_run, chosen, parser
from jobs import Job, Measurement, best, run
from measuring import SCHEDULERS
from plot import Panel, draw
from report import CLUSTER, machine, markdown, percent_more, write_json

SIZES = [1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000]
SHARDS = [8, 16, 32, 64, 128, 256]
SVG = Path(__file__).parents[1] / "docs" / "performance-scaling.svg"


def plan_jobs(args: argparse.Namespace) -> tuple[list[list[Job]], list[list[Job]]]:
    """With growing rows, and with growing shards: one group for each scheduler.

    Where rows grow, shards stay as many and files as large, so that nothing else changes; at 16 million a shard is
    220 MB. Where shards grow, the rows and their files are the same.
    """
    schedulers = chosen(args.scheduler, SCHEDULERS)
    return (
        [[_job(args, name, rows, args.shards[0]) for rows in args.sizes] for name in schedulers],
        [[_job(args, name, args.rows, shards) for shards in args.shards] for name in schedulers],
    )


def _job(args: argparse.Namespace, scheduler: str, rows: int, shards: int) -> Job:
    files = max(1, rows // args.file_rows)
    return Job(what="sqlite", scheduler=scheduler, rows=rows, files=files, shards=shards, data=args.data)


def growth_table(results: Mapping[Job, Measurement], groups: Sequence[Sequence[Job]]) -> str:
    lines = [["scheduler", "rows", "files", "shards", "seconds", "µs per row", "growth", "rows/s"]]
    for group in groups:
        first = results[group[0]]
        for job in group:
            one = results[job]
            growth = percent_more(per_row(one), per_row(first)) if job is not group[0] else ""
            lines.append([job.scheduler, f"{job.rows:,}", f"{job.files}", f"{job.shards}", f"{one.seconds:.2f}"])
            lines[-1] += [f"{per_row(one):.3f}", growth, f"{one.rows_per_second:,.0f}"]
    return markdown(lines, words=1)


def per_row(one: Measurement) -> float:
    """Microseconds."""
    return 1e6 * one.seconds / one.job.rows


def panel(title: str, results: Mapping[Job, Measurement], groups: Sequence[Sequence[Job]], grows: str) -> Panel:
    return Panel(
        title=title,
        x_title=grows,
        y_title="µs per row",
        lines={group[0].scheduler: [(getattr(job, grows), per_row(results[job])) for job in group] for group in groups},
        x_labels={getattr(job, grows): short(getattr(job, grows)) for job in groups[0]},
    )


def short(number: int) -> str:
    return f"{number / 1e6:g}M" if number >= 1_000_000 else f"{number / 1e3:g}k" if number >= 1_000 else f"{number}"


def parse_args() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", type=_numbers, default=SIZES, metavar="ROWS,...",
                           help="rows, with the first of --shards (default: 1 to 16 million)")  # fmt: skip
    arguments.add_argument("--shards", type=_numbers, default=SHARDS, metavar="SHARDS,...",
                           help="shards, with --rows (default: 8 to 256)")  # fmt: skip
    arguments.add_argument("--rows", type=int, default=4_000_000, help="rows for --shards (default: %(default)s)")
    arguments.add_argument("--file-rows", type=int, default=250_000, help="rows of a file (default: %(default)s)")
    arguments.add_argument("--svg", type=Path, default=SVG, help="the picture (default: that of docs/performance.md)")
    add_run(arguments, repeat=3)
    return arguments.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    args = parse_args()
    where, (by_rows, by_shards) = machine(), plan_jobs(args)
    # In processes of their own: what 16 million rows leave with the allocators is not for small shards to work with.
    runs = [*run(by_rows, args.repeat), *run(by_shards, args.repeat)]
    write_json(args.json, runs)
    results = best(runs)
    print(
        f"{where} SQLite; int64 key, 100 bytes; {args.file_rows:,} rows in a file; to a local directory; best of "
        f"{args.repeat}, in turns in one warm process for each scheduler and table. {CLUSTER}."
        f"\n\n{growth_table(results, by_rows)}\n\n{growth_table(results, by_shards)}"
    )
    drawing = draw(
        "Time per row of a SQLite write",
        f"int64 key and 100 bytes, local directory, {os.cpu_count()} cores, best of {args.repeat}",
        [
            panel(f"{args.shards[0]} shards", results, by_rows, "rows"),
            panel(f"{short(args.rows)} rows", results, by_shards, "shards"),
        ],
    )
    args.svg.write_text(drawing)


if __name__ == "__main__":
    main()
