"""Is this request one that can work? Asked before anything is read or written."""

from __future__ import annotations

from typing import Any

from shardyfusion.config import ColumnWriteInput, DaskWriteOptions, WriteConfig
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
