"""Tiny writes by the real writer, faults around their requests, and what must be true of a prefix afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import dask.dataframe as dd

from shardyfusion import ColumnWriteInput, HashShardedWriteConfig, ShardedReader, SqliteFactory, ValueSpec
from shardyfusion.commits import CommitLog, CommitRecord, served_manifest
from shardyfusion.errors import StorageError, StoreUnavailableError
from shardyfusion.storage import ObjectStore, StoreAddress, open_store, wrapping_stores
from shardyfusion.testing import FaultStore, StoreCall
from shardyfusion.writer.dask import write_hash_sharded
from shardyfusion.writer.result import BuildResult
from tests.writer.frames import frame_of

INPUT = ColumnWriteInput("key", ValueSpec.binary_col("v"))
KEYS = (1, 2, 3, 4)
Fault = Callable[[StoreCall], None]


@cache
def frame(version: str) -> dd.DataFrame:
    return frame_of(key=list(KEYS), v=[f"{version}-{key}" for key in KEYS])


def write(prefix: str, run_id: str | None = None, *, version: str | None = None, **changes: Any) -> BuildResult:
    """Two SQLite shards whose values tell the version, by default the run id."""
    config = HashShardedWriteConfig(
        num_dbs=2, s3_prefix=prefix, adapter_factory=SqliteFactory(), run_id=run_id, **changes
    )
    return write_hash_sharded(frame(version or run_id or "any"), config, INPUT)


def store_of(prefix: str) -> ObjectStore:
    return open_store(StoreAddress.parse(prefix))


def history(prefix: str) -> list[CommitRecord]:
    """Every commit, oldest first. Fails where the chain has a gap or a run id is committed twice."""
    log = CommitLog(store_of(prefix))
    head = log.state().head
    records = list(log.records(1, head.seq)) if head else []
    runs = [record.run_id for record in records if record.kind == "build"]
    assert len(runs) == len(set(runs)), f"committed twice: {runs}"
    return records


def runs_of(prefix: str) -> list[str]:
    return [record.run_id for record in history(prefix)]


def served_version(prefix: str) -> str:
    """What a fresh reader serves; every key must be of the one version."""
    with ShardedReader(prefix) as reader:
        values = reader.multi_get(KEYS)
    versions = {str(value, "ascii").rpartition("-")[0] if value else None for value in values.values()}
    assert len(versions) == 1, values
    (version,) = versions
    assert version is not None
    assert all(value == f"{version}-{key}".encode() for key, value in values.items())
    return version


def served_run(prefix: str) -> str:
    return served_manifest(store_of(prefix)).run_id


def next_tick(prefix: str) -> None:
    """Wait until the store's clock shows another time: whole seconds on S3, the kernel's ticks in a file system."""
    store = store_of(prefix)
    before = store.now()
    while store.now() == before:
        time.sleep(0.02)


def names_below(prefix: str, part: str) -> list[str]:
    return [info.name for info in store_of(prefix).list(part)]


@dataclass(frozen=True)
class Put:
    """One conditional request of a write, by what it is for."""

    verb: str
    start: str
    end: str = ""

    def __call__(self, call: StoreCall) -> bool:
        return call.verb == self.verb and call.name.startswith(self.start) and call.name.endswith(self.end)


RUN_RECORD = Put("create", "runs/", "/run.yaml")
PUTS = {
    "outcome": Put("create", "runs/outcome/"),
    "manifest": Put("create", "manifests/"),
    "record": Put("create", "commits/"),
    "pointer-create": Put("create", "_CURRENT"),
    "pointer-replace": Put("replace", "_CURRENT"),
}


def lose_answer(call: StoreCall) -> None:
    """Apply the request, whatever comes of it, and tell the caller nothing."""
    with suppress(StorageError):
        call.perform()
    raise StoreUnavailableError(f"{call}: the answer was lost")


def answer_409(call: StoreCall) -> None:
    raise StoreUnavailableError(f"{call}: HTTP 409, another request for the same object was under way")


def first(count: int, put: Put, fault: Fault) -> Fault:
    """`fault` for the first `count` requests of a kind."""
    left = [count]

    def around(call: StoreCall) -> None:
        if left[0] and put(call):
            left[0] -= 1
            fault(call)

    return around


def at_call(number: int, act: Callable[[], object], counts: Callable[[StoreCall], bool] = lambda call: True) -> Fault:
    """Calls `act` just before the `number`-th request that counts, over all stores that get this fault."""
    seen = [0]

    def around(call: StoreCall) -> None:
        seen[0] += counts(call)
        if seen[0] == number and counts(call):
            act()

    return around


@contextmanager
def faults(*before: Fault) -> Generator[list[StoreCall]]:
    """Every store that is opened in the block has these faults; yields the requests so far."""
    calls: list[StoreCall] = []

    def each(call: StoreCall) -> None:
        calls.append(call)
        for fault in before:
            fault(call)

    with wrapping_stores(lambda store: FaultStore(store, before=each)):
        yield calls


def deletions(calls: Iterable[StoreCall]) -> list[str]:
    return [str(call) for call in calls if call.verb in ("delete", "abort_uploads")]
