"""Frames to write, and ways to look at what was written."""

from __future__ import annotations

from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

from shardyfusion import ShardedReader
from shardyfusion.storage import StoreAddress, open_store

Rows = dict[int, bytes]


def make_rows(count: int, seed: int = 7) -> Rows:
    """`count` distinct integer keys in random order, with values of 0 to 40 bytes (not all of them text)."""
    rng = np.random.default_rng(seed)
    keys = rng.choice(2**62, size=count, replace=False)
    return {int(key): rng.bytes(int(rng.integers(0, 41))) for key in keys}


def parquet_frame(rows: Rows, directory: Path, partitions: int) -> dd.DataFrame:
    """The rows as a Dask DataFrame read from Parquet, where bytes stay bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"id": list(rows), "payload": pd.Series(list(rows.values()), dtype=object)})
    for number, part in enumerate(np.array_split(np.arange(len(frame)), partitions)):
        frame.iloc[part].to_parquet(directory / f"part-{number:03d}.parquet")
    return dd.read_parquet(directory)


def frame_of(**columns: object) -> dd.DataFrame:
    """Columns as given, in two partitions, with Dask's conversion of object columns switched off."""
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_pandas(pd.DataFrame(columns), npartitions=2, sort=False)


def contents(prefix: object) -> dict[bytes, bytes]:
    """Every stored (key, value) of the snapshot that is served."""
    with ShardedReader(str(prefix)) as reader:
        return dict(pair for db_id in range(reader.snapshot_info().num_dbs) for pair in reader.scan(db_id))


def object_names(prefix: object) -> list[str]:
    return [info.name for info in open_store(StoreAddress.parse(str(prefix))).list()]
