"""One shard: gather its rows, sort them, settle duplicates, build and seal it. Runs on workers, knows no Dask."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardyfusion.commits import Patience, create_once
from shardyfusion.errors import DuplicateKeyError, ShardCoverageError, ShardWriteError, ShardyfusionError
from shardyfusion.layout import JSON_TYPE, SEAL
from shardyfusion.limits import RateLimiter
from shardyfusion.retry import call_with_retry
from shardyfusion.serde.columns import arrow_compute
from shardyfusion.serde.keys import KeyEncoding, decode_key
from shardyfusion.serde.row_digest import digest_total, format_digest, parse_digest, row_hashes
from shardyfusion.shard_contract import ShardTarget
from shardyfusion.storage import open_store
from shardyfusion.writer.attempt import ShardAttempt
from shardyfusion.writer.encode import Tally, as_data
from shardyfusion.writer.plan import ShardPlan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

BATCH_ROWS = 131_072
_SHOWN_KEYS = 5
_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What a shard task sends home. Exactly one of: `attempt`, `error`, or neither (no rows, or the gate was shut).

    `rows_in` and `digest_in` are over all rows that arrived, dropped duplicates included.
    """

    db_id: int
    rows_in: int = 0
    digest_in: int = 0
    seconds: float = 0.0
    attempts: int = 0
    attempt: ShardAttempt | None = None
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
    dropped: int
    dropped_digest: int

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for start in range(0, len(self.keys), rows):
            values = self.values.take(pa.array(self.order[start : start + rows]))
            yield pa.record_batch([self.keys[start : start + rows], values], names=["key", "value"])


def build_shard(db_id: int, tally: Tally, pieces: Sequence[pa.Table | None], plan: ShardPlan) -> ShardResult:
    """Build one shard from its pieces, in partition order.

    What must not be repeated (a wrong row count, a duplicate key, a bug) comes back as `error`; what may pass with time
    is tried again here by `plan.retry` and then raised, for the scheduler's own retries.
    """
    started = time.perf_counter()
    tries, rows, attempt, error = 0, None, None, None
    try:
        rows = None if tally.error is not None else _sorted_rows(pieces, plan, db_id)
        if rows is None:
            return ShardResult(db_id=db_id)

        def one_try(number: int) -> ShardAttempt:
            nonlocal tries
            tries = number + 1
            return _build_attempt(db_id, number, rows, plan)

        attempt = call_with_retry(one_try, plan.retry)
    except MemoryError:
        raise
    except Exception as exc:
        error = as_data(exc, f"building shard {db_id}")
        error.facts.setdefault("db_id", db_id)
        if error.retryable:
            raise error from None
    return ShardResult(
        db_id=db_id,
        rows_in=attempt.rows + attempt.duplicates_dropped if attempt else 0,
        digest_in=(parse_digest(attempt.row_digest) + rows.dropped_digest) & _MASK if attempt and rows else 0,
        seconds=time.perf_counter() - started,
        attempts=tries,
        attempt=attempt,
        error=error,
    )


def _sorted_rows(pieces: Sequence[pa.Table | None], plan: ShardPlan, db_id: int) -> SortedRows | None:
    """Put the pieces together, sort by key (stable over input order), and settle duplicates."""
    import pyarrow as pa

    present = [piece for piece in pieces if piece is not None and len(piece)]
    if not present:
        return None
    table = pa.concat_tables(present).combine_chunks()
    keys, values = table.column("key").chunk(0), table.column("value").chunk(0)
    order = _key_order(keys, plan.key_encoding, _input_order(table))
    sorted_keys = keys.take(pa.array(order))
    keep = _keep(sorted_keys, plan, db_id)
    dropped_digest = dropped = 0
    if keep is not None:
        surplus = pa.array(order[~keep])
        dropped, dropped_digest = len(surplus), _digest(keys.take(surplus), values.take(surplus))
        order, sorted_keys = order[keep], sorted_keys.filter(pa.array(keep))
    return SortedRows(keys=sorted_keys, values=values, order=order, dropped=dropped, dropped_digest=dropped_digest)


def _digest(keys: pa.LargeBinaryArray, values: pa.LargeBinaryArray) -> int:
    return digest_total(row_hashes(keys, values))


