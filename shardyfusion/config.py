"""What users ask for: frozen, keyword-only, and valid once built. Derive variations with `dataclasses.replace`.

Resolving a request against data and a store is `writer/plan.py`; nothing here reads either.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from shardyfusion.credentials import CredentialProvider
from shardyfusion.layout import check_db_path_template, check_segment
from shardyfusion.limits import RateLimits
from shardyfusion.manifest import RESERVED_CUSTOM
from shardyfusion.manifest.models import RoutingValue
from shardyfusion.retry import RetryConfig
from shardyfusion.routing.cel.program import Program, compile_program
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.serde import KeyEncoding, ValueSpec
from shardyfusion.serde.keys import is_text
from shardyfusion.shard_contract import DbAdapterFactory
from shardyfusion.slatedb_adapter import SlateDbFactory
from shardyfusion.storage import StoreAddress
from shardyfusion.type_defs import DuplicatePolicy, S3ConnectionOptions, require, require_type

Shuffle = Literal["auto", "direct", "disk", "p2p", "tasks"]

MAX_NUM_DBS = 100_000
CARRIED = "shardyfusion:"
"""Prefix of the columns that a Dask shuffle carries beside `shard_id_col`."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Names below the prefix, and local scratch.

    `local_root` is where workers build shards before uploading them (default: the system's temporary directory); each
    attempt has a private directory there, which is removed whatever happens short of the process being killed.
    """

    shard_prefix: str = "shards"
    db_path_template: str = "db={db_id:05d}"
    local_root: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        require_type(self.local_root, (str, os.PathLike, NoneType), "local_root")
        check_segment(self.shard_prefix, "shard_prefix")
        require(
            self.shard_prefix not in ("commits", "manifests", "runs", "_CURRENT"),
            f"shard_prefix {self.shard_prefix!r} is taken by the snapshot's own objects; choose another",
        )
        check_db_path_template(self.db_path_template)


_VALUE_OBJECTS = {"output": OutputOptions, "shard_retry": RetryConfig, "rate_limits": RateLimits, "custom": Mapping}


@dataclass(frozen=True, kw_only=True)
class WriteConfig(ABC):
    """What every sharded write needs. Use `HashShardedWriteConfig` or `CelShardedWriteConfig`.

    Args:
        s3_prefix: where the snapshot lives: `s3://bucket/prefix`, `file:///path`, a local path, or `memory://name`.
        adapter_factory: the storage engine of the shards.
        key_encoding: how keys become bytes; integers need `U64BE` or `U32BE`, text `UTF8`, bytes `RAW` or `UTF8`.
        shard_id_col: name of the temporary column that holds the shard during a Dask shuffle; must not be in the data.
        run_id: names this build; default a fresh one. Pass a failed run's id to finish it.
        shard_retry: how often and how patiently a shard is built again after a passing error.
        rate_limits: per shard; the aggregate rate is `max_writes_per_second x num_dbs`.
        on_duplicate_key: `"fail"`, or keep the `"first"` or `"last"` row in input order.
        custom: JSON values stored in the manifest for your own use.
        force: publish even if a build that started later has been published.
        allow_unsafe_store: write to a store that ignores create-only writes; two writers can then lose a version.
    """

    s3_prefix: str | os.PathLike[str]
    adapter_factory: DbAdapterFactory = field(default_factory=SlateDbFactory)
    key_encoding: KeyEncoding = KeyEncoding.U64BE
    shard_id_col: str = "_shard_id"
    run_id: str | None = None
    shard_retry: RetryConfig = field(default_factory=RetryConfig)
    rate_limits: RateLimits = field(default_factory=RateLimits)
    output: OutputOptions = field(default_factory=OutputOptions)
    credential_provider: CredentialProvider | None = field(default=None, repr=False)
    s3_connection_options: S3ConnectionOptions | None = None
    on_duplicate_key: DuplicatePolicy = "fail"
    custom: Mapping[str, Any] = field(default_factory=dict[str, Any])
    force: bool = False
    allow_unsafe_store: bool = False

    def __post_init__(self) -> None:
        require_type(self.s3_prefix, (str, os.PathLike), "s3_prefix")
        # Resolved once: a relative path means what it meant here, wherever the write is started.
        object.__setattr__(self, "s3_prefix", self.address().url)
        object.__setattr__(self, "key_encoding", _key_encoding(self.key_encoding))
        for name, kind in _VALUE_OBJECTS.items():
            require_type(getattr(self, name), kind, name)
        require(
            isinstance(self.shard_id_col, str)
            and bool(self.shard_id_col)
            and not self.shard_id_col.startswith(CARRIED),
            f"shard_id_col is {self.shard_id_col!r}; give a column name that your data does not use, and that does not "
            f"start with {CARRIED!r}",
        )
        if self.run_id is not None:
            check_segment(self.run_id, "run_id")
        require(
            self.on_duplicate_key in get_args(DuplicatePolicy),
            f"on_duplicate_key is {self.on_duplicate_key!r}; use 'fail', 'first' or 'last'",
        )
        require(
            not isinstance(self.adapter_factory, type)
            and all(hasattr(self.adapter_factory, name) for name in ("backend", "check", "open")),
            f"adapter_factory {self.adapter_factory!r} is no factory; use SlateDbFactory(), LocalSlateDbFactory() or "
            "SqliteFactory()",
        )
        _check_custom(self.custom)

    def address(self) -> StoreAddress:
        """The prefix, parsed, with what is needed to reach it."""
        return StoreAddress.parse(
            self.s3_prefix, credential_provider=self.credential_provider, options=self.s3_connection_options
        )

    @property
    @abstractmethod
    def routing(self) -> str:
        """How rows find their shard, in a word or two."""

    @property
    def local_root(self) -> Path | None:
        given = self.output.local_root
        return None if given is None else Path(os.path.expanduser(given)).absolute()  # noqa: PTH111 (needs no HOME)


@dataclass(frozen=True, kw_only=True)
class HashShardedWriteConfig(WriteConfig):
    """Shard by hash of the key: `xxh3_64(key) mod num_dbs`.

    Give exactly one of `num_dbs` and `max_keys_per_shard`; the latter means `num_dbs = ceil(rows / it)`, so it is a
    target for the mean, not a bound for each shard, and it costs one pass over the input to count the rows.
    """

    num_dbs: int | None = None
    max_keys_per_shard: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [n for n in (self.num_dbs, self.max_keys_per_shard) if n is not None]
        require(
            len(chosen) == 1 and type(chosen[0]) is int and chosen[0] > 0,
            "set exactly one of num_dbs or max_keys_per_shard, to a positive integer",
        )
        _check_num_dbs(self.num_dbs)

    @property
    def routing(self) -> str:
        return "hash"


@dataclass(frozen=True, kw_only=True)
class CelShardedWriteConfig(WriteConfig):
    """Shard by a CEL expression over columns of the row (docs/cel.md); it is compiled and type-checked here.

    Without `routing_values` and `infer_routing_values_from_data` its result is the number of the shard itself.

    Args:
        cel_expr: the expression; it gives an int, uint, string or bytes.
        cel_columns: the type of each column that it names. `key` is the key column, whatever its name is.
        routing_values: all results that there are, in order of their shards: integers or strings.
        infer_routing_values_from_data: find them by a pass over the columns that the expression names, and sort them.
        num_dbs: how many shards there are, where results are their numbers; saves the pass that finds the highest.

    Raises:
        ConfigValidationError: the expression cannot be used; the message has the line and column.
        MissingExtraError: cel-python is not installed.
    """

    cel_expr: str
    cel_columns: Mapping[str, CelType | str]
    routing_values: Sequence[RoutingValue] | None = None
    infer_routing_values_from_data: bool = False
    num_dbs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_type(self.cel_expr, str, "cel_expr")
        require_type(self.cel_columns, Mapping, "cel_columns")
        require_type(self.infer_routing_values_from_data, bool, "infer_routing_values_from_data")
        object.__setattr__(
            self, "cel_columns", {name: _cel_type(name, kind) for name, kind in self.cel_columns.items()}
        )
        require(
            bool(self.program.columns),
            f"cel_expr {self.cel_expr!r} names no column, so it is the same for every row; for a single shard use "
            "HashShardedWriteConfig(num_dbs=1)",
        )
        chosen = [self.routing_values is not None, self.infer_routing_values_from_data, self.num_dbs is not None]
        require(
            sum(chosen) <= 1,
            "set at most one of routing_values, infer_routing_values_from_data and num_dbs; with routing values there "
            "are as many shards as values",
        )
        self._check_routing_values()
        if self.num_dbs is not None:
            require_type(self.num_dbs, int, "num_dbs")
            require(self.num_dbs > 0, f"num_dbs must be positive, not {self.num_dbs}")
        _check_num_dbs(self.num_dbs)

    @property
    def program(self) -> Program:
        columns: Mapping[str, Any] = self.cel_columns
        return compile_program(self.cel_expr, columns)

    @property
    def categorical(self) -> bool:
        """Whether a shard is the place of the result among routing values, and not the result itself."""
        return self.routing_values is not None or self.infer_routing_values_from_data

    @property
    def routing(self) -> str:
        return f"cel, {self.program.path}"

    def _check_routing_values(self) -> None:
        result = self.program.result
        require(
            not self.categorical or result != "bytes",
            f"cel_expr {self.cel_expr!r} gives bytes, which cannot be stored as routing values; use string(…) of it",
        )
        if self.routing_values is None:
            return
        require(
            isinstance(self.routing_values, Sequence) and not isinstance(self.routing_values, str | bytes),
            f"routing_values is {type(self.routing_values).__name__}; give a list of the expression's results",
        )
        values = tuple(self.routing_values)
        object.__setattr__(self, "routing_values", values)
        require(0 < len(values) <= MAX_NUM_DBS, f"give 1 to {MAX_NUM_DBS} routing_values, not {len(values)}")
        misfits = [value for value in values if not _is_result(value, result)]
        require(not misfits, f"cel_expr {self.cel_expr!r} gives {result}, which routing value {misfits[:1]} cannot be")
        repeated = [value for value, count in Counter(values).items() if count > 1]
        require(not repeated, f"routing_values has {repeated[:1]} more than once; each value is one shard")


@dataclass(frozen=True)
class ColumnWriteInput:
    """Which column (or named index) is the key, and how the other columns become the value."""

    key_col: str
    value_spec: ValueSpec

    def __post_init__(self) -> None:
        require(isinstance(self.key_col, str) and bool(self.key_col), "key_col must be the name of a column")
        require(
            isinstance(self.value_spec, ValueSpec),
            f"value_spec is {self.value_spec!r}; use ValueSpec.binary_col, .json_cols or .callable_encoder",
        )


@dataclass(frozen=True, kw_only=True)
class DaskWriteOptions:
    """How the Dask writer goes about it; none of these changes what is written.

    Args:
        sort_within_partitions: guarantee that adapters receive keys in ascending order. (Shards are built that way
            in any case today, because it is faster; this makes it a promise.)
        verify_routing: route up to 20 rows of every partition again with the reader's scalar router, and compare.
        shuffle: how rows reach their shard. `"direct"` hands every piece over by a task of its own, in worker memory
            (which a cluster spills); `"disk"` writes each encoded partition to a file in `output.local_root`, which
            all workers must share; `"p2p"` (distributed only) and `"tasks"` are Dask's own shuffles. `"auto"` chooses
            by the number of partitions x shards: docs/writing.md, "Exchange and memory". The rows, their order and
            the snapshot are the same whichever is taken.
        retries: how often Dask may run a failed task again. Acts on the distributed scheduler only.
    """

    sort_within_partitions: bool = False
    verify_routing: bool = True
    shuffle: Shuffle = "auto"
    retries: int = 2

    def __post_init__(self) -> None:
        require(
            self.shuffle in get_args(Shuffle),
            f"shuffle is {self.shuffle!r}; use one of {', '.join(map(repr, get_args(Shuffle)))}",
        )
        require_type(self.retries, int, "retries")
        require(self.retries >= 0, "retries must not be negative")


def _check_num_dbs(num_dbs: int | None) -> None:
    require((num_dbs or 1) <= MAX_NUM_DBS, f"num_dbs={num_dbs} is too many; {MAX_NUM_DBS} is the most")


def _cel_type(name: object, kind: object) -> CelType:
    require(isinstance(name, str), f"cel_columns has {name!r}; its names are those of columns")
    names = [known.value for known in CelType]
    require(
        isinstance(kind, str) and kind in names, f"cel_columns[{name!r}] is {kind!r}; use one of {', '.join(names)}"
    )
    return CelType(str(kind))


def _is_result(value: object, kind: str) -> bool:
    if kind == "string":
        return isinstance(value, str) and is_text(value)
    low, end = (-(2**63), 2**63) if kind == "int" else (0, 2**64)
    return type(value) is int and low <= value < end


def _key_encoding(value: KeyEncoding | str) -> KeyEncoding:
    try:
        return KeyEncoding(value)
    except ValueError:
        names = ", ".join(encoding.value for encoding in KeyEncoding)
        require(False, f"key_encoding is {value!r}; use one of {names}")
        raise


def _check_custom(custom: Mapping[str, Any]) -> None:
    taken = [name for name in RESERVED_CUSTOM if name in custom]
    require(not taken, f"custom must not hold {', '.join(map(repr, taken))}: these names are the format's own")
    try:
        json.dumps(dict(custom), allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as exc:
        require(False, f"custom is not JSON: {exc}")
