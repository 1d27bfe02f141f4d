"""One shard: gather its rows, sort them, settle duplicates, build and seal it. Runs on workers, knows no Dask."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shardyfusion.commits import Patience, create_once
from shardyfusion.errors import DuplicateKeyError, ShardCoverageError, ShardWriteError, ShardyfusionError
from shardyfusion.layout import JSON_TYPE, SEAL
from shardyfusion.limits import RateLimiter
from shardyfusion.retry import call_with_retry
from shardyfusion.serde.columns import arrow_compute
from shardyfusion.serde.keys import KeyEncoding, decode_key
from shardyfusion.serde.row_digest import format_digest
from shardyfusion.shard_contract import ShardTarget
from shardyfusion.stage_clock import StageClock
from shardyfusion.storage import open_store
from shardyfusion.type_defs import DuplicatePolicy
from shardyfusion.writer.attempt import ShardAttempt
from shardyfusion.writer.conservation import RowSum, require_same_rows, row_sum
from shardyfusion.writer.encode import Tally, as_data
from shardyfusion.writer.key_order import key_order
from shardyfusion.writer.plan import ShardPlan
from shardyfusion.writer.seals import Seal, reusable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

BATCH_ROWS = 131_072
_SHOWN_KEYS = 5


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


@dataclass(frozen=True, kw_only=True)
class SortedRows:
    """The rows of a shard in ascending key order, each key once, and what was dropped to get there.

    `values` are in order of arrival; `order[i]` says where the value of `keys[i]` is, so that they are put in order
    batch by batch and a shard is not held a third time.
    """

    keys: pa.LargeBinaryArray
    values: pa.LargeBinaryArray
    order: npt.NDArray[np.int64]
    dropped: RowSum

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for start in range(0, len(self.keys), rows):
            values = self.values.take(pa.array(self.order[start : start + rows]))
            yield pa.record_batch([self.keys[start : start + rows], values], names=["key", "value"])


def build_shard(
    db_id: int,
    tally: Tally,
    pieces: Sequence[pa.Table | None],
    plan: ShardPlan,
    seals: Sequence[Seal] = (),
    waiting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> ShardResult:
    """Build one shard from its pieces, in partition order, unless one of `seals` is already what would be built.

    What must not be repeated (rows lost, a duplicate key, a bug) comes back as `error`; what may pass with time
    is tried again here by `plan.retry` and then raised, for the scheduler's own retries. `waiting` is entered while a
    finished shard is on its way to the store.
    """
    if tally.error is not None:
        return ShardResult(db_id=db_id)
    expected = tally.of(db_id)
    sealed = reusable(seals, expected, dropped=RowSum())  # unique keys: it cannot depend on the order of rows either
    if sealed is not None:
        return _reused(sealed)
    clock, tries = StageClock(), 0
    try:
        rows = _sorted_rows(pieces, plan, db_id, expected, clock)
        if rows is None:
            return ShardResult(db_id=db_id)
        sealed = reusable(seals, expected, dropped=rows.dropped)
        if sealed is not None:
            return _reused(sealed)

        def one_try(number: int) -> ShardAttempt:
            nonlocal tries
            tries = number + 1
            return _build_attempt(db_id, number, rows, plan, expected, clock, waiting)

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
    columns = [
        (chunk.column("key"), chunk.column("value"))
        for piece in pieces
        if piece is not None
        for chunk in piece.to_batches()
    ]
    try:
        require_same_rows(db_id, expected, sum((row_sum(*pair) for pair in columns), RowSum()))
    except ShardCoverageError as exc:
        return exc.detached()
    return None


def _reused(seal: Seal) -> ShardResult:
    return ShardResult(db_id=seal.attempt.db_id, arrived=seal.arrived, attempt=seal.attempt, reused=seal)


def _sorted_rows(
    pieces: Sequence[pa.Table | None], plan: ShardPlan, db_id: int, expected: RowSum, clock: StageClock
) -> SortedRows | None:
    """Put the pieces together, sort by key (stable over input order), and settle duplicates."""
    import pyarrow as pa

    present = [piece for piece in pieces if piece is not None and len(piece)]
    arrived = sum(map(len, present))
    if arrived != expected.rows:
        require_same_rows(db_id, expected, RowSum(arrived))
    if not present:
        return None
    with clock.stage("gather"):
        table = pa.concat_tables(present).combine_chunks()
    with clock.stage("sort"):
        return _sort(table, plan, db_id)


def _sort(table: pa.Table, plan: ShardPlan, db_id: int) -> SortedRows:
    import pyarrow as pa

    keys, values = table.column("key").chunk(0), table.column("value").chunk(0)
    arrival = _input_order(table)
    order = key_order(keys) if arrival is None else arrival[key_order(keys.take(pa.array(arrival)))]
    sorted_keys = keys.take(pa.array(order))
    repeats = _repeats(sorted_keys)
    if repeats is None:
        return SortedRows(keys=sorted_keys, values=values, order=order, dropped=RowSum())
    if plan.on_duplicate_key == "fail":
        raise _duplicate_keys(sorted_keys, repeats, plan.key_encoding, db_id)
    keep = _keep(repeats, plan.on_duplicate_key)
    surplus = pa.array(order[~keep])
    dropped = row_sum(keys.take(surplus), values.take(surplus))
    return SortedRows(keys=sorted_keys.filter(pa.array(keep)), values=values, order=order[keep], dropped=dropped)


def _input_order(table: pa.Table) -> npt.NDArray[np.int64] | None:
    """Row numbers in input order, where the exchange did not keep it and an ordinal travelled along."""
    import numpy as np

    if "ordinal" not in table.column_names:
        return None
    return np.argsort(table.column("ordinal").chunk(0).to_numpy(), kind="stable")


def _repeats(sorted_keys: pa.LargeBinaryArray) -> npt.NDArray[np.bool_] | None:
    """Which keys equal the one before them, from the second on; None if no two are equal."""
    repeats = arrow_compute().equal(sorted_keys[1:], sorted_keys[:-1]).to_numpy(zero_copy_only=False)
    return repeats if repeats.any() else None


def _keep(repeats: npt.NDArray[np.bool_], policy: DuplicatePolicy) -> npt.NDArray[np.bool_]:
    """Which sorted rows stay. Equal keys are neighbours, in input order."""
    import numpy as np

    edge = np.zeros(1, dtype=bool)
    return ~np.concatenate([edge, repeats] if policy == "first" else [repeats, edge])


def _duplicate_keys(
    sorted_keys: pa.LargeBinaryArray, repeats: npt.NDArray[np.bool_], encoding: KeyEncoding, db_id: int
) -> DuplicateKeyError:
    import pyarrow as pa

    shown = arrow_compute().unique(sorted_keys[1:].filter(pa.array(repeats)))
    surplus_rows = int(repeats.sum())
    examples = [_show(encoding, key) for key in shown[:_SHOWN_KEYS].to_pylist()]
    return DuplicateKeyError(
        f"duplicate keys in shard {db_id}: {len(shown)} different, {surplus_rows} surplus rows, for example "
        f"{', '.join(examples)}; make keys unique, or set on_duplicate_key='first' or 'last'",
        keys=len(shown),
        surplus_rows=surplus_rows,
    )


def _show(encoding: KeyEncoding, key: bytes) -> str:
    decoded = decode_key(encoding, key)
    return repr(key if decoded is None else decoded)


def _build_attempt(
    db_id: int,
    number: int,
    rows: SortedRows,
    plan: ShardPlan,
    expected: RowSum,
    clock: StageClock,
    waiting: Callable[[], AbstractContextManager[None]],
) -> ShardAttempt:
    """One execution, in a directory and a scratch of its own; nothing is visible unless it seals."""
    started = time.perf_counter()
    store = open_store(plan.address)
    directory = plan.attempt_dir(db_id, number, uuid.uuid4().hex[:8])
    limiter = RateLimiter(plan.limits)
    written = RowSum()
    with _scratch(plan) as scratch:
        target = ShardTarget(
            db_id=db_id,
            store=store,
            address=plan.address,
            directory=directory,
            scratch=scratch,
            clock=clock,
            waiting=waiting,
        )
        with clock.stage("build"), plan.adapter_factory.open(target) as adapter:
            for batch in rows.batches(BATCH_ROWS):
                for part in limiter.paced(batch):
                    adapter.write_arrow(part)
                with clock.stage("digest"):
                    written += row_sum(batch.column("key"), batch.column("value"))
            require_same_rows(db_id, expected, written + rows.dropped)
            with clock.stage("seal"):
                sealed = adapter.seal()
    if sealed.rows != written.rows:
        raise ShardCoverageError(
            f"shard {db_id} holds {sealed.rows} rows after sealing, but {written.rows} were written",
            directory=directory,
        )
    attempt = ShardAttempt(
        db_id=db_id,
        attempt=number,
        directory=directory,
        backend=plan.adapter_factory.backend,
        rows=sealed.rows,
        duplicates_dropped=rows.dropped.rows,
        db_bytes=sealed.db_bytes,
        objects=sealed.objects,
        row_digest=format_digest(written.digest),
        key_min=rows.keys[0].as_py(),
        key_max=rows.keys[-1].as_py(),
        checkpoint_id=uuid.uuid4().hex,
        seconds=time.perf_counter() - started,
        waited_seconds=limiter.waited_seconds,
    )
    seal = Seal(
        run_id=plan.run_id, request=plan.request, start=plan.start, arrived=attempt.kept + rows.dropped, attempt=attempt
    )
    with clock.stage("seal"):
        create_once(store, f"{directory}/{SEAL}", seal.encode(), content_type=JSON_TYPE, patience=Patience())
    return attempt


@contextlib.contextmanager
def _scratch(plan: ShardPlan) -> Generator[Path]:
    """A private, empty directory that is gone afterwards, whatever happened."""
    try:
        if plan.local_root is not None:
            plan.local_root.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="shardyfusion-", dir=plan.local_root))
    except OSError as exc:
        raise ShardWriteError(f"no scratch directory could be made in {plan.local_root}: {exc}") from exc
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
