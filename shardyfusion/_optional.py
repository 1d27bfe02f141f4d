"""Optional packages: imported where they are used, and named with their extra when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from shardyfusion.errors import MissingExtraError


def needs(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it. A package that is there but broken keeps its own error."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        top = module.partition(".")[0]
        if exc.name not in (top, module):
            raise
        raise MissingExtraError(f"{top} is not installed; run: pip install 'shardyfusion[{extra}]'") from exc
