"""The commands of `shardy`: arguments in, text or JSON out. What they ask is in the reader and the commit log."""

from __future__ import annotations

import json
import sys

import click

from shardyfusion.cli.group import ExitCodes, connection, connection_options
from shardyfusion.cli.operate import cleanup, rollback
from shardyfusion.cli.report import history_rows, info_fields, parse_context, parse_key, show_value, table
from shardyfusion.cli.runs import runs
from shardyfusion.cli.verify import verify
from shardyfusion.reader import ShardedReader
from shardyfusion.storage import StoreAddress, open_store


@click.group(cls=ExitCodes, context_settings={"help_option_names": ["-h", "--help"]})
def shardy() -> None:
    """Look into a published snapshot.

    PREFIX is where it lives: s3://bucket/prefix, file:///path or a local directory. S3 credentials come from the
    standard AWS environment variables and profiles. Only `rollback` and `cleanup` ever write.
    """


@shardy.command()
@click.argument("prefix")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every shard.")
@connection
def info(prefix: str, as_json: bool, endpoint_url: str | None, region: str | None) -> None:
    """What is served from PREFIX: run, commit, rows, shards."""
    with ShardedReader(prefix, s3_connection_options=connection_options(endpoint_url, region)) as reader:
        fields = info_fields(reader.snapshot_info(), reader.shard_details())
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    shards = fields.pop("shard_details")
    for name, value in fields.items():
        click.echo(f"{name + ':':<17} {'-' if value is None else value}")
    click.echo()
    click.echo(table(("db_id", "row_count", "db_bytes", "db_url"), shards))


@shardy.command()
@click.argument("prefix")
@click.argument("key")
@click.option(
    "--key-type",
    type=click.Choice(["auto", "int", "str", "hex"]),
    default="auto",
    show_default=True,
    help="How to read KEY. auto: an integer where the snapshot's keys are integers, else text. hex: the stored bytes.",
)
@click.option(
    "--context",
    "entries",
    metavar="NAME=VALUE",
    multiple=True,
    help="A column's value, for snapshots that CEL shards by more than the key; bytes in hex. May be repeated.",
)
@click.option("--raw", is_flag=True, help="Write the value's bytes as they are, without a line end.")
@connection
def get(
    prefix: str,
    key: str,
    key_type: str,
    entries: tuple[str, ...],
    raw: bool,
    endpoint_url: str | None,
    region: str | None,
) -> None:
    """The value of KEY, as text if it is UTF-8, else in hex. Exit code 1 if there is no such key."""
    with ShardedReader(prefix, s3_connection_options=connection_options(endpoint_url, region)) as reader:
        snapshot = reader.snapshot_info()
        context = parse_context(entries, snapshot.context_columns)
        value = reader.get(parse_key(key, key_type, snapshot.key_encoding), context)
    if value is None:
        click.echo(f"no key {key!r} in {prefix}", err=True)
        sys.exit(1)
    if raw:
        click.echo(value, nl=False)
    else:
        click.echo(show_value(value))


@shardy.command()
@click.argument("prefix")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection
def history(prefix: str, limit: int, as_json: bool, endpoint_url: str | None, region: str | None) -> None:
    """What was published at PREFIX, newest first; * marks what is served. A prefix without commits shows its
    manifests."""
    store = open_store(StoreAddress.parse(prefix, options=connection_options(endpoint_url, region)))
    rows = history_rows(store, limit)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(table(("served", "seq", "kind", "run_id", "committed_at"), rows))


for command in (verify, runs, rollback, cleanup):
    shardy.add_command(command)
