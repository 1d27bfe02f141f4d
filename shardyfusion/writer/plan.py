"""Everything that a write has resolved, as plain picklable values: it is all that a worker sees."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shardyfusion.commits import BuildStart
from shardyfusion.config import ColumnWriteInput, WriteConfig
from shardyfusion.errors import ConfigValidationError
from shardyfusion.layout import attempt_directory, run_directory
from shardyfusion.limits import RateLimits
from shardyfusion.retry import RetryConfig
from shardyfusion.routing import Router
from shardyfusion.serde import KeyEncoding
from shardyfusion.shard_contract import DbAdapterFactory
from shardyfusion.storage import StoreAddress
from shardyfusion.type_defs import DuplicatePolicy
from shardyfusion.writer.seals import Seal

ROUTING_SAMPLE_ROWS = 20
"""Rows of each partition that `verify_routing` routes again, one by one."""


@dataclass(frozen=True, kw_only=True)
class EncodePlan:
    """How a partition becomes (shard, key, value) columns."""

    input: ColumnWriteInput
    key_encoding: KeyEncoding
    router: Router
    min_key_bytes: int
    max_key_bytes: int | None
    verify_routing: bool
    with_ordinal: bool

    @property
    def num_dbs(self) -> int:
        return self.router.num_dbs


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """How the rows of a shard become a sealed database of their own attempt directory. `start` goes into its seal."""

    run_id: str
    start: BuildStart
    address: StoreAddress
    adapter_factory: DbAdapterFactory
    run_dir: str
    db_path_template: str
    request: str
    key_encoding: KeyEncoding
    on_duplicate_key: DuplicatePolicy
    retry: RetryConfig
    limits: RateLimits
    local_root: Path | None

    def attempt_dir(self, db_id: int, attempt: int, nonce: str) -> str:
        return attempt_directory(self.run_dir, self.db_path_template, db_id, attempt, nonce)


@dataclass(frozen=True, kw_only=True)
class WritePlan:
    """The whole of one execution.

    `seals` are what earlier executions of the run id have sealed, by shard; each shard task is given its own. `token`
    is unique to the execution, so that no scheduler takes its tasks for another's.
    """

    encode: EncodePlan
    shard: ShardPlan
    seals: Mapping[int, Sequence[Seal]]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


def encode_plan(
    config: WriteConfig, input: ColumnWriteInput, router: Router, *, verify_routing: bool, with_ordinal: bool
) -> EncodePlan:
    return EncodePlan(
        input=input,
        key_encoding=config.key_encoding,
        router=router,
        min_key_bytes=config.adapter_factory.min_key_bytes,
        max_key_bytes=config.adapter_factory.max_key_bytes,
        verify_routing=verify_routing,
        with_ordinal=with_ordinal,
    )


def shard_plan(config: WriteConfig, *, run_id: str, request: str, start: BuildStart) -> ShardPlan:
    return ShardPlan(
        run_id=run_id,
        start=start,
        address=config.address(),
        adapter_factory=config.adapter_factory,
        run_dir=run_directory(config.output.shard_prefix, run_id),
        db_path_template=config.output.db_path_template,
        request=request,
        key_encoding=config.key_encoding,
        on_duplicate_key=config.on_duplicate_key,
        retry=config.shard_retry,
        limits=config.rate_limits,
        local_root=config.local_root,
    )


_CONTENT_OPTIONS = (
    "num_dbs",
    "max_keys_per_shard",
    "cel_expr",
    "cel_columns",
    "routing_values",
    "infer_routing_values_from_data",
    "key_encoding",
    "on_duplicate_key",
    "custom",
)


def request_fingerprint(config: WriteConfig, input: ColumnWriteInput, columns: Mapping[Any, Any]) -> str:
    """sha256 of what determines the snapshot's content and layout: the config (without connection, pace and identity),
    columns with dtypes, and the library's version. Never a Dask token: those differ from process to process."""
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.name in _CONTENT_OPTIONS}
    factory = config.adapter_factory
    settings = None
    if is_dataclass(factory):
        known = [f.name for f in fields(factory) if not f.metadata.get("same_content")]
        settings = {name: getattr(factory, name) for name in known}
    request: dict[str, Any] = {
        "kind": type(config).__name__,
        "options": options,
        "layout": [config.output.shard_prefix, config.output.db_path_template],
        "engine": [type(factory).__qualname__, settings],
        "key_col": input.key_col,
        "value": input.value_spec.fingerprint(),
        "columns": [[repr(name), str(dtype)] for name, dtype in columns.items()],
        "version": version("shardyfusion"),
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()


def check_local_root(root: Path | None) -> None:
    """Scratch must be a writable directory, or be creatable; found out before any work."""
    if root is None:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigValidationError(f"output.local_root {str(root)!r} cannot be created: {exc}") from exc
    if not os.access(root, os.W_OK):
        raise ConfigValidationError(f"output.local_root {str(root)!r} is not writable")
