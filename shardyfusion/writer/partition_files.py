"""Encoded partitions as files on a disk that all workers share: an exchange that holds no rows in memory.

Each execution of an encode task writes a file of its own. It holds, for each shard in turn, the buffers of an Arrow
`large_binary` column of keys and one of values: offsets of keys, offsets of values, keys, values. Where they lie is
told by the task's result and not by the file, so that a damaged one cannot mislead whoever reads it. Knows no Dask.
"""

from __future__ import annotations

import errno
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardyfusion.errors import ShardWriteError
from shardyfusion.writer.encode import EncodedPartition, PartitionReport

if TYPE_CHECKING:
    import pyarrow as pa

_OFFSET_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of one shard in a file: how many, from which byte on, and of how many bytes keys and values are."""

    rows: int
    start: int
    key_bytes: int
    value_bytes: int

    @property
    def size(self) -> int:
        return 2 * (self.rows + 1) * _OFFSET_BYTES + self.key_bytes + self.value_bytes


@dataclass(frozen=True, kw_only=True)
class StoredPartition:
    """Where the rows of one partition are, by shard; shards without rows have no part, and without parts there is no
    file."""

    report: PartitionReport
    path: Path
    parts: dict[int, Part]


def store_partition(encoded: EncodedPartition, directory: Path) -> StoredPartition:
    """Write the rows of a partition into a new file of `directory`.

    Raises:
        ShardWriteError: the disk is full, or the directory is not there.
    """
    path = directory / f"{encoded.report.partition:06d}-{uuid.uuid4().hex[:8]}.rows"
    parts: dict[int, Part] = {}
    if encoded.rows is None:
        return StoredPartition(report=encoded.report, path=path, parts=parts)
    keys, values = (encoded.rows.column(name).combine_chunks() for name in ("key", "value"))
    start = at = 0
    try:
        with path.open("wb") as file:
            for db_id, end in enumerate(encoded.ends.tolist()):
                if end == start:
                    continue
                key_ends, key_data = _buffers(keys, start, end)
                value_ends, value_data = _buffers(values, start, end)
                for buffer in (key_ends, value_ends, key_data, value_data):
                    file.write(buffer)
                parts[db_id] = part = Part(
                    rows=end - start, start=at, key_bytes=len(key_data), value_bytes=len(value_data)
                )
                start, at = end, at + part.size
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise _unusable("write", path, exc) from exc
    return StoredPartition(report=encoded.report, path=path, parts=parts)


def load_piece(stored: StoredPartition, db_id: int) -> pa.Table | None:
    """The rows of one shard. They are read and not mapped: a system maps far more of a file than is looked at, and a
    cluster takes that for memory of the worker.

    Raises:
        ShardWriteError: the file is not there, or damaged in a way that shows; what does not show, the digests tell.
    """
    import pyarrow as pa

    part = stored.parts.get(db_id)
    if part is None:
        return None
    block = pa.allocate_buffer(part.size)
    try:
        with stored.path.open("rb", buffering=0) as file:
            file.seek(part.start)
            _fill(file, memoryview(block))
    except OSError as exc:
        raise _unusable("read", stored.path, exc) from exc
    ends_size = (part.rows + 1) * _OFFSET_BYTES
    key_ends, value_ends = block.slice(0, ends_size), block.slice(ends_size, ends_size)
    data = block.slice(2 * ends_size)
    columns = {"key": (key_ends, data.slice(0, part.key_bytes)), "value": (value_ends, data.slice(part.key_bytes))}
    piece = pa.table(
        {
            name: pa.Array.from_buffers(pa.large_binary(), part.rows, [None, *buffers], null_count=0)
            for name, buffers in columns.items()
        }
    )
    try:
        piece.validate(full=True)  # Arrow trusts offsets, and damaged ones would crash the process
    except pa.ArrowInvalid as exc:
        raise _unusable("read", stored.path, exc) from exc
    return piece


def _buffers(column: pa.LargeBinaryArray, start: int, end: int) -> tuple[memoryview, memoryview]:
    """Offsets, counted from 0, and bytes of some rows."""
    import numpy as np

    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64, end - start + 1, (column.offset + start) * _OFFSET_BYTES)
    return memoryview(ends - ends[0]).cast("B"), memoryview(data or b"")[int(ends[0]) : int(ends[-1])]


def _fill(file: Any, target: memoryview) -> None:
    while target:
        count = file.readinto(target)
        if not count:
            raise OSError(errno.EIO, "the file is too short")
        target = target[count:]


def _unusable(verb: str, path: Path, exc: Exception) -> ShardWriteError:
    full = isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = (
        "the disk is full; free some space, or set output.local_root to a larger disk"
        if full
        else "set output.local_root to a sound disk that all workers share, or DaskWriteOptions.shuffle to 'p2p'"
    )
    return ShardWriteError(f"cannot {verb} the encoded rows in {path}: {exc}; {advice}")
