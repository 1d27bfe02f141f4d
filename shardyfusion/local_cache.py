"""Downloaded shard objects in a local directory, named by what they hold, shared by any number of processes.

How the objects are read is the backends' business. A finished file is removed only when a reader says `discard`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

from shardyfusion.errors import ShardUnavailableError
from shardyfusion.layout import join_url
from shardyfusion.storage.contract import ObjectStore

Stamp = tuple[int, int, int]
"""What changes with a file's contents: inode, size, modification time."""

_ABANDONED_SECONDS = 24 * 3600.0
_MOST_VERIFIED = 65_536
_verified: dict[str, tuple[Stamp, str]] = {}
"""Files whose digest this process has checked, by path. To forget one costs no more than to hash it again."""


def fetch(store: ObjectStore, name: str, *, cache: Path, sha256: str | None, size: int | None, identity: str) -> Path:
    """A local file with the bytes of the object `name`, downloaded unless the cache has it.

    The file is named by its digest, or, where the manifest records none, by its URL and `identity`. A cached file
    is checked by size, and by digest once per process; one that does not hold what it should is fetched anew.

    Raises:
        ShardUnavailableError: what the store sent is not what the manifest recorded.
        StorageError: the store did not send it.
    """
    url = join_url(store.url, name)
    try:
        return _fetch(store, name, url, cache, sha256, size, identity)
    except OSError as exc:
        raise ShardUnavailableError(f"cannot keep {url} in the cache directory {cache}: {exc}") from exc


def _fetch(
    store: ObjectStore, name: str, url: str, cache: Path, sha256: str | None, size: int | None, identity: str
) -> Path:
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    cached = cache / cached_name(url, sha256=sha256, identity=identity)
    with suppress(ShardUnavailableError, FileNotFoundError):
        check_file(cached, sha256=sha256, size=size, url=url)
        return cached
    # In the same directory, so that the rename is atomic; whoever comes last replaces equal bytes.
    private = cache / f".{cached.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    _sweep(cache)
    try:
        store.download(name, private)
        stamp = check_file(private, sha256=sha256, size=size, url=url)
        private.replace(cached)
    finally:
        _verified.pop(str(private), None)
        private.unlink(missing_ok=True)
    if sha256 is not None:  # The rename keeps what is in the stamp. By now, another process may have removed the file.
        _remember(cached, stamp, sha256)
    return cached


@lru_cache(maxsize=64)  # once per process and directory: it looks at every name in there
def _sweep(cache: Path) -> None:
    """Remove what downloads left behind whose process was killed; a download that goes on has written lately."""
    for left in cache.glob(".*.part"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                left.unlink()


def cached_name(url: str, *, sha256: str | None, identity: str) -> str:
    """The name in a cache directory of what `fetch` downloads from `url`."""
    return sha256 or "id-" + hashlib.sha256(f"{url}\0{identity}".encode(errors="surrogateescape")).hexdigest()


def discard(cache: Path, names: Iterable[str]) -> None:
    """Remove cached files, as far as that is possible; whoever has one open keeps reading it."""
    for name in names:
        if Path(name).name == name:  # names come from manifests: never a path out of the cache
            _verified.pop(str(cache / name), None)
            with suppress(OSError):
                (cache / name).unlink()


def check_file(path: Path, *, sha256: str | None, size: int | None, url: str) -> Stamp:
    """Raise `ShardUnavailableError` unless the file is as the manifest recorded it; None means not recorded.

    The digest of one unchanged file is computed once per process.
    """
    status = path.stat()
    stamp = status.st_ino, status.st_size, status.st_mtime_ns
    if not S_ISREG(status.st_mode):
        raise ShardUnavailableError(f"{url} cannot be read: {path} is no file")
    if size is not None and status.st_size != size:
        raise ShardUnavailableError(f"{url} is damaged: {status.st_size} bytes instead of the recorded {size}")
    if sha256 is None or _verified.get(str(path)) == (stamp, sha256):
        return stamp
    found = file_sha256(path)
    if found != sha256:
        raise ShardUnavailableError(f"{url} is damaged: sha256 {found} instead of the recorded {sha256}")
    _remember(path, stamp, sha256)
    return stamp


def _remember(path: Path, stamp: Stamp, sha256: str) -> None:
    if len(_verified) >= _MOST_VERIFIED:
        _verified.clear()
    _verified[str(path)] = stamp, sha256


def file_sha256(path: Path) -> str:
    """The digest of a file as hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
