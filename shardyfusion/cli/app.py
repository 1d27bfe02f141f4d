"""The commands of `shardy`: arguments in, text or JSON out. What they ask is in the reader and the commit log."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from shardyfusion.cli.report import history_rows, info_fields, parse_key, show_value, table
from shardyfusion.errors import ShardyfusionError
from shardyfusion.reader import ShardedReader
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.type_defs import S3ConnectionOptions

Command = TypeVar("Command", bound=Callable[..., Any])


@contextmanager
def _exit_codes() -> Generator[None]:
    """One line on stderr and exit code 2 for whatever goes wrong, never a traceback; 1 is for an absent key alone."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # as `head` does it to others, which die of the signal without a word
        _drop_output()
        sys.exit(141)
    except Exception as exc:
        _drop_output()
        text = str(exc) if isinstance(exc, ShardyfusionError) else f"{type(exc).__name__}: {exc}"
        click.echo(f"error: {' '.join(text.split())}", err=True)
        sys.exit(2)


def _drop_output() -> None:
    """Output that could not be written is still in a buffer: at exit Python would try again, and exit with 120."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _ExitCodes(click.Group):
    """Parses and runs with `_exit_codes`."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _exit_codes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _exit_codes():
            return super().invoke(ctx)


@click.group(cls=_ExitCodes, context_settings={"help_option_names": ["-h", "--help"]})
def shardy() -> None:
    """Look into a published snapshot.

    PREFIX is where it lives: s3://bucket/prefix, file:///path or a local directory. S3 credentials come from the
    standard AWS environment variables and profiles. Nothing is ever written.
    """


def _connection(command: Command) -> Command:
    for option in (
        click.option("--region", help="AWS region. Default: the environment's."),
        click.option("--endpoint-url", help="URL of an S3-compatible store. Default: AWS_ENDPOINT_URL, else AWS."),
    ):
        command = option(command)
    return command


def _options(endpoint_url: str | None, region: str | None) -> S3ConnectionOptions:
    options = S3ConnectionOptions()
    if endpoint_url:
        options["endpoint_url"] = endpoint_url
    if region:
        options["region_name"] = region
    return options


@shardy.command()
@click.argument("prefix")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every shard.")
@_connection
def info(prefix: str, as_json: bool, endpoint_url: str | None, region: str | None) -> None:
    """What is served from PREFIX: run, commit, rows, shards."""
    with ShardedReader(prefix, s3_connection_options=_options(endpoint_url, region)) as reader:
        fields = info_fields(reader.snapshot_info(), reader.shard_details())
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    shards = fields.pop("shard_details")
    for name, value in fields.items():
        click.echo(f"{name + ':':<14} {'-' if value is None else value}")
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
@click.option("--raw", is_flag=True, help="Write the value's bytes as they are, without a line end.")
@_connection
def get(prefix: str, key: str, key_type: str, raw: bool, endpoint_url: str | None, region: str | None) -> None:
    """The value of KEY, as text if it is UTF-8, else in hex. Exit code 1 if there is no such key."""
    with ShardedReader(prefix, s3_connection_options=_options(endpoint_url, region)) as reader:
        value = reader.get(parse_key(key, key_type, reader.snapshot_info().key_encoding))
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
@_connection
def history(prefix: str, limit: int, as_json: bool, endpoint_url: str | None, region: str | None) -> None:
    """What was published at PREFIX, newest first; * marks what is served. A prefix without commits shows its
    manifests."""
    store = open_store(StoreAddress.parse(prefix, options=_options(endpoint_url, region)))
    rows = history_rows(store, limit)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(table(("served", "seq", "kind", "run_id", "committed_at"), rows))
