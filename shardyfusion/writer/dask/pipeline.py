"""`write_hash_sharded` and `write_cel_sharded`, from request to published snapshot.

It reads like docs/architecture.md, "The path of the data"; the Dask graph itself is in `frame.py`, what the ways of
sharding differ in is in `routers.py`.
"""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime

import dask.dataframe as dd

from shardyfusion.commits import BuildStart, CommitLog, CommitRecord, Patience
from shardyfusion.config import (
    CelShardedWriteConfig,
    ColumnWriteInput,
    DaskWriteOptions,
    HashShardedWriteConfig,
    WriteConfig,
)
from shardyfusion.errors import ConfigValidationError, ShardCoverageError, ShardyfusionError, StorageError
from shardyfusion.layout import run_directory
from shardyfusion.manifest import ShardingSpec
from shardyfusion.routing import Router
from shardyfusion.run_registry import RunLease
from shardyfusion.stage_clock import add_up
from shardyfusion.storage import ObjectStore, open_store
from shardyfusion.type_defs import require_type
from shardyfusion.writer.dask.exchange import choose_exchange
from shardyfusion.writer.dask.frame import FrameFacts, compute_write
from shardyfusion.writer.dask.request import check_request
from shardyfusion.writer.dask.routers import resolve_router
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
from shardyfusion.writer.plan import WritePlan, encode_plan, request_fingerprint, shard_plan
from shardyfusion.writer.publish import publish_errors, publish_snapshot, sweep_losers
from shardyfusion.writer.result import BuildResult, WriteSeconds
from shardyfusion.writer.seals import Seal, find_seals, unsealed_shards
from shardyfusion.writer.shard import ShardResult

_log = logging.getLogger(__name__)

_SHOWN_SHARDS = 20


