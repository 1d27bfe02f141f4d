"""Which object names the stores take: those that mean the same object on S3, on disk and in a URL.

The names that the library itself uses are in `layout.py`.
"""

from __future__ import annotations

from shardyfusion.errors import StorageError


def check_object_name(name: str) -> str:
    """Return `name`, or raise `StorageError` if it is empty, absolute or could leave the root."""
    if not name or name.startswith("/") or {".", ".."} & set(name.split("/")) or not name.isprintable():
        raise StorageError(
            "an object name must be relative, without '.' or '..' segments and control characters", name=name
        )
    return name
