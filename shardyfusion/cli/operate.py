"""The commands of `shardy` that change what is served, or what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import click

from shardyfusion.cli.group import connection, connection_options
from shardyfusion.cli.report import table
from shardyfusion.layout import timestamp
from shardyfusion.operations import CleanupResult
from shardyfusion.operations import cleanup as run_cleanup
from shardyfusion.operations import rollback as run_rollback

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _age(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """`90m`, `36h`, `7d` as a length of time."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", value or "")
    if value is not None and match is None:
        raise click.BadParameter(f"{value!r} is not an age; write a number and a unit (s, m, h, d, w), such as 36h")
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None


@click.command()
@click.argument("prefix")
@click.option(
    "--to",
    required=True,
    help="What to serve again: a commit's number, a run id, a manifest's URL, or 'previous'.",
)
@connection
def rollback(prefix: str, to: str, endpoint_url: str | None, region: str | None) -> None:
    """Serve an earlier version of PREFIX again. `shardy history` lists them."""
    ref = run_rollback(prefix, to=to, s3_connection_options=connection_options(endpoint_url, region))
    commit = "no commit" if ref.seq is None else f"commit {ref.seq}"  # what another writer's pointer serves has none
    click.echo(f"{commit}: serving run {ref.run_id} ({ref.ref})")


@click.command()
@click.argument("prefix")
@click.option("--keep-last", type=click.IntRange(min=1), default=3, show_default=True, help="Versions that stay.")
@click.option(
    "--older-than",
    metavar="AGE",
    callback=_age,
    help="Also keep versions that were served less than this ago, such as 30d.",
)
@click.option(
    "--grace",
    metavar="AGE",
    callback=_age,
    default="1d",
    show_default=True,
    help="Nothing goes that was served or written less than this ago.",
)
@click.option("--dry-run", is_flag=True, help="Print what would go, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection
def cleanup(
    prefix: str,
    keep_last: int,
    older_than: timedelta | None,
    grace: timedelta,
    dry_run: bool,
    as_json: bool,
    endpoint_url: str | None,
    region: str | None,
) -> None:
    """Delete old versions, losing attempts, and what dead runs left below PREFIX. What is served, what was served
    before it, and runs at work always stay."""
    result = run_cleanup(
        prefix,
        keep_last=keep_last,
        older_than=older_than,
        grace=grace,
        dry_run=dry_run,
        s3_connection_options=connection_options(endpoint_url, region),
    )
    rows = list(_rows(result))
    if as_json:
        click.echo(json.dumps(_fields(result, rows), indent=2))
        return
    if rows:
        click.echo(table(("key", "bytes", "modified"), rows))
        click.echo()
    click.echo(
        f"{'would delete' if dry_run else 'deleted'} {len(rows)} objects, {result.plan.key_bytes:,} bytes; "
        f"{len(result.plan.kept)} versions stay" + (f" (commit {result.seq})" if result.seq else "")
    )


def _rows(result: CleanupResult) -> Iterator[dict[str, Any]]:
    for key in result.plan.keys:
        yield {"key": key.name, "bytes": key.size, "modified": timestamp(key.modified)}
    for upload in result.plan.uploads:
        yield {"key": f"{upload.name} (unfinished upload)", "bytes": None, "modified": timestamp(upload.started)}


def _fields(result: CleanupResult, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "dry_run": result.dry_run,
        "seq": result.seq,
        "kept": [ref.ref for ref in result.plan.kept],
        "expired": list(result.plan.expired),
        "deleted": rows,
    }
