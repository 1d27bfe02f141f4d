"""What the commands print, as plain values and text. No click here, and no arguments of a command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any

from shardyfusion.commits import CommitLog, listed_manifests, manifest_name_of, served_manifest
from shardyfusion.errors import ConfigValidationError
from shardyfusion.layout import join_url, timestamp
from shardyfusion.manifest import ManifestRef
from shardyfusion.reader import ShardDetails, SnapshotInfo
from shardyfusion.serde.keys import KeyEncoding, shown
from shardyfusion.storage import ObjectStore
from shardyfusion.type_defs import KeyInput


def info_fields(snapshot: SnapshotInfo, shards: Iterable[ShardDetails]) -> dict[str, Any]:
    """JSON-ready, in the order of the class."""
    return {**_plain(snapshot), "shard_details": [_plain(shard) for shard in shards]}


def _plain(record: SnapshotInfo | ShardDetails) -> dict[str, Any]:
    return {name: _json_value(value) for name, value in dataclasses.asdict(record).items()}


def _json_value(value: Any) -> Any:
    return timestamp(value) if isinstance(value, datetime) else value.value if isinstance(value, Enum) else value


def history_rows(store: ObjectStore, limit: int) -> list[dict[str, Any]]:
    """Commits newest first. A served manifest that no commit names comes before them; where there are no commits at
    all, manifests are listed by the time in their names."""
    served = served_manifest(store)
    rows = [
        _row(record.to_ref(), kind=record.kind, served=record.seq == served.seq)
        for record in CommitLog(store).history(limit)
    ]
    if not rows:
        return _manifest_rows(store, served, limit)
    if served.seq is None:
        rows.insert(0, _row(served, kind="uncommitted", served=True))
    return rows[:limit]


def _manifest_rows(store: ObjectStore, served: ManifestRef, limit: int) -> list[dict[str, Any]]:
    served_url = join_url(store.url, manifest_name_of(store, served.ref))
    return [_row(ref, kind="manifest", served=ref.ref == served_url) for ref in listed_manifests(store)[:limit]]


def _row(ref: ManifestRef, *, kind: str, served: bool) -> dict[str, Any]:
    return {
        "served": served,
        "seq": ref.seq,
        "kind": kind,
        "run_id": ref.run_id,
        "committed_at": timestamp(ref.published_at),
        "manifest_ref": ref.ref,
    }


def parse_key(text: str, key_type: str, encoding: KeyEncoding) -> KeyInput:
    """A key from the command line: `int`, `str`, `hex` (its stored bytes), or `auto`: what the snapshot's keys are."""
    integers = encoding.integer_width is not None
    kind = ("int" if integers else "str") if key_type == "auto" else key_type
    try:
        if kind == "hex":
            stored = bytes.fromhex(text)
            return int.from_bytes(stored, "big") if integers else stored
        return int(text) if kind == "int" else text
    except ValueError as exc:
        wanted = "an integer" if kind == "int" else "pairs of hex digits"
        raise ConfigValidationError(
            f"key {shown(text)} is not {wanted}; the snapshot's keys are {encoding.value}, see --key-type"
        ) from exc


def parse_context(entries: Iterable[str], columns: Mapping[str, str]) -> dict[str, Any]:
    """A routing context from `NAME=VALUE` texts, each value as its column's type. What is missing, readers tell."""
    context: dict[str, Any] = {}
    for entry in entries:
        name, separator, text = entry.partition("=")
        if not separator or name not in columns:
            raise ConfigValidationError(
                f"--context {shown(entry)} is not NAME=VALUE of {', '.join(columns) or 'a column: the key is enough'}"
            )
        try:
            context[name] = _FROM_TEXT[columns[name]](text)
        except (ValueError, KeyError) as exc:
            raise ConfigValidationError(f"--context {shown(entry)}: {name} is {columns[name]}") from exc
    return context


_FROM_TEXT: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "uint": int,
    "double": float,
    "bool": {"true": True, "false": False}.__getitem__,
    "string": str,
    "bytes": bytes.fromhex,
}


def show_value(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Aligned text: a head line, then one line per row. True is `*`; False and None show as nothing and `-`."""
    cells = [list(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: Any) -> str:
    return "-" if value is None else "*" if value is True else "" if value is False else str(value)
