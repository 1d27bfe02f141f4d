"""Fixtures of the writer's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from distributed import LocalCluster

from shardyfusion import HashShardedWriteConfig, SqliteFactory


@pytest.fixture(autouse=True)
def synchronous():
    """One thread unless a test says otherwise: quick, and failures have short tracebacks."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def cluster(s3: str) -> Iterator[LocalCluster]:
    """Two worker processes. After `s3`, so that they inherit its environment."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def memory_prefix() -> str:
    return f"memory://{uuid4().hex}/snap"


@pytest.fixture
def config(memory_prefix: str) -> HashShardedWriteConfig:
    """Three SQLite shards in memory."""
    return HashShardedWriteConfig(num_dbs=3, s3_prefix=memory_prefix, adapter_factory=SqliteFactory())


@pytest.fixture
def counted(tmp_path: Path) -> Callable[[dd.DataFrame], tuple[dd.DataFrame, Callable[[], int]]]:
    """Wraps a frame so that each evaluation of a partition leaves a mark; returns it with the count."""

    def wrap(ddf: dd.DataFrame) -> tuple[dd.DataFrame, Callable[[], int]]:
        marks = tmp_path / f"marks-{uuid4().hex}"
        marks.mkdir()

        def mark(part: pd.DataFrame) -> pd.DataFrame:
            (marks / uuid4().hex).touch()
            return part

        return ddf.map_partitions(mark, meta=ddf._meta), lambda: len(list(marks.iterdir()))

    return wrap
