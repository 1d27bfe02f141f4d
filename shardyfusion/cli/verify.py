"""`shardy verify`: what is stored against what was recorded."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import cast, get_args

import click

from shardyfusion.cli.group import connection, connection_options
from shardyfusion.operations import Mode, VerifyReport
from shardyfusion.operations import verify as run_verify


@click.command()
@click.argument("prefix")
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    default="metadata",
    show_default=True,
    help="metadata: log, manifest, and the sizes of all objects. sample: also open every shard and read some rows. "
    "full: read and compare every byte and row.",
)
@click.option("--to", help="Which snapshot: a commit's number, a run id or a manifest's URL. Default: what is served.")
@click.option("--sample-rows", type=click.IntRange(min=1), default=100, show_default=True, help="Rows of each shard.")
@click.option("--seed", type=int, help="Repeats the choice of rows of an earlier sample.")
@click.option("--workers", type=click.IntRange(min=1), default=4, show_default=True, help="Shards read at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every shard.")
@connection
def verify(
    prefix: str,
    mode: str,
    to: str | None,
    sample_rows: int,
    seed: int | None,
    workers: int,
    as_json: bool,
    endpoint_url: str | None,
    region: str | None,
) -> None:
    """Compare what is stored at PREFIX with what was recorded. Exit code 1 if something is damaged."""
    report = run_verify(
        prefix,
        cast("Mode", mode),
        to=to,
        sample_rows=sample_rows,
        seed=seed,
        workers=workers,
        s3_connection_options=connection_options(endpoint_url, region),
    )
    if as_json:
        click.echo(json.dumps({"ok": report.ok, **dataclasses.asdict(report)}, indent=2))
    else:
        click.echo("\n".join(_lines(report)))
    if not report.ok:
        sys.exit(1)


def _lines(report: VerifyReport) -> Iterator[str]:
    commit = "no commit" if report.seq is None else f"commit {report.seq}"
    yield f"snapshot:   {'hidden by damage' if report.run_id is None else f'run {report.run_id}, {commit}'}"
    yield f"mode:       {report.mode}{f', seed {report.seed}' if report.mode == 'sample' else ''}"
    sound = len(report.shards) - len(report.damaged)
    rows, stored = sum(shard.rows for shard in report.shards), sum(shard.bytes for shard in report.shards)
    yield f"sound:      {sound} of {len(report.shards)} shards; {rows:,} rows read, {stored:,} bytes compared"
    open_points = Counter(text for shard in report.shards for text in shard.unchecked)
    for text in report.unchecked:
        yield f"unchecked:  {text}"
    for text, shards in open_points.items():
        yield f"unchecked:  {text} (shards: {shards})"
    for text in (*report.problems, *(shard.problem for shard in report.damaged)):
        yield f"damaged:    {text}"
    if report.advice:
        yield f"what to do: {report.advice}"
