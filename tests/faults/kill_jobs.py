"""Small builds to be stopped in other processes: `python -m tests.faults.kill_jobs` reads orders, one JSON per line.

With `fork`, each order is carried out by a child of this process, which has imported everything, and answered by a line
that says how it went; without, it is carried out here, and the process is gone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import boto3  # noqa: F401 (so that children need not)
import dask
import dask.dataframe as dd
import pandas as pd

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    LocalSlateDbFactory,
    OutputOptions,
    SlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.shard_contract import DbAdapterFactory
from shardyfusion.testing import EXIT_STATUS, WatchedFactory, exit_at, kill_child_at
from shardyfusion.writer.dask import write_hash_sharded
from shardyfusion.writer.result import BuildResult

KEYS = range(40)
ENGINES: Mapping[str, DbAdapterFactory] = {
    "sqlite": SqliteFactory(),
    "slatedb": SlateDbFactory(),
    "local_slatedb": LocalSlateDbFactory(),
}


def rows_of(version: str) -> dict[int, bytes]:
    return {key: f"{version} {key}".encode() for key in KEYS}


@cache
def frame(version: str) -> dd.DataFrame:
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_pandas(pd.DataFrame({"key": KEYS, "v": list(rows_of(version).values())}), npartitions=2)


@dataclass(frozen=True)
class BuildJob:
    """A build of four shards whose values tell the version. `scratch` is for the shards while they are built."""

    prefix: str
    engine: str
    version: str
    run_id: str
    scratch: str

    def __call__(self) -> BuildResult:
        config = HashShardedWriteConfig(
            num_dbs=4,
            s3_prefix=self.prefix,
            adapter_factory=WatchedFactory(ENGINES[self.engine]),
            run_id=self.run_id,
            output=OutputOptions(local_root=self.scratch),
        )
        with dask.config.set(scheduler="synchronous"):
            return write_hash_sharded(frame(self.version), config, ColumnWriteInput("key", ValueSpec.binary_col("v")))

    @property
    def directories(self) -> list[str]:
        """Whose files are of interest."""
        return [self.scratch, *([self.prefix] if "://" not in self.prefix else [])]


class Killer:
    """A process that stops builds by `os._exit`: in children of its own, or, without `fork`, itself."""

    def __init__(self, *, fork: bool) -> None:
        self._fork = fork
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.kill_jobs", *(["fork"] if fork else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def stop(self, job: BuildJob, number: int) -> None:
        """Have the job stopped at a point."""
        self._process.stdin.write(json.dumps({"job": asdict(job), "number": number}) + "\n")
        if not self._fork:
            assert self.end() == EXIT_STATUS
            return
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer == "stopped\n", answer

    def end(self) -> int:
        """Wait for the process to end; returns its exit status."""
        try:
            self._process.stdin.close()
            return self._process.wait(timeout=120)
        finally:
            self._process.stdout.close()


def main(*, fork: bool) -> None:
    if fork:  # everything is imported now
        with tempfile.TemporaryDirectory() as directory:
            BuildJob(f"{directory}/snap", "sqlite", "v", "v", directory)()
    for line in sys.stdin:
        order = json.loads(line)
        job, number = BuildJob(**order["job"]), order["number"]
        if not fork:
            exit_at(number, job, directories=job.directories)
        try:
            kill_child_at(number, job, directories=job.directories)
            print("stopped", flush=True)
        except BaseException as exc:
            traceback.print_exc()
            print(repr(exc), flush=True)


if __name__ == "__main__":
    main(fork=sys.argv[1:] == ["fork"])
