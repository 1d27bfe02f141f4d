"""The rows of one shard, put together from its pieces, in ascending key order and each key once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardyfusion.errors import DuplicateKeyError
from shardyfusion.serde.columns import arrow_compute
from shardyfusion.serde.keys import KeyEncoding, decode_key
from shardyfusion.stage_clock import StageClock
from shardyfusion.type_defs import DuplicatePolicy
from shardyfusion.writer.conservation import RowSum, require_same_rows, row_sum
from shardyfusion.writer.key_order import key_order
from shardyfusion.writer.plan import ShardPlan
from shardyfusion.writer.value_views import take_views, value_views, viewed_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

_SHOWN_KEYS = 5


@dataclass(frozen=True, kw_only=True)
class SortedRows:
    """The rows of a shard in ascending key order, each key once, and what was dropped to get there.

    `values` are views in order of arrival; `order[i]` says where the value of `keys[i]` is, so that they are put in
    order batch by batch and a shard is not held a second time.
    """

    keys: pa.LargeBinaryArray
    values: pa.BinaryViewArray
    order: npt.NDArray[np.int64]
    dropped: RowSum

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + viewed_bytes(self.values)

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for start in range(0, len(self.keys), rows):
            values = _values_at(self.values, self.order[start : start + rows])
            yield pa.record_batch([self.keys[start : start + rows], values], names=["key", "value"])


def _values_at(values: pa.BinaryViewArray, rows: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    import pyarrow as pa

    return take_views(values, rows).cast(pa.large_binary())


def sort_rows(
    pieces: Sequence[pa.Table | None], plan: ShardPlan, db_id: int, expected: RowSum, clock: StageClock
) -> SortedRows | None:
    """Put the pieces together, sort by key (stable over input order), and settle duplicates; None without rows.

    Raises:
        ShardCoverageError: other than the expected number of rows arrived.
        DuplicateKeyError: keys repeat, and `plan.on_duplicate_key` is "fail".
    """
    import pyarrow as pa

    present = [piece for piece in pieces if piece is not None and len(piece)]
    arrived = sum(map(len, present))
    if arrived != expected.rows:
        require_same_rows(db_id, expected, RowSum(arrived))
    if not present:
        return None
    with clock.stage("gather"):
        table = pa.concat_tables(map(_with_views, present)).combine_chunks()
    with clock.stage("sort"):
        return _sort(table, plan, db_id)


def _with_views(piece: pa.Table) -> pa.Table:
    import pyarrow as pa

    place = piece.column_names.index("value")
    values = piece.column(place)
    if values.type == pa.binary_view():
        return piece
    return piece.set_column(place, "value", pa.chunked_array(map(value_views, values.chunks), pa.binary_view()))


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
    surplus = order[~keep]
    dropped = row_sum(keys.take(pa.array(surplus)), _values_at(values, surplus))
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
