"""`shardy runs`: which executions have written to a prefix, and how they ended."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from shardyfusion.cli.group import connection, connection_options
from shardyfusion.cli.report import table
from shardyfusion.run_registry import RecordedRun, recorded_runs
from shardyfusion.storage import StoreAddress, open_store


@click.command()
@click.argument("prefix")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection
def runs(prefix: str, limit: int, as_json: bool, endpoint_url: str | None, region: str | None) -> None:
    """The runs of PREFIX, newest first. `lost`: still running by its record, which nobody has renewed for as long as a
    lease lasts. Ages are by the clock of the store."""
    store = open_store(StoreAddress.parse(prefix, options=connection_options(endpoint_url, region)))
    found = list(recorded_runs(store, newest=limit))
    now = store.now()  # after the records, so that none is from the future
    rows = [_fields(run, now) for run in reversed(found)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(table(("status", "run_id", "started_at", "heartbeat", "result"), map(_line, rows)))


def _fields(run: RecordedRun, now: datetime) -> dict[str, Any]:
    record = run.record
    return {
        "run_id": run.run_id,
        "status": run.state(now),
        "started_at": record and record.started_at,
        "heartbeat_age_seconds": max(0, round((now - run.modified).total_seconds())),
        "manifest_ref": record and record.manifest_ref,
        "error_type": record and record.error_type,
        "error_message": record and record.error_message,
        "record": run.name,
    }


def _line(fields: dict[str, Any]) -> dict[str, Any]:
    error = fields["error_type"] and " ".join(f"{fields['error_type']}: {fields['error_message']}".split())
    return {
        **fields,
        "heartbeat": f"{_length(fields['heartbeat_age_seconds'])} ago",
        "result": error or fields["manifest_ref"],
    }


def _length(seconds: int) -> str:
    """`5 s`, `12 min`, `7 h` or `3 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
