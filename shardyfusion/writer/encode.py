"""One partition of the input becomes Arrow rows (key, value) per shard, with a tally. Runs on workers, knows no Dask.

Problems of the data travel home as data (`PartitionReport.error`): nothing here raises for a bad row, so that no
scheduler repeats the task and no shard is built.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shardyfusion.errors import (
    ComputeError,
    ConfigValidationError,
    InputDataError,
    ShardAssignmentError,
    ShardyfusionError,
    UnknownRoutingTokenError,
    ValueEncodingError,
)
from shardyfusion.routing import Router
from shardyfusion.routing.cel.columns import declared_column, declared_keys
from shardyfusion.routing.cel.router import KEY
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.serde.columns import looks_converted
from shardyfusion.serde.key_columns import KeyProblems, encode_key_column
from shardyfusion.stage_clock import StageClock, add_up
from shardyfusion.type_defs import KeyInput, RoutingContext
from shardyfusion.writer.conservation import RowSum, shard_digests
from shardyfusion.writer.plan import ROUTING_SAMPLE_ROWS, EncodePlan
from shardyfusion.writer.value_views import require_viewable, take_views, value_views

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

    Integers = npt.NDArray[np.int64]
    Digests = npt.NDArray[np.uint64]

ORDINAL_SHIFT = 40
"""An ordinal is `partition << 40 | row`: 2^40 rows a partition, 2^23 partitions."""


@dataclass(frozen=True, kw_only=True)
class PartitionReport:
    """What one partition held: per shard a row count and an order-independent digest, or why it cannot be written."""

    partition: int
    rows: int
    counts: Integers | None = None
    digests: Digests | None = None
    payload_bytes: int = 0
    converted: str | None = None
    problems: KeyProblems | None = None
    nulls: Mapping[str, int] = field(default_factory=dict[str, int])
    """Missing values of the columns that the router needs, by column."""
    error: ShardyfusionError | None = None
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """By stage of the task."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The sum of all partition reports: what every shard must come to. `error` stops the write before any shard."""

    rows: int
    payload_bytes: int
    seconds: Mapping[str, float]
    counts: Integers
    digests: Digests
    converted: str | None = None
    error: ShardyfusionError | None = None

    def of(self, db_id: int) -> RowSum:
        """What one shard must come to."""
        return RowSum(int(self.counts[db_id]), int(self.digests[db_id]))


@dataclass(frozen=True, kw_only=True)
class EncodedPartition:
    """The rows of one partition, sorted by shard and in input order within each: those of shard `s` are
    `rows[ends[s - 1]:ends[s]]`. `rows` is None where there are none, or none that can be written. Values are views of
    those that were read, see `value_views.py`."""

    report: PartitionReport
    rows: pa.Table | None
    ends: Integers

    def piece(self, db_id: int) -> pa.Table | None:
        """The rows of one shard, which share their bytes with the others."""
        start, end = int(self.ends[db_id - 1]) if db_id else 0, int(self.ends[db_id])
        return None if self.rows is None or start == end else self.rows.slice(start, end - start)


@dataclass(frozen=True, kw_only=True)
class SplitPartition:
    """The same in pieces that each own just their bytes: `pieces[s]` holds the rows of shard `s`, or None."""

    report: PartitionReport
    pieces: Sequence[pa.Table | None]


@dataclass(frozen=True, kw_only=True)
class _Routed:
    """Rows in input order, and how to bring them in order of shards."""

    report: PartitionReport
    rows: pa.Table | None
    order: Integers
    ends: Integers


def encode_partition(frame: pd.DataFrame, partition: int, plan: EncodePlan) -> EncodedPartition:
    """Encode, route and sort one partition by shard."""
    import pyarrow as pa

    clock = StageClock()
    routed = _route_partition(frame, partition, plan, clock)
    rows = None
    if routed.rows is not None:
        with clock.stage("split"):
            place = routed.rows.column_names.index("value")
            values = take_views(value_views(routed.rows.column(place).chunk(0)), routed.order)
            rows = routed.rows.drop_columns("value").take(pa.array(routed.order)).add_column(place, "value", values)
    return EncodedPartition(report=_timed(routed.report, clock), rows=rows, ends=routed.ends)


def split_partition(frame: pd.DataFrame, partition: int, plan: EncodePlan) -> SplitPartition:
    """Encode and route one partition, and split it by shard."""
    import pyarrow as pa

    clock = StageClock()
    routed = _route_partition(frame, partition, plan, clock)
    if routed.rows is None:
        return SplitPartition(report=_timed(routed.report, clock), pieces=[None] * plan.num_dbs)
    with clock.stage("split"):
        starts = [0, *routed.ends[:-1]]
        pieces = [
            routed.rows.take(pa.array(routed.order[start:end])) if end > start else None
            for start, end in zip(starts, routed.ends, strict=True)
        ]
    return SplitPartition(report=_timed(routed.report, clock), pieces=pieces)


