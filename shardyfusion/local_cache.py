"""Downloaded shard objects in a local directory, named by what they hold, shared by any number of processes.

How the objects are read is the backends' business. A finished file is removed only when a reader says `discard`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from shardyfusion.errors import ShardUnavailableError
from shardyfusion.layout import join_url
from shardyfusion.storage.contract import ObjectStore

_verified: set[tuple[str, int, int, int, str]] = set()
"""Files whose digest this process has checked: path, inode, size, modification time, digest."""


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
        raise ShardUnavailableError(f"cannot keep {url} in the cache directory {cache}: {exc.strerror}") from exc


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
    try:
        store.download(name, private)
        check_file(private, sha256=sha256, size=size, url=url)
        private.replace(cached)
    finally:
        private.unlink(missing_ok=True)
    if sha256 is not None:  # the rename has kept inode and time: no need to hash it again
        _verified.add((*_stamp(cached), sha256))
    return cached


def cached_name(url: str, *, sha256: str | None, identity: str) -> str:
    """The name in a cache directory of what `fetch` downloads from `url`."""
    return sha256 or "id-" + hashlib.sha256(f"{url}\0{identity}".encode()).hexdigest()


def discard(cache: Path, names: Iterable[str]) -> None:
    """Remove cached files, as far as that is possible; whoever has one open keeps reading it."""
    for name in names:
        if Path(name).name == name:  # names come from manifests: never a path out of the cache
            with suppress(OSError):
                (cache / name).unlink()


def check_file(path: Path, *, sha256: str | None, size: int | None, url: str) -> None:
    """Raise `ShardUnavailableError` unless the file is as the manifest recorded it; None means not recorded.

    The digest of one unchanged file is computed once per process.
    """
    stamp = _stamp(path)
    if size is not None and stamp[2] != size:
        raise ShardUnavailableError(f"{url} is damaged: {stamp[2]} bytes instead of the recorded {size}")
    if sha256 is None or (*stamp, sha256) in _verified:
        return
    found = file_sha256(path)
    if found != sha256:
        raise ShardUnavailableError(f"{url} is damaged: sha256 {found} instead of the recorded {sha256}")
    _verified.add((*stamp, sha256))


def file_sha256(path: Path) -> str:
    """The digest of a file as hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns
