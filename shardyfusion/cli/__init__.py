"""`shardy`, the command line: the entry point, which says what to install when click is missing.

The commands are in `app.py`, which may import click because only `main()` loads it.
"""

from __future__ import annotations

import sys

from shardyfusion._optional import needs
from shardyfusion.errors import MissingExtraError

__all__ = ["main"]


def main() -> None:
    """Run `shardy` with the arguments of the process."""
    try:
        needs("click", extra="cli")
    except MissingExtraError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(2)
    needs("shardyfusion.cli.app", extra="cli").shardy(prog_name="shardy")
