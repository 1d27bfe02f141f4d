"""What a routing expression gives over the whole input, found before the write where nobody said it.

One pass over the columns that the expression names, partition by partition. Runs on workers, knows no Dask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardyfusion.config import MAX_NUM_DBS
from shardyfusion.errors import InputDataError, ShardyfusionError
from shardyfusion.routing.cel.placement import Results
from shardyfusion.routing.cel.program import Program
from shardyfusion.routing.cel.router import KEY
from shardyfusion.serde import KeyEncoding
from shardyfusion.serde.key_columns import EncodedKeys, encode_key_column
from shardyfusion.writer.encode import (
    PartitionReport,
    as_data,
    column_or_index,
    context_columns,
    null_counts,
    reported_error,
)

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class SurveyPlan:
    """What is looked for: numbers of shards, or, if `categorical`, values of any kind.

    `with_keys` reads the keys too, so that an error names one; else only if the expression needs them.
    """

    program: Program
    categorical: bool
    key_col: str
    key_encoding: KeyEncoding
    with_keys: bool = False

    @property
    def reads_keys(self) -> bool:
        return self.with_keys or not {KEY, self.key_col}.isdisjoint(self.program.columns)


@dataclass(frozen=True, kw_only=True)
class SurveyedPartition:
    """The distinct values of one partition, or why there are none."""

    report: PartitionReport
    values: Sequence[Any] = field(default_factory=list[Any])


def survey_partition(frame: pd.DataFrame, partition: int, plan: SurveyPlan) -> SurveyedPartition:
    """Problems of the data travel home as data, as in `encode_partition`."""
    report = PartitionReport(partition=partition, rows=len(frame))
    if len(frame) == 0:
        return SurveyedPartition(report=report)
    try:
        return _surveyed(frame, report, plan)
    except MemoryError:
        raise
    except Exception as exc:
        error = as_data(exc, f"evaluating cel_expr over partition {partition}")
        error.facts.setdefault("partition", partition)
        return SurveyedPartition(report=PartitionReport(partition=partition, rows=len(frame), error=error))


def _surveyed(frame: pd.DataFrame, report: PartitionReport, plan: SurveyPlan) -> SurveyedPartition:
    keys = _keys(frame, plan) if plan.reads_keys else None
    if keys is not None and keys.problems:
        return SurveyedPartition(report=_stopped(report, problems=keys.problems))
    values = None if keys is None else keys.values
    columns = context_columns(frame, values, plan.program.columns, plan.key_col)
    if nulls := null_counts(columns):
        return SurveyedPartition(report=_stopped(report, nulls=nulls))
    results = Results(plan.program, columns, values, len(frame))
    found = results.distinct_values() if plan.categorical else results.distinct_ids(MAX_NUM_DBS)
    if len(found) > MAX_NUM_DBS:
        raise _too_many(len(found), plan)
    return SurveyedPartition(report=report, values=found)


def _keys(frame: pd.DataFrame, plan: SurveyPlan) -> EncodedKeys:
    return encode_key_column(column_or_index(frame, plan.key_col), plan.key_encoding)


def _stopped(report: PartitionReport, **why: Any) -> PartitionReport:
    return PartitionReport(partition=report.partition, rows=report.rows, **why)


def survey_error(surveyed: Sequence[SurveyedPartition], plan: SurveyPlan) -> ShardyfusionError | None:
    return reported_error([each.report for each in surveyed], plan.key_col)


def merged_values(surveyed: Sequence[SurveyedPartition], plan: SurveyPlan) -> list[Any]:
    """All values that there are, in order.

    Raises:
        InputDataError: there are too many of them, or numbers of shards with a gap.
    """
    values = sorted({value for each in surveyed for value in each.values})
    if len(values) > MAX_NUM_DBS:
        raise _too_many(len(values), plan)
    if not plan.categorical:
        _require_no_gap(values, plan)
    return values


def _require_no_gap(ids: Sequence[int], plan: SurveyPlan) -> None:
    if not ids or len(ids) == ids[-1] + 1:
        return
    missing = sorted(set(range(ids[-1])) - set(ids))
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    raise InputDataError(
        f"cel_expr {plan.program.expression!r} gives shards up to {ids[-1]}, but no row is in "
        f"{', '.join(map(str, missing[:_SHOWN]))}{more}; set num_dbs={ids[-1] + 1} if shards may be empty, or set "
        "infer_routing_values_from_data=True to number the values that there are",
        missing=missing[:_SHOWN],
    )


def _too_many(count: int, plan: SurveyPlan) -> InputDataError:
    return InputDataError(
        f"cel_expr {plan.program.expression!r} gives {count:,} different values, and each is a shard of its own; "
        f"{MAX_NUM_DBS:,} is the most. Use shard_hash(…) % …u to put many values into one shard"
    )
