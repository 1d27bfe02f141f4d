"""What this process does to the files below some directories, told before it happens: it can still be prevented.

It is seen through Python's audit events, so what C or Rust libraries do to files by themselves is not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Notice = Callable[[str, str], None]

_CHANGES: dict[str, tuple[int, int | None]] = {
    "os.link": (1, 3),
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rename": (1, 3),
    "os.rmdir": (0, 1),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
}
"""Audit events by where the changed path is among their arguments, and the descriptor of the directory it starts in."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class _Observer:
    roots: tuple[str, ...]
    notice: Notice

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITING:
                return
            start = None
        else:
            where, beside = _CHANGES[event]
            path, start = arguments[where], None if beside is None else arguments[beside]
        name = self._name(path, start)
        if name is not None:
            self.notice(event, name)

    def _name(self, path: object, start: object) -> str | None:
        """The path relative to the directory it lies below; None if that is none of ours."""
        if isinstance(path, int):
            full = _path_of(path)
        elif isinstance(path, str | bytes | os.PathLike):
            beside = _path_of(start) if isinstance(start, int) and start >= 0 else ""
            full = os.path.abspath(os.path.join(beside, os.fsdecode(path)))  # noqa: PTH100, PTH118 (called very often)
        else:
            return None
        root = next((root for root in self.roots if full == root or full.startswith(f"{root}/")), None)
        return None if root is None else full[len(root) + 1 :]


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 (called very often)
    except OSError:  # not on this system, or closed
        return ""


_observer: _Observer | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _observer is not None and (event == "open" or event in _CHANGES):
        _observer.see(event, arguments)


@contextmanager
def observing_local_steps(directories: Iterable[Path], notice: Notice) -> Generator[None]:
    """Call `notice(event, path)` before every step of this process, in any thread, that changes files or directories
    below one of `directories`. What it raises is raised instead, and the step does not happen. Not to be nested.
    """
    global _observer, _hooked
    given = [Path(directory) for directory in directories]
    roots = dict.fromkeys(str(path) for each in given for path in (each.absolute(), each.resolve()))
    if not _hooked:  # there is no way to remove one
        sys.addaudithook(_hook)
        _hooked = True
    if _observer is not None:
        raise RuntimeError("another job is being observed already")
    _observer = _Observer(tuple(roots), notice) if roots else None
    try:
        yield
    finally:
        _observer = None
