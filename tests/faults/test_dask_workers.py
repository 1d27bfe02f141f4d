"""Workers and drivers that are killed, one phase after the other, on a real cluster.

Whatever dies, the write ends with every row in place, or with an error of ours and the old snapshot still served.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import dask.dataframe as dd
import pytest
from distributed import Client, KilledWorker, LocalCluster

from shardyfusion import (
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    RetryConfig,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.errors import ShardCoverageError, ShardWriteError, ShardyfusionError, ValueEncodingError
from shardyfusion.run_registry import recorded_runs
from shardyfusion.storage import ObjectStore, open_store, wrapping_stores
from shardyfusion.testing import FaultStore
from shardyfusion.writer.dask import write_hash_sharded
from tests.faults.dask_faults import (
    BACKENDS,
    Bell,
    KillAtTask,
    RingingEncoder,
    RingingFactory,
    kill,
    killing_who_rings,
    worker_pids,
)
from tests.writer.frames import Rows, contents, make_rows, parquet_frame

SHARDS = 4
PARTITIONS = 4
ROWS = make_rows(2_000)
OLD = make_rows(50, seed=8)
PAYLOAD = ColumnWriteInput("id", ValueSpec.binary_col("payload"))

PHASES = ("encode", "direct", "disk", "tasks", "p2p", "build", "seal", "publish")
SHUFFLE_TASKS = {
    "direct": ("shardyfusion-piece", "shardyfusion-gate"),
    "disk": ("shardyfusion-files", "shardyfusion-gate"),
    "tasks": ("set_partitions", "taskshuffle", "sort_index"),
    "p2p": ("shuffle-transfer", "shuffle-barrier", "p2pshuffle"),
}
ONCE = ("shuffle-barrier", "shardyfusion-gate", "shardyfusion-files")
"""Tasks of which a write has but one."""

SEEDS = [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]


def stored(rows: Rows) -> dict[bytes, bytes]:
    return {key.to_bytes(8, "big"): value for key, value in rows.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("input")
    parquet_frame(ROWS, directory, PARTITIONS)
    return directory


@pytest.fixture(scope="module")
def old_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("old")
    parquet_frame(OLD, directory, 1)
    return directory


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Nannies bring back what is killed. Some time after a death the cluster looks whether its worker is back, and gives
    it up if it is being killed again just then: not within these tests. Where no worker comes back at all, a computation
    would wait for one for ever."""
    patient = {"distributed.deploy.lost-worker-timeout": "2h", "distributed.scheduler.no-workers-timeout": "90s"}
    with (
        dask.config.set(patient),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client of the cluster, once both workers are up again."""
    with Client(cluster) as client, dask.config.set(scheduler=None):
        client.wait_for_workers(2, timeout=120)
        yield client


@pytest.fixture
def config(tmp_path: Path, old_source: Path) -> HashShardedWriteConfig:
    """A prefix that serves an old snapshot."""
    config = HashShardedWriteConfig(num_dbs=SHARDS, s3_prefix=tmp_path / "snap", adapter_factory=SqliteFactory())
    with dask.config.set(scheduler="synchronous"):
        write_hash_sharded(dd.read_parquet(old_source), replace(config, run_id="old"), PAYLOAD)
    return config


@pytest.fixture
def bell(tmp_path: Path) -> Bell:
    (tmp_path / "bell").mkdir()
    return Bell(tmp_path / "bell")


def store_of(config: HashShardedWriteConfig) -> ObjectStore:
    return open_store(config.address())


def check_nothing_torn(config: HashShardedWriteConfig, write: Callable[[], Any], say: str) -> str:
    """Run `write`; then the new snapshot is served if it returned, and the old one if it raised an error of ours."""
    try:
        result, error = write(), None
    except ShardyfusionError as exc:
        result, error = None, exc
    if error is not None:
        assert contents(config.s3_prefix) == stored(OLD), f"{say}: {error}"
        return f"raised {error!r}"
    assert (result.rows, result.input_rows) == (len(ROWS), len(ROWS)), say
    assert contents(config.s3_prefix) == stored(ROWS), say
    winners = tuple(f"{winner.directory}/" for winner in result.winners)
    shards = [info.name for info in store_of(config).list(f"shards/run_id={result.run_id}/")]
    assert all(name.startswith(winners) for name in shards), f"{say}: losing attempts are left: {shards}"
    return "published"


# -- killed workers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_worker_costs_no_row(
    phase: str,
    seed: int,
    cluster: LocalCluster,
    client: Client,
    source: Path,
    config: HashShardedWriteConfig,
    bell: Bell,
) -> None:
    rng = random.Random(f"{phase} {seed}")
    backend = BACKENDS[seed % 2]
    bell = replace(bell, hits=1 if seed < 2 else 1 + seed % 3)
    options, input = DaskWriteOptions(), PAYLOAD
    config = replace(config, adapter_factory=backend)
    match phase:
        case "encode":
            input = ColumnWriteInput(
                "id",
                ValueSpec.callable_encoder(RingingEncoder(bell, rng.choice(list(ROWS))), columns=["id", "payload"]),
            )
        case "build" | "seal":
            ringing = RingingFactory(backend, bell, rng.choice(("seal", "sealed")) if phase == "seal" else phase)
            config = replace(config, adapter_factory=ringing)
        case "direct" | "disk" | "tasks" | "p2p":
            options = DaskWriteOptions(shuffle=phase)
    with killer(phase, cluster, bell, rng) as killed:
        end = check_nothing_torn(
            config,
            lambda: write_hash_sharded(dd.read_parquet(source), config, input, options),
            f"phase {phase}, seed {seed}",
        )
    assert killed, f"phase {phase}, seed {seed}: nobody was killed, and the write {end}"


@contextmanager
def killer(phase: str, cluster: LocalCluster, bell: Bell, rng: random.Random) -> Iterator[list[int]]:
    if phase in SHUFFLE_TASKS:
        parts = rng.choice(SHUFFLE_TASKS[phase])
        plugin = KillAtTask(
            cluster, (parts,), number=1 if parts in ONCE else rng.randint(1, 4), delay=rng.uniform(0, 0.05)
        )
        cluster.scheduler.add_plugin(plugin)
        try:
            yield plugin.killed
        finally:
            cluster.scheduler.remove_plugin(plugin.name)
    elif phase == "publish":
        killed: list[int] = []
        stage = rng.choice(("runs/outcome/", "manifests/", "commits/", "_CURRENT"))

        def kill_one(call: Any) -> None:
            if call.verb in ("create", "put", "replace") and call.name.startswith(stage) and not killed:
                killed.append(rng.choice(worker_pids(cluster)))
                kill(killed[0])

        with wrapping_stores(lambda store: FaultStore(store, before=kill_one)):
            yield killed
    else:
        with killing_who_rings(bell, cluster, rng) as killed:
            yield killed


@dataclass(frozen=True)
class KillsItsWorker(SqliteFactory):
    """A shard that takes every worker down which builds it."""

    db_id: int = 2

    def open(self, target: Any) -> Any:
        if target.db_id == self.db_id:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(target)


def test_when_workers_die_too_often_the_error_names_the_shards(
    cluster: LocalCluster, client: Client, source: Path, config: HashShardedWriteConfig
) -> None:
    """Dask may blame another task that waited on the same worker; what was not built is told all the same."""
    allowed, cluster.scheduler.allowed_failures = cluster.scheduler.allowed_failures, 0
    try:
        with pytest.raises(
            ShardCoverageError, match=r"workers died too often while working on .*shards_missing=\["
        ) as caught:
            write_hash_sharded(dd.read_parquet(source), replace(config, adapter_factory=KillsItsWorker()), PAYLOAD)
    finally:
        cluster.scheduler.allowed_failures = allowed
    assert isinstance(caught.value.__cause__, KilledWorker)
    assert 2 in caught.value.facts["shards_missing"]
    assert caught.value.facts["of_shards"] == SHARDS
    assert contents(config.s3_prefix) == stored(OLD)
    run_id = caught.value.facts["run_id"]
    assert run_id in str(caught.value)
    (failed,) = [run for run in recorded_runs(store_of(config)) if run.run_id == run_id]
    assert failed.record is not None
    assert (failed.record.status, failed.record.error_type) == ("failed", "ShardCoverageError")


@pytest.mark.parametrize(
    ("task", "step", "db_id"),
    [
        (f"('shardyfusion-shard-{'0' * 32}', 3)", "shard 3", 3),
        (f"('shardyfusion-shard-{'0' * 32}', 4, 7)", "shards 4 to 7", None),
        (f"('shardyfusion-piece-{'0' * 32}', 1, 3)", "partition 1", None),
        ("('p2pshuffle-1f', 1)", "the shuffle", None),
        ("('split-taskshuffle-1f', 1, 0)", "the shuffle", None),
        ("('read_parquet-1f', 1)", "the input", None),
    ],
)
def test_the_step_at_which_workers_died_is_named(
    task: str, step: str, db_id: int | None, source: Path, config: HashShardedWriteConfig
) -> None:
    def give_up(graph: Any, keys: Any, **_: Any) -> Any:
        raise KilledWorker(task, None, 3)

    with dask.config.set(scheduler=give_up), pytest.raises(ShardCoverageError, match=f"working on {step};") as caught:
        write_hash_sharded(dd.read_parquet(source), config, PAYLOAD)
    assert caught.value.facts.get("db_id") == db_id
    assert caught.value.facts["shards_missing"] == list(range(SHARDS))


# -- a killed driver ---------------------------------------------------------------------------------------------------

_DRIVER = """
import os, signal, sys
import dask, dask.dataframe as dd
from shardyfusion import ColumnWriteInput, HashShardedWriteConfig, SqliteFactory, ValueSpec
from shardyfusion.testing import FaultStore, wrapping_stores
from shardyfusion.writer.dask import write_hash_sharded

source, prefix, stage = sys.argv[1:]

def die(call):
    if call.verb in ("create", "put", "replace") and call.name.startswith(stage):
        os.kill(os.getpid(), signal.SIGKILL)

config = HashShardedWriteConfig(num_dbs=4, s3_prefix=prefix, adapter_factory=SqliteFactory(), run_id="nightly")
with wrapping_stores(lambda store: FaultStore(store, before=die)), dask.config.set(scheduler="synchronous"):
    write_hash_sharded(dd.read_parquet(source), config, ColumnWriteInput("id", ValueSpec.binary_col("payload")))
"""


@pytest.mark.parametrize("stage", ["manifests/", "commits/", "_CURRENT"])
def test_a_killed_driver_s_run_is_finished_without_reading_the_input(
    stage: str, source: Path, config: HashShardedWriteConfig
) -> None:
    """Killed between the outcome and the manifest, the commit record, or the pointer."""
    died = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(source), str(config.s3_prefix), stage],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    committed = stage == "_CURRENT"
    assert contents(config.s3_prefix) == (stored(ROWS) if committed else stored(OLD))
    before = {info.name: info.modified for info in store_of(config).list("shards/")}

    def never(part: Any) -> Any:
        raise AssertionError("the input was read")

    frame = dd.read_parquet(source)
    with dask.config.set(scheduler="synchronous"):
        result = write_hash_sharded(
            frame.map_partitions(never, meta=frame._meta), replace(config, run_id="nightly"), PAYLOAD
        )
    assert (result.rows, result.reused) == (len(ROWS), True)
    assert contents(config.s3_prefix) == stored(ROWS)
    assert {info.name: info.modified for info in store_of(config).list("shards/")} == before
    states = [run.state(store_of(config).now()) for run in recorded_runs(store_of(config)) if run.run_id == "nightly"]
    assert states == ["running", "succeeded"], "the killed execution counts as alive until its lease expires"


# -- what is not repeated ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailsAt:
    """An encoder with a bug for one key; each call for it leaves a mark."""

    marks: Path
    key: int

    def __call__(self, row: Any) -> bytes:
        if row.id == self.key:
            (self.marks / uuid4().hex).touch()
            raise RuntimeError("no such user")
        return row.payload


def test_an_encoder_s_bug_names_key_and_partition_and_runs_once(
    client: Client, source: Path, config: HashShardedWriteConfig, tmp_path: Path
) -> None:
    (tmp_path / "marks").mkdir()
    key = list(ROWS)[3 * len(ROWS) // PARTITIONS]  # the first of the last partition
    encoder = FailsAt(tmp_path / "marks", key)
    with pytest.raises(ValueEncodingError, match="RuntimeError: no such user") as caught:
        write_hash_sharded(
            dd.read_parquet(source),
            config,
            ColumnWriteInput("id", ValueSpec.callable_encoder(encoder, columns=["id", "payload"])),
            DaskWriteOptions(retries=3),
        )
    assert (caught.value.facts["key"], caught.value.facts["partition"]) == (key, PARTITIONS - 1)
    assert len(list((tmp_path / "marks").iterdir())) == 1
    assert contents(config.s3_prefix) == stored(OLD)


@dataclass(frozen=True)
class FailsAndMarks(SqliteFactory):
    marks: str = ""

    def open(self, target: Any) -> Any:
        (Path(self.marks) / uuid4().hex).touch()
        raise ShardWriteError("the network blinked")


@pytest.mark.parametrize(("scheduler", "tries"), [("synchronous", 1), ("threads", 1), ("distributed", 3)])
def test_retries_act_on_the_distributed_scheduler_only(
    scheduler: str,
    tries: int,
    source: Path,
    config: HashShardedWriteConfig,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "marks").mkdir()
    config = replace(
        config,
        num_dbs=1,
        adapter_factory=FailsAndMarks(marks=str(tmp_path / "marks")),
        shard_retry=RetryConfig(max_attempts=1),
    )
    if scheduler == "distributed":
        request.getfixturevalue("client")
    with (
        dask.config.set(scheduler=None if scheduler == "distributed" else scheduler),
        pytest.raises(ShardWriteError, match="blinked"),
    ):
        write_hash_sharded(dd.read_parquet(source), config, PAYLOAD, DaskWriteOptions(retries=2))
    assert len(list((tmp_path / "marks").iterdir())) == tries
    assert contents(config.s3_prefix) == stored(OLD)
