"""The benchmark compares each import with what it is promised to be compared with."""

from __future__ import annotations

from tests.benchmarks.scripts import run_script


def test_small_run_compares_imports() -> None:
    (results,) = run_script("startup.py", "--repeat", 1)
    assert [row[:2] for row in results[1:]] == [
        ["`import shardyfusion`", "`pass`"],
        ["`from shardyfusion.writer.dask import write_hash_sharded`", "`import dask.dataframe, distributed`"],
    ]
    for _, _, mine, theirs, more, _ in results[1:]:
        assert abs(int(mine) - int(theirs) - int(more)) <= 1
