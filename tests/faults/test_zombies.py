"""The same shard task executed twice: neither gets in the other's way, and only one of them is ever referenced."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pytest
from dask._task_spec import Task, TaskRef, convert_legacy_graph
from dask.local import get_sync

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    LocalSlateDbFactory,
    SlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.commits import load_manifest, served_manifest
from shardyfusion.layout import name_under
from shardyfusion.shard_contract import SealedShard, ShardTarget
from shardyfusion.storage import ObjectStore, open_store
from shardyfusion.writer.dask import write_hash_sharded
from tests.writer.frames import contents, make_rows, parquet_frame

ROWS = make_rows(1_000)
STORED = {key.to_bytes(8, "big"): value for key, value in ROWS.items()}
PAYLOAD = ColumnWriteInput("id", ValueSpec.binary_col("payload"))
BACKENDS = {"sqlite": SqliteFactory(), "slatedb": SlateDbFactory(), "slatedb-local": LocalSlateDbFactory()}


@dataclass
class EveryShardTwice:
    """A Dask scheduler that runs every shard task twice at once and takes one of the answers. It does not wait for the
    other: that one is a zombie."""

    choose: Callable[[Sequence[Future[Any]]], Future[Any]]
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16))
    zombies: list[Future[Any]] = field(default_factory=list)

    def __call__(self, graph: Mapping[Any, Any], keys: Any, **kwargs: Any) -> Any:
        nodes = dict(convert_legacy_graph(graph.__dask_graph__() if hasattr(graph, "__dask_graph__") else dict(graph)))
        for key, node in nodes.items():
            if isinstance(key, tuple) and key[0].startswith("shardyfusion-shard-"):
                needed = tuple(node.dependencies)
                nodes[key] = Task(key, partial(self._twice, node, needed), *(TaskRef(name) for name in needed))
        return get_sync(nodes, keys, **kwargs)

    def _twice(self, node: Any, needed: Sequence[Any], *values: Any) -> Any:
        run = [self.pool.submit(node, dict(zip(needed, values, strict=True))) for _ in range(2)]
        taken = self.choose(run)
        self.zombies += [future for future in run if future is not taken]
        return taken.result(60)


class Stalling:
    """A backend of which one execution of each shard seals late: after the other one has, or after `released`."""

    min_key_bytes = 1
    max_key_bytes = 65_535

    def __init__(self, inner: Any, *, first_is_late: bool, released: threading.Event | None = None) -> None:
        self.inner, self.first_is_late, self.released = inner, first_is_late, released
        self.opened: dict[int, list[str]] = {}
        self.sealed: dict[int, threading.Event] = {}
        self.lock = threading.Lock()

    @property
    def backend(self) -> Any:
        return self.inner.backend

    def check(self, address: Any) -> None:
        self.inner.check(address)

    def open(self, target: ShardTarget) -> StallingAdapter:
        with self.lock:
            opened = self.opened.setdefault(target.db_id, [])
            opened.append(target.directory)
            sealed = self.sealed.setdefault(target.db_id, threading.Event())
            late = (len(opened) == 1) == self.first_is_late
        return StallingAdapter(self.inner.open(target), sealed, (self.released or sealed) if late else None)


@dataclass
class StallingAdapter:
    inner: Any
    sealed: threading.Event
    waits_for: threading.Event | None

    def write_arrow(self, batch: Any) -> None:
        self.inner.write_arrow(batch)

    def seal(self) -> SealedShard:
        assert self.waits_for is None or self.waits_for.wait(60)
        sealed = self.inner.seal()
        self.sealed.set()
        return sealed

    def __enter__(self) -> StallingAdapter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.inner.close()


@pytest.fixture
def source(tmp_path: Path) -> dd.DataFrame:
    return parquet_frame(ROWS, tmp_path / "in", 3)


def job(factory: Any, prefix: Path) -> HashShardedWriteConfig:
    return HashShardedWriteConfig(num_dbs=3, s3_prefix=prefix, adapter_factory=factory, run_id="nightly")


def directories(store: ObjectStore) -> set[str]:
    """The attempts of which the store holds anything."""
    return {"/".join(info.name.split("/")[:4]) for info in store.list("shards/")}


def referenced(store: ObjectStore) -> set[str]:
    """The attempts that the served manifest names."""
    manifest = load_manifest(store, served_manifest(store))
    return {str(name_under(store.url, shard.db_url or "")) for shard in manifest.shards}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(2))
def test_two_executions_at_once_share_no_path_and_one_is_referenced(
    backend: str, seed: int, source: dd.DataFrame, tmp_path: Path
) -> None:
    """One stalls until the other has sealed. Whichever answer Dask takes is published; the other is swept."""
    rng = random.Random(seed)
    factory = Stalling(BACKENDS[backend], first_is_late=seed % 2 == 0)
    config = job(factory, tmp_path / "snap")
    twice = EveryShardTwice(choose=lambda run: rng.choice([run[0], run[1]]) if wait(run) else run[0])
    with dask.config.set(scheduler=twice), twice.pool:
        result = write_hash_sharded(source, config, PAYLOAD)
    store = open_store(config.address())
    opened = [name for names in factory.opened.values() for name in names]
    assert len(opened) == len(set(opened)) == 6, f"seed {seed}"
    losers = {result.attempt.directory for future in twice.zombies for result in future.result()}
    winners = {winner.directory for winner in result.winners}
    assert winners | losers == set(opened), f"seed {seed}: winners {winners}, losers {losers}"
    assert referenced(store) == directories(store) == winners, f"seed {seed}"
    assert contents(config.s3_prefix) == STORED, f"seed {seed}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zombie_that_wakes_after_the_publish_changes_nothing(
    backend: str, source: dd.DataFrame, tmp_path: Path
) -> None:
    """It seals bytes that nothing names. The same run id, asked again, sweeps them."""
    released = threading.Event()
    factory = Stalling(BACKENDS[backend], first_is_late=True, released=released)
    config = job(factory, tmp_path / "snap")
    twice = EveryShardTwice(choose=lambda run: next(as_completed(run)))
    with twice.pool:
        with dask.config.set(scheduler=twice):
            result = write_hash_sharded(source, config, PAYLOAD)
        assert len(twice.zombies) == 3
        assert not any(zombie.done() for zombie in twice.zombies)
        released.set()
        late = {result.attempt.directory for zombie in twice.zombies for result in zombie.result(60)}
    store = open_store(config.address())
    winners = {winner.directory for winner in result.winners}
    assert directories(store) == winners | late
    assert referenced(store) == winners
    assert contents(config.s3_prefix) == STORED
    again = write_hash_sharded(source, config, PAYLOAD)
    assert (again.reused, again.manifest_ref.ref) == (True, result.manifest_ref.ref)
    assert directories(store) == winners
    assert contents(config.s3_prefix) == STORED