def write_hash_sharded(
    ddf: dd.DataFrame,
    config: HashShardedWriteConfig,
    input: ColumnWriteInput,
    options: DaskWriteOptions | None = None,
) -> BuildResult:
    """Turn a Dask DataFrame into a snapshot sharded by hash of the key, and publish it.

    Computes on the ambient Dask scheduler and returns once the manifest, its commit record and `_CURRENT` are durable:
    readers see the old snapshot until then, and the whole new one from then on. After a `PublishManifestError` (or
    `PublishCurrentError`) call again with `run_id=` the failed run's id to finish without reading the input; after any
    other error that call reads the input again, and keeps those of its shards that are built already.

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
    return _run_write(ddf, config, input, options)


def write_cel_sharded(
    ddf: dd.DataFrame,
    config: CelShardedWriteConfig,
    input: ColumnWriteInput,
    options: DaskWriteOptions | None = None,
) -> BuildResult:
    """Turn a Dask DataFrame into a snapshot sharded by a CEL expression over its columns, and publish it.

    Like `write_hash_sharded` in all else. The input is evaluated once where `routing_values` or `num_dbs` are given;
    else a pass over the columns that the expression names comes before.

    Raises:
        ConfigValidationError: the request cannot work, as where a column's dtype is not of its declared type.
        InputDataError: also where the expression has no value for a row, or one that names no shard, and where a
            column that it names has nulls; nothing was published.
        And what `write_hash_sharded` raises.
    """
    if not isinstance(config, CelShardedWriteConfig):
        raise ConfigValidationError(
            f"config is a {type(config).__name__}; write_cel_sharded needs a CelShardedWriteConfig"
        )
    return _run_write(ddf, config, input, options)


def _run_write(
    ddf: dd.DataFrame, config: WriteConfig, input: ColumnWriteInput, options: DaskWriteOptions | None
) -> BuildResult:
    options = DaskWriteOptions() if options is None else options
    require_type(input, ColumnWriteInput, "input")
    require_type(options, DaskWriteOptions, "options")
    return _Write(ddf, config, input, options).run()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One execution: its store, lease and place among builds."""

    run_id: str
    request: str
    store: ObjectStore
    run_dir: str
    lease: RunLease
    start: BuildStart
    overtaken: datetime | None
    """When another writer last moved the pointer past our log, if one did."""


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
        facts = check_request(self._ddf, self._config, self._input, self._options)
        with self._start_run(facts) as run:
            outcome, built = self._settle(run, facts)
            record = self._publish(run, outcome, resumed=built is None)
            with self._timed("sweep"):
                sweep_losers(run.store, outcome, run.run_dir)
            run.lease.finish(manifest_ref=record.manifest_ref)
        if built and built.tally.converted:
            warnings.warn(built.tally.converted, stacklevel=4)  # the caller of write_hash_sharded
        return self._result(record, outcome, built)

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
            state = CommitLog(store).state()
            head = state.head
            yield _Run(
                run_id=run_id,
                request=request_fingerprint(config, self._input, facts.dtypes),
                store=store,
                run_dir=run_directory(config.output.shard_prefix, run_id),
                lease=lease,
                start=BuildStart(
                    base=head.seq if head else 0, started_at=lease.started_at, log=head.log if head else None
                ),
                overtaken=state.foreign.modified if state.foreign else None,
            )
        except BaseException as exc:
            if isinstance(exc, ShardyfusionError):
                exc.facts.setdefault("run_id", run_id)
            lease.finish(error=exc)
            raise

    def _settle(self, run: _Run, facts: FrameFacts) -> tuple[Outcome, _Built | None]:
        """The one outcome of the run id, and what was built for it here: None if another execution decided it."""
        found = self._find_outcome(run)
        if found is not None:
            return found, None
        try:
            built = self._build(run, facts)
        except ConfigValidationError:
            raise
        except ShardyfusionError:
            # One that has committed meanwhile sweeps the run's directory, and what was being built here with it.
            with suppress(StorageError):
                found = self._find_outcome(run)
            if found is None:
                raise
            return found, None
        mine = self._make_outcome(run, built)
        with publish_errors(run.run_id):
            outcome = freeze_outcome(run.store, mine, self._patience)
        return outcome, built if outcome is mine else None

    def _find_outcome(self, run: _Run) -> Outcome | None:
        """What another execution decided; there is none under an id that was made up just now."""
        return find_outcome(run.store, run.run_id, run.request) if self._config.run_id else None

    def _build(self, run: _Run, facts: FrameFacts) -> _Built:
        """Encode, place and build every shard; then check that nothing was lost on the way."""
        with self._timed("plan"):
            router, sharding = resolve_router(self._config, self._ddf, self._input)
            _log.info("run %s: rows are routed by %s to %d shards", run.run_id, self._config.routing, router.num_dbs)
            exchange = choose_exchange(
                self._options.shuffle, self._ddf.npartitions, router.num_dbs, self._config.local_root
            )
            plan = WritePlan(
                encode=encode_plan(
                    self._config,
                    self._input,
                    router,
                    verify_routing=self._options.verify_routing,
                    with_ordinal=exchange in ("p2p", "tasks") and self._config.on_duplicate_key != "fail",
                ),
                shard=shard_plan(self._config, run_id=run.run_id, request=run.request, start=run.start),
                seals=self._find_seals(run),
            )
        with self._timed("build"), self._naming_what_is_missing(run, router.num_dbs):
            tally, results = compute_write(
                self._ddf, self._needed_columns(facts, router), plan, exchange, self._options, self._config.shard_id_col
            )
        for error in (tally.error, *(result.error for result in results)):
            if error is not None:
                raise error
        check_conservation(tally, results)
        return _Built(sharding=sharding, tally=tally, results=results)

    @contextmanager
    def _naming_what_is_missing(self, run: _Run, num_dbs: int) -> Generator[None]:
        """A scheduler that gave up tells one task, and often one that only waited on the worker that died."""
        try:
            yield
        except ShardCoverageError as exc:
            with suppress(StorageError):
                missing = unsealed_shards(run.store, run.run_dir, self._config.output.db_path_template, num_dbs)
                exc.facts["shards_missing"] = missing[:_SHOWN_SHARDS]
                exc.facts["of_shards"] = num_dbs
            raise

    def _find_seals(self, run: _Run) -> Mapping[int, Sequence[Seal]]:
        if not self._config.run_id:
            return {}
        return find_seals(
            run.store,
            run.run_dir,
            run_id=run.run_id,
            request=run.request,
            start=run.start,
            overtaken=run.overtaken,
        )

    def _needed_columns(self, facts: FrameFacts, router: Router) -> list[str]:
        """Only what the key, its shard and the value need is read; the index always comes along."""
        wanted = self._input.value_spec.columns
        routed = {self._input.key_col, *router.context_columns}
        return [name for name in facts.columns if wanted is None or name in wanted or name in routed]

    def _make_outcome(self, run: _Run, built: _Built) -> Outcome:
        """What was reused counts from when it was started: its rows may be as old as that."""
        starts = [run.start.started_at, *(result.reused.start.started_at for result in built.results if result.reused)]
        return make_outcome(
            run_id=run.run_id,
            request=run.request,
            start=replace(run.start, started_at=min(starts)),
            sharding=built.sharding,
            tally=built.tally,
            winners=select_winners(built.results),
        )

    def _publish(self, run: _Run, outcome: Outcome, *, resumed: bool) -> CommitRecord:
        with self._timed("publish"):
            manifest = manifest_of(outcome, self._config, self._input.key_col, run.store.url)
            record = publish_snapshot(
                run.store,
                outcome,
                manifest,
                run_dir=run.run_dir,
                patience=self._patience,
                force=self._config.force,
                resumed=resumed,
            )
            CommitLog(run.store, patience=self._patience).advance_pointer(record)
        return record

    def _result(self, record: CommitRecord, outcome: Outcome, built: _Built | None) -> BuildResult:
        results = built.results if built else ()
        reused = {result.db_id for result in results if result.reused}
        seconds = replace(
            self._seconds,
            encode_stages=built.tally.seconds if built else {},
            shard_stages=add_up(result.seconds for result in results),
            rate_limit_waits=sum(r.attempt.waited_seconds for r in results if r.attempt and not r.reused),
        )
        return BuildResult(
            run_id=outcome.run_id,
            manifest_ref=record.to_ref(),
            winners=outcome.winners,
            num_dbs=outcome.num_dbs,
            routing=self._config.routing,
            input_rows=outcome.input_rows,
            seconds=seconds,
            attempts={result.db_id: result.attempts for result in results if result.attempts},
            payload_bytes=built.tally.payload_bytes if built else 0,
            reused=built is None,
            reused_shards=tuple(w.db_id for w in outcome.winners if built is None or w.db_id in reused),
        )

    @contextmanager
    def _timed(self, phase: str) -> Generator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = getattr(self._seconds, phase) + time.perf_counter() - started
            self._seconds = replace(self._seconds, **{phase: spent})
