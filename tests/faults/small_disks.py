"""Small and read-only file systems: real ones, where this process may mount them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, kibibytes: int) -> Iterator[Path]:
    """A tmpfs of that size; the test is skipped where none can be mounted."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    directory.mkdir()
    tried = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(directory)], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {tried.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """A mounted `small_disk`, read-only inside the block. (Modes of directories mean nothing to root.)"""
    subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(directory)], check=True)


def fill(directory: Path, *, leave: int = 0) -> Path:
    """Fill the disk up to `leave` bytes with one file, which is returned."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        free = shutil.disk_usage(directory).free - leave
        while free > 0:
            free -= file.write(bytes(min(free, 1 << 16)))
    return ballast