def _input_order(table: pa.Table) -> npt.NDArray[np.int64] | None:
    """Row numbers in input order, where the exchange did not keep it and an ordinal travelled along."""
    import numpy as np

    if "ordinal" not in table.column_names:
        return None
    return np.argsort(table.column("ordinal").chunk(0).to_numpy(), kind="stable")


def _key_order(
    keys: pa.LargeBinaryArray, encoding: KeyEncoding, input_order: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    import numpy as np
    import pyarrow as pa

    if input_order is not None:
        return input_order[_key_order(keys.take(pa.array(input_order)), encoding, None)]
    width = {KeyEncoding.U64BE: ">u8", KeyEncoding.U32BE: ">u4"}.get(encoding)
    if width is None:
        return arrow_compute().array_sort_indices(keys).to_numpy().astype(np.int64)
    # Fixed-width big-endian integers: their bytes are one packed buffer, and numpy sorts native integers much faster
    # than Arrow sorts byte strings.
    start = int(np.frombuffer(keys.buffers()[1], dtype=np.int64)[keys.offset])
    packed = np.frombuffer(keys.buffers()[2], dtype=np.dtype(width), count=len(keys), offset=start)
    return np.argsort(packed.astype(packed.dtype.newbyteorder("=")), kind="stable")


def _keep(sorted_keys: pa.LargeBinaryArray, plan: ShardPlan, db_id: int) -> npt.NDArray[np.bool_] | None:
    """Which sorted rows stay: None for all. Equal keys are neighbours, in input order."""
    import numpy as np

    repeats = arrow_compute().equal(sorted_keys[1:], sorted_keys[:-1]).to_numpy(zero_copy_only=False)
    if not repeats.any():
        return None
    if plan.on_duplicate_key == "fail":
        shown = arrow_compute().unique(sorted_keys[1:].filter(arrow_compute().equal(sorted_keys[1:], sorted_keys[:-1])))
        examples = [_show(plan.key_encoding, key) for key in shown[:_SHOWN_KEYS].to_pylist()]
        raise DuplicateKeyError(
            f"duplicate keys in shard {db_id}: {len(shown)} different, {int(repeats.sum())} surplus rows, for example "
            f"{', '.join(examples)}; make keys unique, or set on_duplicate_key='first' or 'last'",
            keys=len(shown),
            surplus_rows=int(repeats.sum()),
        )
    edge = np.zeros(1, dtype=bool)
    return ~np.concatenate([edge, repeats] if plan.on_duplicate_key == "first" else [repeats, edge])


def _show(encoding: KeyEncoding, key: bytes) -> str:
    decoded = decode_key(encoding, key)
    return repr(key if decoded is None else decoded)


def _build_attempt(db_id: int, number: int, rows: SortedRows, plan: ShardPlan) -> ShardAttempt:
    """One execution, in a directory and a scratch of its own; nothing is visible unless it seals."""
    started = time.perf_counter()
    store = open_store(plan.address)
    directory = plan.attempt_dir(db_id, number, uuid.uuid4().hex[:8])
    limiter = RateLimiter(plan.limits)
    digest = 0
    with _scratch(plan) as scratch:
        target = ShardTarget(db_id=db_id, store=store, address=plan.address, directory=directory, scratch=scratch)
        with plan.adapter_factory.open(target) as adapter:
            for batch in rows.batches(limiter.batch_rows(BATCH_ROWS)):
                limiter.acquire(len(batch), batch.nbytes)
                adapter.write_arrow(batch)
                digest += _digest(batch.column("key"), batch.column("value"))
            sealed = adapter.seal()
    if sealed.rows != len(rows.keys):
        raise ShardCoverageError(
            f"shard {db_id} holds {sealed.rows} rows after sealing, but {len(rows.keys)} were written",
            directory=directory,
        )
    attempt = ShardAttempt(
        db_id=db_id,
        attempt=number,
        directory=directory,
        backend=plan.adapter_factory.backend,
        rows=sealed.rows,
        duplicates_dropped=rows.dropped,
        db_bytes=sealed.db_bytes,
        objects=sealed.objects,
        row_digest=format_digest(digest),
        key_min=rows.keys[0].as_py(),
        key_max=rows.keys[-1].as_py(),
        checkpoint_id=uuid.uuid4().hex,
        seconds=time.perf_counter() - started,
        waited_seconds=limiter.waited_seconds,
    )
    seal = json.dumps({"request": plan.request, "run_id": plan.run_id, "attempt": attempt.to_json()}, sort_keys=True)
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
