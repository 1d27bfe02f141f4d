"""Manifest format 4 (docs/format.md, section 3): a serialized SQLite database <-> `Manifest`.

Pure: bytes in, bytes out. Where manifests live is in `layout.py`; which one is served is in `commits/`.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any, cast

from shardyfusion.errors import ManifestParseError
from shardyfusion.layout import parse_timestamp
from shardyfusion.manifest.models import Manifest, ShardingSpec, ShardObject, ShardRecord
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.serde.keys import KeyEncoding

FORMAT_VERSION = 4
_MAGIC = b"SQLite format 3\0"
_SHA256 = re.compile(r"[0-9a-f]{64}")

_SCHEMA = """
CREATE TABLE build_meta (
    run_id TEXT NOT NULL, created_at TEXT NOT NULL, num_dbs INTEGER NOT NULL, s3_prefix TEXT NOT NULL,
    key_col TEXT NOT NULL, sharding TEXT NOT NULL, db_path_template TEXT NOT NULL, shard_prefix TEXT NOT NULL,
    format_version INTEGER NOT NULL, key_encoding TEXT NOT NULL, custom TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE shards (
    db_id INTEGER NOT NULL PRIMARY KEY, db_url TEXT, attempt INTEGER NOT NULL, row_count INTEGER NOT NULL,
    db_bytes INTEGER NOT NULL, min_key TEXT, max_key TEXT, checkpoint_id TEXT, writer_info TEXT NOT NULL DEFAULT '{}',
    backend TEXT, objects TEXT, row_digest TEXT, key_bytes_min BLOB, key_bytes_max BLOB
);
"""


def encode_manifest(manifest: Manifest) -> bytes:
    """The stored form. The same manifest always gives the same bytes: a repeated publish must be byte-identical."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(_SCHEMA)
        db.execute(
            "INSERT INTO build_meta VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                manifest.run_id,
                manifest.created_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                manifest.num_dbs,
                manifest.s3_prefix,
                manifest.key_col,
                _sharding_json(manifest.sharding),
                manifest.db_path_template,
                manifest.shard_prefix,
                FORMAT_VERSION,
                manifest.key_encoding.value,
                json.dumps(manifest.custom, sort_keys=True),
            ),
        )
        db.executemany(
            f"INSERT INTO shards VALUES ({','.join('?' * 14)})",  # noqa: S608 (a constant)
            [_shard_row(shard) for shard in manifest.shards],
        )
        return db.serialize()


def _sharding_json(spec: ShardingSpec) -> str:
    # Exactly these five keys: the reference rejects any other (docs/format.md, section 3.3).
    return json.dumps(
        {
            "cel_columns": None if spec.cel_columns is None else dict(spec.cel_columns),
            "cel_expr": spec.cel_expr,
            "hash_algorithm": spec.hash_algorithm,
            "routing_values": None if spec.routing_values is None else list(spec.routing_values),
            "strategy": spec.strategy,
        },
        sort_keys=True,
    )


def _shard_row(shard: ShardRecord) -> tuple[Any, ...]:
    return (
        shard.db_id,
        shard.db_url,
        shard.attempt,
        shard.row_count,
        shard.db_bytes,
        None if shard.min_key is None else json.dumps(shard.min_key),
        None if shard.max_key is None else json.dumps(shard.max_key),
        shard.checkpoint_id,
        json.dumps(shard.writer_info, sort_keys=True),
        shard.backend,
        json.dumps([{"path": o.path, "sha256": o.sha256, "size": o.size} for o in shard.objects]),
        shard.row_digest,
        shard.key_bytes_min,
        shard.key_bytes_max,
    )


def decode_manifest(body: bytes) -> Manifest:
    """Parse and validate; `ManifestParseError` says what is wrong, also for bytes that are no database at all."""
    _check_header(body)
    with _parse_errors(), contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.row_factory = sqlite3.Row
        db.deserialize(body)
        db.execute("PRAGMA trusted_schema=OFF")
        meta = _read(db, "build_meta")
        if not meta:
            raise ManifestParseError("the manifest's build_meta table is empty")
        return _manifest(meta[0], _read(db, "shards"))


@contextlib.contextmanager
def _parse_errors() -> Generator[None]:
    try:
        yield
    except ManifestParseError:
        raise
    except (sqlite3.Error, LookupError, ValueError, TypeError, OverflowError, OSError, RecursionError) as exc:
        raise ManifestParseError(f"the manifest cannot be read: {exc}") from exc


def _check_header(body: bytes) -> None:
    if body[:16] != _MAGIC or len(body) < 512:
        raise ManifestParseError("the manifest is not a SQLite database")
    if 2 in (body[18], body[19]):
        raise ManifestParseError("the manifest is a WAL-mode database, which format 4 does not allow")


