"""Encoded partitions as files on a disk that all workers share: an exchange that holds no rows in memory.

Each execution of an encode task writes a file of its own; a shard task maps its slice of every file. Knows no Dask.
"""

from __future__ import annotations

import errno
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardyfusion.errors import ShardWriteError
from shardyfusion.writer.encode import EncodedPartition, PartitionReport

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class StoredPartition:
    """Where the rows of one partition are; `ends` as in `EncodedPartition`. Without rows there is no file."""

    report: PartitionReport
    path: Path | None
    ends: npt.NDArray[np.int64]


def store_partition(encoded: EncodedPartition, directory: Path) -> StoredPartition:
    """Write the rows of a partition into a new file of `directory`.

    Raises:
        ShardWriteError: the disk is full, or the directory is not there.
    """
    import pyarrow as pa

    if encoded.rows is None:
        return StoredPartition(report=encoded.report, path=None, ends=encoded.ends)
    path = directory / f"{encoded.report.partition:06d}-{uuid.uuid4().hex[:8]}.arrow"
    try:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, encoded.rows.schema) as writer:
            writer.write_table(encoded.rows.combine_chunks())
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise _unusable("write", path, exc) from exc
    return StoredPartition(report=encoded.report, path=path, ends=encoded.ends)


def load_piece(stored: StoredPartition, db_id: int) -> pa.Table | None:
    """The rows of one shard, mapped and not copied: they take no memory but the system's cache.

    Raises:
        ShardWriteError: the file is not there, or damaged in a way that shows; what does not show, the digests tell.
    """
    import pyarrow as pa

    start, end = (int(stored.ends[db_id - 1]) if db_id else 0), int(stored.ends[db_id])
    if stored.path is None or start == end:
        return None
    try:
        with pa.memory_map(str(stored.path)) as file:
            piece = pa.ipc.open_file(file).read_all().slice(start, end - start)
            piece.select(["key", "value"]).validate(full=True)  # damaged offsets would crash the process
    except (OSError, KeyError, pa.ArrowException) as exc:
        raise _unusable("read", stored.path, exc) from exc
    return piece


def _unusable(verb: str, path: Path, exc: Exception) -> ShardWriteError:
    full = isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = (
        "the disk is full; free some space, or set output.local_root to a larger disk"
        if full
        else "set output.local_root to a sound disk that all workers share, or DaskWriteOptions.shuffle to 'p2p'"
    )
    return ShardWriteError(f"cannot {verb} the encoded rows in {path}: {exc}; {advice}")
