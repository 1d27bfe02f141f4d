"""Small snapshots written by the real writer, and single objects changed behind its back."""

from __future__ import annotations

from typing import Any

import dask

from shardyfusion import ColumnWriteInput, HashShardedWriteConfig, ValueSpec
from shardyfusion.layout import BINARY_TYPE
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.writer.dask import write_hash_sharded
from tests.writer.frames import frame_of

ROWS = {key * 7: f"value of {key * 7}".encode() for key in range(60)}


def write(prefix: str, factory: Any, rows: dict[int, bytes] = ROWS, *, run_id: str = "run-1", num_dbs: int = 3) -> None:
    config = HashShardedWriteConfig(s3_prefix=prefix, num_dbs=num_dbs, adapter_factory=factory, run_id=run_id)
    frame = frame_of(id=list(rows), payload=list(rows.values()))
    with dask.config.set(scheduler="synchronous"):
        write_hash_sharded(frame, config, ColumnWriteInput("id", ValueSpec.binary_col("payload")))


def names(prefix: str, part: str) -> list[str]:
    """The objects whose name holds `part`."""
    return [info.name for info in open_store(StoreAddress.parse(prefix)).list() if part in info.name]


def change(prefix: str, name: str, body: bytes | None) -> bytes:
    """Replace an object by other bytes, or remove it; returns what it was."""
    store = open_store(StoreAddress.parse(prefix))
    before = store.get(name).body
    if body is None:
        store.delete([name])
    else:
        store.put(name, body, content_type=BINARY_TYPE)
    return before


def flipped(body: bytes, bit: int) -> bytes:
    changed = bytearray(body)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)
