"""`write_hash_sharded`, from request to published snapshot.

It reads like docs/architecture.md, "The path of the data"; the Dask graph itself is in `frame.py`.
"""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import singledispatch

import dask.dataframe as dd

from shardyfusion.commits import BuildStart, CommitLog, CommitRecord, Patience
from shardyfusion.config import MAX_NUM_DBS, ColumnWriteInput, DaskWriteOptions, HashShardedWriteConfig, WriteConfig
from shardyfusion.errors import ConfigValidationError, ShardyfusionError
from shardyfusion.layout import run_directory
from shardyfusion.manifest import ShardingSpec
from shardyfusion.routing import Router
from shardyfusion.routing.hashing import HashRouter
from shardyfusion.run_registry import RunLease
from shardyfusion.serde.key_columns import check_key_dtype
from shardyfusion.storage import ObjectStore, open_store
from shardyfusion.type_defs import require, require_type
from shardyfusion.writer.dask.frame import (
    FrameFacts,
    choose_exchange,
    compute_write,
    count_rows,
    frame_facts,
    scheduler_kind,
)
from shardyfusion.writer.encode import Tally
from shardyfusion.writer.outcome import (
    Outcome,
    check_conservation,
    find_outcome,
    freeze_outcome,
    make_outcome,
    manifest_of,
    select_winners,
)
from shardyfusion.writer.plan import check_local_root, make_plan, request_fingerprint
from shardyfusion.writer.publish import publish_errors, publish_snapshot, sweep_losers
from shardyfusion.writer.result import BuildResult, WriteSeconds
from shardyfusion.writer.shard import ShardResult


def write_hash_sharded(
    ddf: dd.DataFrame,
    config: HashShardedWriteConfig,
    input: ColumnWriteInput,
    options: DaskWriteOptions | None = None,
) -> BuildResult:
    """Turn a Dask DataFrame into a snapshot sharded by hash of the key, and publish it.

    Computes on the ambient Dask scheduler and returns once the manifest, its commit record and `_CURRENT` are durable:
    readers see the old snapshot until then, and the whole new one from then on. After a `PublishManifestError` (or
    `PublishCurrentError`) call again with `run_id=` the failed run's id to finish without reading the input.

    Raises:
        ConfigValidationError: the request cannot work; nothing was read or written.
        InputDataError: null, unroutable or duplicate keys, or values that cannot be encoded; nothing was published.
        ShardAssignmentError, ShardCoverageError: a check of the write's own work failed; nothing was published.
        ShardWriteError, StorageError, ComputeError: building failed; nothing was published.
        PublishManifestError, PublishUnknownError, PublishCurrentError: built, but not (surely) published.
        StaleBuildError, RunConflictError, CommitLogError: someone else's publish stands in the way.
    """
    if not isinstance(config, HashShardedWriteConfig):
        raise ConfigValidationError(
            f"config is a {type(config).__name__}; write_hash_sharded needs a HashShardedWriteConfig"
        )
    options = DaskWriteOptions() if options is None else options
    require_type(input, ColumnWriteInput, "input")
    require_type(options, DaskWriteOptions, "options")
    return _Write(ddf, config, input, options).run()


@singledispatch
def resolve_router(config: WriteConfig, ddf: dd.DataFrame, input: ColumnWriteInput) -> tuple[Router, ShardingSpec]:
    """How rows find their shard: the only step before the write itself that may need a pass over the data."""
    raise ConfigValidationError(f"no routing strategy for {type(config).__name__}")


