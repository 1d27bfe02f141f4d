"""What all commands of `shardy` share: exit codes, and how a store is reached. The commands are in `app.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from shardyfusion.errors import ShardyfusionError
from shardyfusion.masking import masked
from shardyfusion.type_defs import S3ConnectionOptions

Command = TypeVar("Command", bound=Callable[..., Any])


@contextmanager
def _exit_codes() -> Generator[None]:
    """One line on stderr and exit code 2 for whatever goes wrong, never a traceback. 1 means no such key, or damage."""
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
        text = str(exc) if isinstance(exc, ShardyfusionError) else masked(f"{type(exc).__name__}: {exc}")
        click.echo(f"error: {' '.join(text.split())}", err=True)
        sys.exit(2)


def _drop_output() -> None:
    """Output that could not be written is still in a buffer: at exit Python would try again, and exit with 120."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ExitCodes(click.Group):
    """Parses and runs with `_exit_codes`."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _exit_codes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _exit_codes():
            return super().invoke(ctx)


def connection(command: Command) -> Command:
    for option in (
        click.option("--region", help="AWS region. Default: the environment's."),
        click.option("--endpoint-url", help="URL of an S3-compatible store. Default: AWS_ENDPOINT_URL, else AWS."),
    ):
        command = option(command)
    return command


def connection_options(endpoint_url: str | None, region: str | None) -> S3ConnectionOptions:
    options = S3ConnectionOptions()
    if endpoint_url:
        options["endpoint_url"] = endpoint_url
    if region:
        options["region_name"] = region
    return options
