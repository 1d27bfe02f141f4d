"""Is this request one that can work? Asked before anything is read or written."""

from __future__ import annotations

from typing import Any

from shardyfusion.config import CelShardedWriteConfig, ColumnWriteInput, DaskWriteOptions, WriteConfig
from shardyfusion.routing.cel.columns import check_column_dtype, check_key_column_dtype
from shardyfusion.routing.cel.router import KEY
from shardyfusion.serde.key_columns import check_key_dtype
from shardyfusion.type_defs import require
from shardyfusion.writer.dask.exchange import is_in_process, scheduler_kind
from shardyfusion.writer.dask.frame import FrameFacts, frame_facts
from shardyfusion.writer.plan import check_local_root


def check_request(ddf: Any, config: WriteConfig, input: ColumnWriteInput, options: DaskWriteOptions) -> FrameFacts:
    """Refuse everything that can be known to be wrong without touching data or store; else what the frame tells."""
    key_col = input.key_col
    facts = frame_facts(ddf)
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
    if isinstance(config, CelShardedWriteConfig):
        _check_routing_columns(config, facts, key_col)
    input.value_spec.check_columns(facts.columns, facts.dtypes)
    address, scheduler = config.address(), scheduler_kind()
    config.adapter_factory.check(address)
    check_local_root(config.local_root)
    require(
        address.kind != "memory" or is_in_process(),
        f"{address.url} lives in this process only, and the scheduler ({scheduler}) may have others; use a local "
        "directory or s3://, or compute with scheduler='threads'",
    )
    require(
        options.shuffle != "p2p" or scheduler == "distributed",
        f"shuffle='p2p' needs a distributed client, not {scheduler}; use 'auto', 'direct', 'disk' or 'tasks'",
    )
    return facts


def _check_routing_columns(config: CelShardedWriteConfig, facts: FrameFacts, key_col: str) -> None:
    """Every column that the expression names is there, and of a dtype that can hold its declared type."""
    for name, kind in config.program.columns.items():
        require(
            name != KEY or key_col == KEY or KEY not in facts.dtypes,
            f"cel_expr {config.cel_expr!r} names {KEY!r}, which is the key column, and the data has another column of "
            f"that name; rename it, or write {key_col!r} in the expression",
        )
        if name in (KEY, key_col):
            check_key_column_dtype(facts.dtypes[key_col], kind, name)
            continue
        require(
            name in facts.dtypes,
            f"cel_expr {config.cel_expr!r} names {name!r}, which is no column or named index; there are "
            f"{', '.join(map(str, facts.dtypes))}",
        )
        check_column_dtype(facts.dtypes[name], kind, name)