def _read(db: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    kind = db.execute("SELECT type FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    if kind is None or kind["type"] != "table":
        raise ManifestParseError(f"the manifest has no table {table}")
    return [dict(row) for row in db.execute(f"SELECT * FROM {table}")]  # noqa: S608 (one of two constants)


def _manifest(meta: dict[str, Any], rows: list[dict[str, Any]]) -> Manifest:
    version = meta["format_version"]
    if version != FORMAT_VERSION:
        raise ManifestParseError(f"manifest format {version!r} is not supported; this reader knows {FORMAT_VERSION}")
    num_dbs = _integer(meta["num_dbs"], "num_dbs", minimum=1)
    shards = tuple(sorted((_shard(row) for row in rows), key=lambda shard: shard.db_id))
    ids = [shard.db_id for shard in shards]
    if len(set(ids)) != len(ids) or any(not 0 <= db_id < num_dbs for db_id in ids):
        raise ManifestParseError(f"shard ids {ids} are not unique numbers below num_dbs={num_dbs}")
    return Manifest(
        run_id=str(meta["run_id"]),
        created_at=_moment(meta["created_at"]),
        num_dbs=num_dbs,
        s3_prefix=str(meta["s3_prefix"]),
        key_col=str(meta["key_col"]),
        sharding=_sharding(meta["sharding"], num_dbs),
        key_encoding=KeyEncoding(meta["key_encoding"]),
        shards=shards,
        db_path_template=str(meta["db_path_template"]),
        shard_prefix=str(meta["shard_prefix"]),
        custom=_json_object(meta.get("custom") or "{}", "custom"),
    )


def _sharding(text: str, num_dbs: int) -> ShardingSpec:
    fields = _json_object(text, "sharding")
    unknown = set(fields) - {"strategy", "hash_algorithm", "cel_expr", "cel_columns", "routing_values"}
    if unknown or fields.get("strategy") not in ("hash", "cel") or fields.get("hash_algorithm") != "xxh3_64":
        raise ManifestParseError(f"sharding {text!r} is not one that this version can route")
    values = fields.get("routing_values")
    if values is not None and num_dbs != max(1, len(values)):
        raise ManifestParseError(f"{len(values)} routing values do not fit num_dbs={num_dbs}")
    expression, columns = fields.get("cel_expr"), fields.get("cel_columns")
    if fields["strategy"] == "hash" and any(field is not None for field in (expression, columns, values)):
        raise ManifestParseError("hash sharding with CEL fields")
    if fields["strategy"] == "cel" and not (_is_expression(expression, columns) and _are_routing_values(values)):
        raise ManifestParseError(f"sharding {text!r} is no CEL sharding: see its expression, columns and values")
    return ShardingSpec(
        strategy=fields["strategy"],
        hash_algorithm=fields["hash_algorithm"],
        cel_expr=fields.get("cel_expr"),
        cel_columns=fields.get("cel_columns"),
        routing_values=None if values is None else tuple(values),
    )


def _is_expression(expression: Any, columns: Any) -> bool:
    if not isinstance(columns, dict):
        return False
    types = cast("dict[str, Any]", columns)
    return isinstance(expression, str) and bool(expression and types) and {*map(str, types.values())} <= {*CelType}


def _are_routing_values(values: Any) -> bool:
    if values is None:
        return True
    items = cast("list[Any]", values) if isinstance(values, list) else [None]
    return {type(item) for item in items} in ({int}, {str}, set()) and len(set(items)) == len(items)


def _shard(row: dict[str, Any]) -> ShardRecord:
    return ShardRecord(
        db_id=_integer(row["db_id"], "db_id"),
        db_url=_text_or_none(row["db_url"], "db_url"),
        attempt=_integer(row["attempt"], "attempt"),
        row_count=_integer(row["row_count"], "row_count"),
        db_bytes=_integer(row["db_bytes"], "db_bytes"),
        min_key=None if row.get("min_key") is None else json.loads(row["min_key"]),
        max_key=None if row.get("max_key") is None else json.loads(row["max_key"]),
        checkpoint_id=_text_or_none(row.get("checkpoint_id"), "checkpoint_id"),
        writer_info=_json_object(row.get("writer_info") or "{}", "writer_info"),
        backend=row.get("backend"),
        objects=tuple(_object(item) for item in json.loads(row.get("objects") or "[]")),
        row_digest=row.get("row_digest"),
        key_bytes_min=row.get("key_bytes_min"),
        key_bytes_max=row.get("key_bytes_max"),
    )


def _object(item: Any) -> ShardObject:
    path, sha256 = str(item["path"]), str(item["sha256"])
    # Both become file names on the reader's side.
    if ".." in path.split("/") or path.startswith("/") or not _SHA256.fullmatch(sha256):
        raise ManifestParseError(f"{item!r} is no object of a shard")
    return ShardObject(path=path, size=_integer(item["size"], "size"), sha256=sha256)


def _text_or_none(value: Any, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ManifestParseError(f"{what} is {value!r}; it must be text")
    return value


def _integer(value: Any, what: str, minimum: int = 0) -> int:
    if type(value) is not int or value < minimum:
        raise ManifestParseError(f"{what} is {value!r}; it must be an integer of at least {minimum}")
    return value


def _json_object(text: str, what: str) -> dict[str, Any]:
    value: Any = json.loads(text)
    if not isinstance(value, dict):
        raise ManifestParseError(f"{what} is {text!r}; it must be a JSON object")
    return cast("dict[str, Any]", value)


def _moment(text: str) -> datetime:
    # The reference also accepts epoch seconds here.
    try:
        return parse_timestamp(text)
    except ValueError:
        return datetime.fromtimestamp(float(text), UTC)
