"""The local directory of one reader: the caller's own, or a private temporary one. What is cached there is the
engines' business."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

from shardyfusion.errors import ConfigValidationError, ReaderStateError
from shardyfusion.local_cache import discard
from shardyfusion.type_defs import require


class LocalRoot:
    """Where a reader keeps downloads.

    Invariants: nothing is created before `path()` is called; what the caller gave is never removed; a private
    directory is removed once, by the process that made it, at `close()` or when the reader is collected.
    """

    def __init__(self, given: str | os.PathLike[str] | None) -> None:
        self._path = None if given is None else _absolute(given)
        self._remove: weakref.finalize[..., LocalRoot] | None = None

    def path(self) -> Path:
        try:
            if self._path is None:
                self._path = Path(tempfile.mkdtemp(prefix="shardyfusion-"))
                self._remove = weakref.finalize(self, _remove_tree, self._path, os.getpid())
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ReaderStateError(
                f"the local directory {str(self._path or tempfile.gettempdir())!r} cannot be used: {exc}; "
                "pass a writable local_root"
            ) from exc
        return self._path

    def discard(self, names: Iterable[str]) -> None:
        """Remove cached files by name; nothing happens where nothing was cached."""
        if self._path is not None:
            discard(self._path, names)

    def close(self) -> None:
        if self._remove is not None:
            self._remove()
            self._path, self._remove = None, None


def _absolute(given: str | os.PathLike[str]) -> Path:
    try:
        path = Path(given).expanduser().absolute()
    except (TypeError, RuntimeError, OSError) as exc:
        raise ConfigValidationError(f"local_root {given!r} is no directory: {exc}") from exc
    require("\0" not in str(path), f"local_root {given!r} holds a NUL, which no path may")
    return path


def _remove_tree(path: Path, pid: int) -> None:
    # A forked child that drops its copy of the reader must not take the parent's files away.
    if os.getpid() == pid:
        shutil.rmtree(path, ignore_errors=True)