def _timed(report: PartitionReport, clock: StageClock) -> PartitionReport:
    return replace(report, seconds=clock.seconds)


def _route_partition(frame: pd.DataFrame, partition: int, plan: EncodePlan, clock: StageClock) -> _Routed:
    if len(frame) == 0:
        return _stopped(partition, frame, plan)
    try:
        with clock.stage("keys"):
            keys = encode_key_column(
                column_or_index(frame, plan.input.key_col),
                plan.key_encoding,
                min_bytes=plan.min_key_bytes,
                max_bytes=plan.max_key_bytes,
            )
        if keys.problems:
            return _stopped(partition, frame, plan, problems=keys.problems)
        with clock.stage("route"):
            columns = context_columns(frame, keys.values, plan.router.context_columns, plan.input.key_col)
            if nulls := null_counts(columns):
                return _stopped(partition, frame, plan, nulls=nulls)
            shards = plan.router.route_arrow(keys.values, columns)
            if plan.verify_routing:
                verify_sample(keys.values, columns, shards, plan, partition)
        with clock.stage("values"):
            values = _encode_values(frame, keys.values, plan, partition)
    except MemoryError:
        raise
    except Exception as exc:
        error = as_data(exc, f"encoding partition {partition}")
        error.facts.setdefault("partition", partition)
        return _stopped(partition, frame, plan, error=error)
    routed = _by_shard(keys.stored, values, shards, partition, plan, clock)
    return replace(routed, report=replace(routed.report, converted=_converted(frame, partition, plan)))


def as_data(exc: Exception, doing: str) -> ShardyfusionError:
    """Any error as one that can be sent home: ours as it is, a foreign one (a bug) with where it was raised."""
    if isinstance(exc, ShardyfusionError):
        return exc.detached()
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return ComputeError(f"{doing} failed with {type(exc).__name__}: {exc}", raised_at=f"{last.filename}:{last.lineno}")


def column_or_index(frame: pd.DataFrame, name: str) -> Any:
    """A column, which may be the named index."""
    return frame[name] if name in frame.columns else frame.index


def context_columns(
    frame: pd.DataFrame, keys: pa.Array, columns: Mapping[str, CelType], key_col: str
) -> dict[str, pa.Array]:
    """The columns that a router needs beside the keys, in the types that it declares. They may hold nulls."""
    return {
        name: declared_keys(keys, kind, name)
        if name in (KEY, key_col)
        else declared_column(column_or_index(frame, name), kind, name)
        for name, kind in columns.items()
    }


def null_counts(columns: Mapping[str, pa.Array]) -> dict[str, int]:
    return {name: column.null_count for name, column in columns.items() if column.null_count}


