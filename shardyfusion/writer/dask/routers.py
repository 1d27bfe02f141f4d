"""From a config to the router of a write: all that the ways of sharding differ in."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, singledispatch
from typing import Any

import dask.dataframe as dd

from shardyfusion.config import (
    MAX_NUM_DBS,
    CelShardedWriteConfig,
    ColumnWriteInput,
    HashShardedWriteConfig,
    WriteConfig,
)
from shardyfusion.errors import ConfigValidationError
from shardyfusion.manifest import ShardingSpec
from shardyfusion.routing import Router
from shardyfusion.routing.cel.router import KEY, CelRouter
from shardyfusion.routing.hashing import HashRouter
from shardyfusion.type_defs import require
from shardyfusion.writer.dask.frame import compute_partitions, count_rows
from shardyfusion.writer.routing_values import (
    SurveyedPartition,
    SurveyPlan,
    merged_values,
    survey_error,
    survey_partition,
)


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


@resolve_router.register
def _(config: CelShardedWriteConfig, ddf: dd.DataFrame, input: ColumnWriteInput) -> tuple[Router, ShardingSpec]:
    program = config.program
    values = None if config.routing_values is None else tuple(config.routing_values)
    num_dbs = config.num_dbs if values is None else len(values)
    if num_dbs is None:
        found = _survey(config, ddf, input)
        values = tuple(found) if config.categorical else None
        num_dbs = max(1, len(found))
    router = CelRouter(
        program=program,
        num_dbs=num_dbs,
        key_name=KEY if KEY in program.columns else input.key_col,
        routing_values=values,
    )
    # Only what the expression names: readers of this format need all that is listed.
    columns = {name: kind.value for name, kind in program.columns.items()}
    sharding = ShardingSpec(
        strategy="cel", cel_expr=config.cel_expr, cel_columns=columns, routing_values=router.routing_values
    )
    return router, sharding


def _survey(config: CelShardedWriteConfig, ddf: dd.DataFrame, input: ColumnWriteInput) -> list[Any]:
    """The distinct values of the expression, by one pass over the columns that it names."""
    plan = SurveyPlan(
        program=config.program,
        categorical=config.categorical,
        key_col=input.key_col,
        key_encoding=config.key_encoding,
    )
    surveyed = _surveyed(ddf, plan)
    error = survey_error(surveyed, plan)
    if error is not None and "row" in error.facts and not plan.reads_keys:
        # Nothing will be written: a second pass that reads the keys too finds out which row it is.
        error = survey_error(_surveyed(ddf, replace(plan, with_keys=True)), plan) or error
    if error is not None:
        raise error
    return merged_values(surveyed, plan)


def _surveyed(ddf: dd.DataFrame, plan: SurveyPlan) -> list[SurveyedPartition]:
    wanted = {*plan.program.columns} | ({plan.key_col} if plan.reads_keys else set())
    columns = [name for name in ddf.columns if name in wanted]
    return compute_partitions(ddf, columns, partial(survey_partition, plan=plan))
