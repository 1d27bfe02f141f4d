"""Encoded partitions as files on a disk that all workers share: an exchange that holds no rows in memory.

Each execution of an encode task writes a file of its own: the lengths of all keys as 8-byte integers, those of all
values, the keys, the values, sorted by shard. Where a shard begins in each of these is told by the task's result and
not by the file, so that a damaged one cannot mislead whoever reads it. Knows no Dask.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardyfusion.errors import ShardWriteError
from shardyfusion.writer.encode import EncodedPartition, PartitionReport

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Integers = npt.NDArray[np.int64]

_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class StoredPartition:
    """Where the rows of one partition are: those of shard `s` begin at `edges[:, s]` and end at `edges[:, s + 1]`,
    counted in rows, in bytes of keys and in bytes of values. Without rows there is no file."""

    report: PartitionReport
    path: Path
    edges: Integers

    def spans(self, db_id: int) -> list[tuple[int, int]]:
        """First byte and size of the four parts of a shard: lengths of keys and of values, keys, values."""
        rows, key_bytes, _ = self.edges[:, -1].tolist()
        row, key, value = self.edges[:, db_id].tolist()
        lengths, keys, values = (self.edges[:, db_id + 1] - self.edges[:, db_id]).tolist()
        return [
            (_LENGTH_BYTES * row, _LENGTH_BYTES * lengths),
            (_LENGTH_BYTES * (rows + row), _LENGTH_BYTES * lengths),
            (2 * _LENGTH_BYTES * rows + key, keys),
            (2 * _LENGTH_BYTES * rows + key_bytes + value, values),
        ]


def store_partition(encoded: EncodedPartition, directory: Path) -> StoredPartition:
    """Write the rows of a partition into a new file of `directory`.

    Raises:
        ShardWriteError: the disk is full, or the directory is not there.
    """
    import numpy as np
    import pyarrow as pa

    path = directory / f"{encoded.report.partition:06d}-{uuid.uuid4().hex[:8]}.rows"
    edges = np.zeros((3, len(encoded.ends) + 1), np.int64)
    if encoded.rows is None:
        return StoredPartition(report=encoded.report, path=path, edges=edges)
    columns = [encoded.rows.column(name).cast(pa.large_binary()).combine_chunks() for name in ("key", "value")]
    offsets = [np.frombuffer(each.buffers()[1], np.int64, len(each) + 1, each.offset * 8) for each in columns]
    edges[0, 1:] = encoded.ends
    for each, place in zip(offsets, (1, 2), strict=True):
        edges[place] = each[edges[0]] - each[0]
    try:
        with path.open("wb") as file:
            for each in offsets:
                file.write(np.diff(each).data)
            for each, column in zip(offsets, columns, strict=True):
                file.write(memoryview(column.buffers()[2] or b"")[int(each[0]) : int(each[-1])])
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise _unusable("write", path, exc) from exc
    return StoredPartition(report=encoded.report, path=path, edges=edges)


def load_rows(stored: Sequence[StoredPartition], db_id: int) -> pa.Table | None:
    """The rows of one shard from all partitions, in their order; None if there are none. They are read and not mapped:
    a system maps far more of a file than is looked at, and a cluster takes that for memory of the worker.

    Raises:
        ShardWriteError: a file is not there, or damaged in a way that shows; what does not show, the digests tell.
    """
    import numpy as np
    import pyarrow as pa

    present = [each for each in stored if each.edges[0, db_id] < each.edges[0, db_id + 1]]
    if not present:
        return None
    sizes = [each.edges[:, db_id + 1] - each.edges[:, db_id] for each in present]
    rows, key_bytes, value_bytes = np.sum(sizes, axis=0).tolist()
    ends = [np.zeros(rows + 1, np.int64) for _ in range(2)]
    data = [pa.allocate_buffer(size) for size in (key_bytes, value_bytes)]
    room = [*(each[1:].data.cast("B") for each in ends), *map(memoryview, data)]
    for each in present:
        room = _read(each, db_id, room)
    columns = {}
    for name, lengths, buffer in zip(("key", "value"), ends, data, strict=True):
        # Arrow trusts offsets, and wrong ones would crash the process.
        if lengths.min() < 0 or lengths.max() > buffer.size or lengths.sum() != buffer.size:
            raise _unusable("read", present[0].path.parent, OSError(errno.EIO, "the lengths of rows are damaged"))
        buffers = [None, pa.py_buffer(np.cumsum(lengths, out=lengths)), buffer]
        columns[name] = pa.Array.from_buffers(pa.large_binary(), rows, buffers, null_count=0)
    return pa.table(columns)


def _read(stored: StoredPartition, db_id: int, room: list[memoryview]) -> list[memoryview]:
    """Read the four parts of a shard, each to the beginning of its room. Returns the room that is left."""
    try:
        file = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = zip(stored.spans(db_id), room, strict=True)
            return [_fill(file, place, size, target) for (place, size), target in parts]
        finally:
            os.close(file)
    except OSError as exc:
        raise _unusable("read", stored.path, exc) from exc


def _fill(file: int, place: int, size: int, room: memoryview) -> memoryview:
    while size:
        count = os.preadv(file, [room[:size]], place)
        if not count:
            raise OSError(errno.EIO, "the file is too short")
        place, size, room = place + count, size - count, room[count:]
    return room


def _unusable(verb: str, path: Path, exc: Exception) -> ShardWriteError:
    full = isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = (
        "the disk is full; free some space, or set output.local_root to a larger disk"
        if full
        else "set output.local_root to a sound disk that all workers share, or DaskWriteOptions.shuffle to 'p2p'"
    )
    return ShardWriteError(f"cannot {verb} the encoded rows in {path}: {exc}; {advice}")
