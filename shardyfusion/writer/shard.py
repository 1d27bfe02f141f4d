"""One shard: sort its rows, build and seal it. Runs on workers, knows no Dask."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shardyfusion.commits import Patience, create_once
from shardyfusion.errors import ShardCoverageError, ShardWriteError, ShardyfusionError
from shardyfusion.layout import JSON_TYPE, SEAL
from shardyfusion.limits import RateLimiter
from shardyfusion.retry import call_with_retry
from shardyfusion.serde.row_digest import format_digest
from shardyfusion.shard_contract import SealedShard, ShardTarget
from shardyfusion.stage_clock import StageClock
from shardyfusion.storage import ObjectStore, open_store
from shardyfusion.writer.attempt import ShardAttempt
from shardyfusion.writer.conservation import RowSum, require_same_rows, row_sum
from shardyfusion.writer.encode import Tally, as_data
from shardyfusion.writer.plan import ShardPlan
from shardyfusion.writer.seals import Seal, reusable
from shardyfusion.writer.sorted_rows import SortedRows, sort_rows

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 131_072

Waiting = Callable[[int], AbstractContextManager[None]]
"""To be entered, with the bytes that are held, while a shard is on its way to the store."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What a shard task sends home. Exactly one of: `attempt`, `error`, or neither (no rows, or the gate was shut).

    `arrived` is over all rows that arrived, dropped duplicates included. `reused` is the seal of an earlier execution
    that `attempt` was taken from; nothing was built then.
    """

    db_id: int
    arrived: RowSum = field(default_factory=RowSum)
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """By stage of the task."""
    attempts: int = 0
    attempt: ShardAttempt | None = None
    reused: Seal | None = None
    error: ShardyfusionError | None = None


def build_shard(
    db_id: int,
    tally: Tally,
    pieces: Sequence[pa.Table | None],
    plan: ShardPlan,
    seals: Sequence[Seal] = (),
    waiting: Waiting = contextlib.nullcontext,
) -> ShardResult:
    """Build one shard from its pieces, in partition order, unless one of `seals` is already what would be built.

    What must not be repeated (rows lost, a duplicate key, a bug) comes back as `error`; what may pass with time
    is tried again here by `plan.retry` and then raised, for the scheduler's own retries. `waiting` is entered, with the
    bytes that are held, while a finished shard is on its way to the store.
    """
    if tally.error is not None:
        return ShardResult(db_id=db_id)
    expected = tally.of(db_id)
    sealed = reusable(seals, expected, dropped=RowSum())  # unique keys: it cannot depend on the order of rows either
    if sealed is not None:
        return _reused(sealed)
    clock, tries = StageClock(), 0
    try:
        rows = sort_rows(pieces, plan, db_id, expected, clock)
        if rows is None:
            return ShardResult(db_id=db_id)
        sealed = reusable(seals, expected, dropped=rows.dropped)
        if sealed is not None:
            return _reused(sealed)
        build = _Build(db_id=db_id, rows=rows, expected=expected, plan=plan, clock=clock, waiting=waiting)

        def one_try(number: int) -> ShardAttempt:
            nonlocal tries
            tries = number + 1
            return build.attempt(number)

        attempt = call_with_retry(one_try, plan.retry)
    except MemoryError:
        raise
    except Exception as exc:
        error = _wrong_rows(db_id, pieces, expected) or as_data(exc, f"building shard {db_id}")
        error.facts.setdefault("db_id", db_id)
        if error.retryable:
            raise error from None
        return ShardResult(db_id=db_id, seconds=clock.seconds, attempts=tries, error=error)
    return ShardResult(
        db_id=db_id,
        arrived=attempt.kept + rows.dropped,
        seconds=clock.seconds,
        attempts=tries,
        attempt=attempt,
    )


def _wrong_rows(db_id: int, pieces: Sequence[pa.Table | None], expected: RowSum) -> ShardCoverageError | None:
    """The error for rows that are not those that were read. They are behind whatever else failed: a row that came twice
    looks like a duplicate key, a changed one like a bug."""
    import pyarrow as pa

    columns = (
        (chunk.column("key"), chunk.column("value").cast(pa.large_binary()))
        for piece in pieces
        if piece is not None
        for chunk in piece.to_batches()
    )
    try:
        require_same_rows(db_id, expected, sum((row_sum(*pair) for pair in columns), RowSum()))
    except ShardCoverageError as exc:
        return exc.detached()
    return None


def _reused(seal: Seal) -> ShardResult:
    return ShardResult(db_id=seal.attempt.db_id, arrived=seal.arrived, attempt=seal.attempt, reused=seal)


@dataclass(frozen=True, kw_only=True)
class _Build:
    """What every try to build a shard begins with."""

    db_id: int
    rows: SortedRows
    expected: RowSum
    plan: ShardPlan
    clock: StageClock
    waiting: Waiting

    def attempt(self, number: int) -> ShardAttempt:
        """One try, in a directory and a scratch of its own; nothing is visible unless it seals."""
        started = time.perf_counter()
        plan, rows = self.plan, self.rows
        store = open_store(plan.address)
        directory = plan.attempt_dir(self.db_id, number, uuid.uuid4().hex[:8])
        limiter = RateLimiter(plan.limits)
        sealed, digest = self._write(store, directory, limiter)
        attempt = ShardAttempt(
            db_id=self.db_id,
            attempt=number,
            directory=directory,
            backend=plan.adapter_factory.backend,
            rows=sealed.rows,
            duplicates_dropped=rows.dropped.rows,
            db_bytes=sealed.db_bytes,
            objects=sealed.objects,
            row_digest=format_digest(digest),
            key_min=rows.keys[0].as_py(),
            key_max=rows.keys[-1].as_py(),
            checkpoint_id=uuid.uuid4().hex,
            seconds=time.perf_counter() - started,
            waited_seconds=limiter.waited_seconds,
        )
        seal = Seal(
            run_id=plan.run_id,
            request=plan.request,
            start=plan.start,
            arrived=attempt.kept + rows.dropped,
            attempt=attempt,
        )
        with self.clock.stage("seal"), self.waiting(self.rows.nbytes):
            create_once(store, f"{directory}/{SEAL}", seal.encode(), content_type=JSON_TYPE, patience=Patience())
        return attempt

    def _write(self, store: ObjectStore, directory: str, limiter: RateLimiter) -> tuple[SealedShard, int]:
        """The database, durable and checked to hold what was expected, and the digest of its rows."""
        plan, written = self.plan, RowSum()
        with _scratch(plan.local_root) as scratch:
            target = ShardTarget(
                db_id=self.db_id,
                store=store,
                address=plan.address,
                directory=directory,
                scratch=scratch,
                clock=self.clock,
                waiting=partial(self.waiting, self.rows.nbytes),
            )
            with self.clock.stage("build"), plan.adapter_factory.open(target) as adapter:
                for batch in self.rows.batches(BATCH_ROWS):
                    for part in limiter.paced(batch):
                        adapter.write_arrow(part)
                    with self.clock.stage("digest"):
                        written += row_sum(batch.column("key"), batch.column("value"))
                require_same_rows(self.db_id, self.expected, written + self.rows.dropped)
                with self.clock.stage("seal"):
                    sealed = adapter.seal()
        if sealed.rows != written.rows:
            raise ShardCoverageError(
                f"shard {self.db_id} holds {sealed.rows} rows after sealing, but {written.rows} were written",
                directory=directory,
            )
        return sealed, written.digest


@contextlib.contextmanager
def _scratch(local_root: Path | None) -> Generator[Path]:
    """A private, empty directory that is gone afterwards, whatever happened."""
    try:
        if local_root is not None:
            local_root.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="shardyfusion-", dir=local_root))
    except OSError as exc:
        raise ShardWriteError(f"no scratch directory could be made in {local_root}: {exc}") from exc
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