@resolve_router.register
def _(config: HashShardedWriteConfig, ddf: dd.DataFrame, input: ColumnWriteInput) -> tuple[Router, ShardingSpec]:
    num_dbs = config.num_dbs
    if num_dbs is None:
        assert config.max_keys_per_shard is not None  # noqa: S101 (the config is valid once built)
        num_dbs = max(1, -(-count_rows(ddf, input.key_col) // config.max_keys_per_shard))
    require(
        num_dbs <= MAX_NUM_DBS,
        f"max_keys_per_shard={config.max_keys_per_shard} comes to {num_dbs} shards; {MAX_NUM_DBS} is the most",
    )
    return HashRouter(num_dbs), ShardingSpec(strategy="hash")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One execution: its store, lease and place among builds."""

    run_id: str
    request: str
    store: ObjectStore
    run_dir: str
    lease: RunLease
    start: BuildStart


@dataclass(frozen=True, kw_only=True)
class _Built:
    """What the computation came to: checked, not yet published."""

    sharding: ShardingSpec
    tally: Tally
    results: Sequence[ShardResult]


class _Write:
    """One call of a writer. `run` is the pipeline; the other methods are its steps, in order."""

    def __init__(
        self, ddf: dd.DataFrame, config: WriteConfig, input: ColumnWriteInput, options: DaskWriteOptions
    ) -> None:
        self._ddf = ddf
        self._config = config
        self._input = input
        self._options = options
        self._patience = Patience()
        self._seconds = WriteSeconds()

    def run(self) -> BuildResult:
        facts = self._check_request()
        with self._start_run(facts) as run:
            outcome = find_outcome(run.store, run.run_id, run.request) if self._config.run_id else None
            built = None
            if outcome is None:
                built = self._build(run, facts)
                mine = self._make_outcome(run, built)
                with publish_errors(run.run_id):
                    outcome = freeze_outcome(run.store, mine, self._patience)
                built = built if outcome is mine else None  # else another execution of this run id was first
            record = self._publish(run, outcome)
            with self._timed("sweep"):
                sweep_losers(run.store, outcome, run.run_dir)
            run.lease.finish(manifest_ref=record.manifest_ref)
        if built and built.tally.converted:
            warnings.warn(built.tally.converted, stacklevel=3)  # the caller of write_hash_sharded
        return self._result(record, outcome, built)

    def _check_request(self) -> FrameFacts:
        """Everything that can be known to be wrong without touching data or store."""
        config, key_col = self._config, self._input.key_col
        facts = frame_facts(self._ddf)
        names = list(facts.columns)
        repeated = sorted({str(name) for name in names if names.count(name) > 1})
        require(not repeated, f"the DataFrame has several columns named {', '.join(repeated)}; rename them")
        require(
            key_col in facts.dtypes,
            f"key column {key_col!r} is no column or named index; there are {', '.join(map(str, facts.dtypes))}",
        )
        require(
            config.shard_id_col not in facts.dtypes,
            f"the data has a column {config.shard_id_col!r}, which is the temporary shard column; rename it, or set "
            "config.shard_id_col",
        )
        check_key_dtype(facts.dtypes[key_col], config.key_encoding, key_col)
        self._input.value_spec.check_columns(facts.columns, facts.dtypes)
        address, scheduler = config.address(), scheduler_kind()
        config.adapter_factory.check(address)
        check_local_root(config.local_root)
        require(
            address.kind != "memory" or scheduler in ("synchronous", "threads"),
            f"{address.url} lives in this process only, and the scheduler ({scheduler}) may have others; use a local "
            "directory or s3://, or compute with scheduler='threads'",
        )
        require(
            self._options.exchange != "p2p" or scheduler == "distributed",
            f"exchange='p2p' needs a distributed client, not {scheduler}; use 'auto', 'direct' or 'tasks'",
        )
        return facts

    @contextmanager
    def _start_run(self, facts: FrameFacts) -> Generator[_Run]:
        """A run record with a live lease around the work; every error leaves with the run's id on it."""
        config = self._config
        run_id = config.run_id or uuid.uuid4().hex
        store = open_store(config.address())
        try:
            lease = RunLease.start(
                store,
                run_id=run_id,
                shard_prefix=config.output.shard_prefix,
                db_path_template=config.output.db_path_template,
                allow_unsafe_store=config.allow_unsafe_store,
                patience=self._patience,
            )
        except ShardyfusionError as exc:
            exc.facts.setdefault("run_id", run_id)
            raise
        try:
            head = CommitLog(store).state().head
            yield _Run(
                run_id=run_id,
                request=request_fingerprint(config, self._input, facts.dtypes),
                store=store,
                run_dir=run_directory(config.output.shard_prefix, run_id),
                lease=lease,
                start=BuildStart(
                    base=head.seq if head else 0, started_at=lease.started_at, log=head.log if head else None
                ),
            )
        except BaseException as exc:
            if isinstance(exc, ShardyfusionError):
                exc.facts.setdefault("run_id", run_id)
            lease.finish(error=exc)
            raise

    def _build(self, run: _Run, facts: FrameFacts) -> _Built:
        """Encode, place and build every shard; then check that nothing was lost on the way."""
        with self._timed("plan"):
            router, sharding = resolve_router(self._config, self._ddf, self._input)
            exchange = choose_exchange(self._options.exchange, self._ddf.npartitions, router.num_dbs, scheduler_kind())
            plan = make_plan(
                self._config,
                self._input,
                router,
                sharding,
                run_id=run.run_id,
                request=run.request,
                verify_routing=self._options.verify_routing,
                with_ordinal=exchange != "direct" and self._config.on_duplicate_key != "fail",
            )
        with self._timed("build"):
            tally, results = compute_write(
                self._ddf, self._needed_columns(facts), plan, exchange, self._options, self._config.shard_id_col
            )
        for error in (tally.error, *(result.error for result in results)):
            if error is not None:
                raise error
        check_conservation(tally, results)
        return _Built(sharding=sharding, tally=tally, results=results)

    def _needed_columns(self, facts: FrameFacts) -> list[str]:
        """Only what the key and the value need is read; the index always comes along."""
        wanted = self._input.value_spec.columns
        return [name for name in facts.columns if wanted is None or name in wanted or name == self._input.key_col]

    def _make_outcome(self, run: _Run, built: _Built) -> Outcome:
        return make_outcome(
            run_id=run.run_id,
            request=run.request,
            start=run.start,
            sharding=built.sharding,
            tally=built.tally,
            winners=select_winners(built.results),
        )

    def _publish(self, run: _Run, outcome: Outcome) -> CommitRecord:
        with self._timed("publish"):
            manifest = manifest_of(outcome, self._config, self._input.key_col, run.store.url)
            record = publish_snapshot(
                run.store, outcome, manifest, run_dir=run.run_dir, patience=self._patience, force=self._config.force
            )
            CommitLog(run.store, patience=self._patience).advance_pointer(record)
        return record

    def _result(self, record: CommitRecord, outcome: Outcome, built: _Built | None) -> BuildResult:
        results = built.results if built else ()
        seconds = replace(
            self._seconds,
            encode_tasks=built.tally.seconds if built else 0.0,
            shard_tasks=sum(result.seconds for result in results),
            rate_limit_waits=sum(result.attempt.waited_seconds for result in results if result.attempt),
        )
        return BuildResult(
            run_id=outcome.run_id,
            manifest_ref=record.to_ref(),
            winners=outcome.winners,
            num_dbs=outcome.num_dbs,
            input_rows=outcome.input_rows,
            seconds=seconds,
            attempts={result.db_id: result.attempts for result in results if result.attempts},
            payload_bytes=built.tally.payload_bytes if built else 0,
            reused=built is None,
        )

    @contextmanager
    def _timed(self, phase: str) -> Generator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = getattr(self._seconds, phase) + time.perf_counter() - started
            self._seconds = replace(self._seconds, **{phase: spent})