def verify_sample(
    keys: pa.Array, columns: Mapping[str, pa.Array], shards: Integers, plan: EncodePlan, partition: int
) -> None:
    """Route evenly spread rows again with the scalar router that readers use; the two are independent code."""
    step = max(1, len(keys) // ROUTING_SAMPLE_ROWS)
    for row in range(0, min(len(keys), step * ROUTING_SAMPLE_ROWS), step):
        key = keys[row].as_py()
        expected = _route_alone(plan.router, key, {name: column[row].as_py() for name, column in columns.items()})
        if expected != int(shards[row]):
            raise ShardAssignmentError(
                "the writer's router and the reader's router disagree; this is a bug in routing, nothing was published",
                key=key,
                written_to=int(shards[row]),
                read_from=expected,
                partition=partition,
            )


def _route_alone(router: Router, key: KeyInput, context: RoutingContext) -> int | None:
    """None where readers would find no shard: the writer has found one."""
    try:
        return router.route(key, context)
    except (ConfigValidationError, UnknownRoutingTokenError):
        return None


def _encode_values(frame: pd.DataFrame, keys: pa.Array, plan: EncodePlan, partition: int) -> pa.LargeBinaryArray:
    try:
        values = plan.input.value_spec.encode_frame(frame)
        require_viewable(values)
        return values
    except ValueEncodingError as exc:
        row = exc.facts.get("row")
        if isinstance(row, int):
            exc.facts["key"] = keys[row].as_py()
        exc.facts["partition"] = partition
        raise


def _by_shard(
    keys: pa.LargeBinaryArray,
    values: pa.LargeBinaryArray,
    shards: Integers,
    partition: int,
    plan: EncodePlan,
    clock: StageClock,
) -> _Routed:
    """The rows, the order that sorts them by shard, and the tally of what goes where."""
    import numpy as np
    import pyarrow as pa

    num_dbs = plan.num_dbs
    with clock.stage("digest"):
        digests = shard_digests(keys, values, shards, num_dbs)
    with clock.stage("split"):
        counts = np.bincount(shards, minlength=num_dbs).astype(np.int64)
        columns: dict[str, Any] = {"key": keys, "value": values}
        if plan.with_ordinal:
            columns["ordinal"] = pa.array(np.arange(len(shards), dtype=np.int64) + (partition << ORDINAL_SHIFT))
        # A stable sort keeps input order within a shard; on 16-bit numbers numpy does it by radix.
        order = np.argsort(shards.astype(np.uint16 if num_dbs <= 1 << 16 else np.int64), kind="stable")
    report = PartitionReport(
        partition=partition,
        rows=len(shards),
        counts=counts,
        digests=digests,
        payload_bytes=_payload(keys) + _payload(values),
    )
    return _Routed(report=report, rows=pa.table(columns), order=order, ends=np.cumsum(counts))


def _converted(frame: pd.DataFrame, partition: int, plan: EncodePlan) -> str | None:
    """A warning if a value column looks like text that Dask made of lists, dicts, decimals or bytes. The first
    partition is enough: Dask converts whole columns."""
    names = plan.input.value_spec.columns or tuple(frame.columns)
    reasons = [(name, looks_converted(frame[name])) for name in names] if partition == 0 else []
    found = next(((name, reason) for name, reason in reasons if reason), None)
    return found and (
        f"column {found[0]!r}: {found[1]}. Dask does that to object columns before this library sees them; read "
        "Parquet instead, or make the frame under dask.config.set({'dataframe.convert-string': False})"
    )


def _payload(column: pa.LargeBinaryArray) -> int:
    """Bytes of all values of a column, from its offsets."""
    import numpy as np

    offsets = np.frombuffer(column.buffers()[1], dtype=np.int64)
    return int(offsets[column.offset + len(column)] - offsets[column.offset])


def _stopped(
    partition: int,
    frame: pd.DataFrame,
    plan: EncodePlan,
    *,
    error: ShardyfusionError | None = None,
    problems: KeyProblems | None = None,
    nulls: Mapping[str, int] | None = None,
) -> _Routed:
    import numpy as np

    nothing = np.zeros(plan.num_dbs, dtype=np.int64)
    report = PartitionReport(partition=partition, rows=len(frame), problems=problems, nulls=nulls or {}, error=error)
    return _Routed(report=report, rows=None, order=nothing[:0], ends=nothing)


def combine_reports(reports: Sequence[PartitionReport], plan: EncodePlan) -> Tally:
    """Add up all partitions; the first error in partition order, or the key problems of all, becomes the error."""
    import numpy as np

    reports = sorted(reports, key=lambda report: report.partition)
    counts = np.zeros(plan.num_dbs, dtype=np.int64)
    digests = np.zeros(plan.num_dbs, dtype=np.uint64)
    for report in reports:
        if report.counts is not None and report.digests is not None:
            counts += report.counts
            digests += report.digests
    return Tally(
        rows=sum(report.rows for report in reports),
        payload_bytes=sum(report.payload_bytes for report in reports),
        seconds=add_up(report.seconds for report in reports),
        counts=counts,
        digests=digests,
        converted=next((report.converted for report in reports if report.converted), None),
        error=reported_error(reports, plan.input.key_col),
    )


def reported_error(reports: Sequence[PartitionReport], key_col: str) -> ShardyfusionError | None:
    """The first error in the order of the reports, or what is wrong with keys and columns of all of them."""
    error = next((report.error for report in reports if report.error), None)
    return error or _key_error(reports, key_col) or _null_error(reports)


def _null_error(reports: Sequence[PartitionReport]) -> InputDataError | None:
    first = next((report for report in reports if report.nulls), None)
    if first is None:
        return None
    name = next(iter(first.nulls))
    nulls = sum(report.nulls.get(name, 0) for report in reports)
    return InputDataError(
        f"column {name!r}, by which rows are routed, is null in {nulls} of {sum(report.rows for report in reports)} "
        f"rows, first in partition {first.partition}; a CEL column has no nulls, so fill them (fillna) or filter these "
        "rows. No shard was built",
        column=name,
        nulls=nulls,
        partition=first.partition,
    )


def _key_error(reports: Sequence[PartitionReport], key_col: str) -> InputDataError | None:
    problems = sum((report.problems for report in reports if report.problems), KeyProblems())
    if not problems:
        return None
    first = next(report.partition for report in reports if report.problems)
    return InputDataError(
        f"{problems.describe(key_col)}; first in partition {first}. No shard was built",
        column=key_col,
        nulls=problems.nulls,
        invalid=problems.invalid,
        partition=first,
    )
