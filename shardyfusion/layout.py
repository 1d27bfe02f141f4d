"""Every object name below a snapshot's prefix, and every URL that we write or parse, in one place.

All are listed in docs/format.md, section 1. `manifests/`, `runs/`, `shards/` and `_CURRENT` are those of manifest
format 4; `commits/` and `runs/outcome/` are ours. Names are relative to the prefix and use `/`; URLs never end in one.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from shardyfusion.type_defs import require, require_type

CURRENT = "_CURRENT"
COMMITS = "commits/"
MANIFESTS = "manifests/"
RUNS = "runs/"
OUTCOMES = "runs/outcome/"
SQLITE_FILE = "shard.db"
SEAL = "seal.json"

JSON_TYPE = "application/json"
SQLITE_TYPE = "application/x-sqlite3"
YAML_TYPE = "application/x-yaml"
BINARY_TYPE = "application/octet-stream"

_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_TEMPLATE = re.compile(r"[A-Za-z0-9._=-]*\{db_id(:0\d{1,2}d)?\}[A-Za-z0-9._=-]*")
_MANIFEST_DIR = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)_run_id=([^/]+)/?")
_COMMIT = re.compile(r"commits/(\d{20})\.json")
_SHARD_OBJECT = re.compile(r"([^/]+)/run_id=([^/]+)/[^/]+/attempt=[^/]+/.+", re.DOTALL)
_RUN_RECORD = re.compile(r"runs/(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)_run_id=([^/]+)_([0-9a-f]{32})/run\.yaml")


def check_segment(value: str, what: str) -> str:
    """One path segment: letters, digits, `.`, `_`, `-`, no `..`. A `/`, `#` or `?` in a run id destroys data."""
    require_type(value, str, what)
    require(
        bool(_SEGMENT.fullmatch(value)) and ".." not in value and value != "." and len(value) <= 180,
        f"{what} {value!r} is not usable in object names: use up to 180 of A-Z a-z 0-9 . _ - and no '..'",
    )
    return value


def check_db_path_template(template: str) -> str:
    """A `str.format` template of one segment with the one field `db_id`."""
    require_type(template, str, "db_path_template")
    require(
        bool(_TEMPLATE.fullmatch(template)) and ".." not in template and len(template) <= 180,
        f"db_path_template {template!r} must be one path segment with the field db_id, such as 'db={{db_id:05d}}'",
    )
    return template


def timestamp(moment: datetime) -> str:
    """UTC with exactly six fraction digits and `Z`: what manifest and run record names are sorted by."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_timestamp(text: str) -> datetime:
    """The inverse of `timestamp`; also reads RFC 3339 without a fraction or with an offset. Naive means UTC."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def commit_name(seq: int) -> str:
    return f"{COMMITS}{seq:020d}.json"


def parse_commit_name(name: str) -> int | None:
    match = _COMMIT.fullmatch(name)
    return int(match[1]) if match else None


def manifest_name(stamp: str, run_id: str) -> str:
    return f"{MANIFESTS}{stamp}_run_id={run_id}/manifest"


def parse_manifest_name(name: str) -> tuple[datetime, str] | None:
    """(published at, run id) of a manifest's name, or None for any other object: listings hold strangers too."""
    directory, _, leaf = name.removeprefix(MANIFESTS).rpartition("/")
    match = _MANIFEST_DIR.fullmatch(directory)
    if not name.startswith(MANIFESTS) or leaf != "manifest" or not match:
        return None
    try:
        return parse_timestamp(match[1]), match[2]
    except ValueError:  # it has the form of a date, such as 2026-13-40
        return None


def outcome_name(run_id: str) -> str:
    return f"{OUTCOMES}{run_id}.json"


def parse_outcome_name(name: str) -> str | None:
    """The run id of an outcome's name, or None for any other object."""
    run_id = name.removeprefix(OUTCOMES).removesuffix(".json")
    return run_id if name == outcome_name(run_id) and "/" not in run_id else None


def run_record_name(stamp: str, run_id: str, execution: str) -> str:
    """`execution` is 32 hex digits: one record per execution, even of one run id."""
    return f"{RUNS}{stamp}_run_id={run_id}_{execution}/run.yaml"


def parse_run_record_name(name: str) -> str | None:
    """The run id of a run record's name, or None for any other object."""
    match = _RUN_RECORD.fullmatch(name)
    return match[2] if match else None


def run_directory(shard_prefix: str, run_id: str) -> str:
    """Where all shards of a run live; ends in `/`."""
    return f"{shard_prefix}/run_id={run_id}/"


def attempt_directory(run_dir: str, db_path_template: str, db_id: int, attempt: int, nonce: str) -> str:
    """One execution's own directory. The nonce (8 hex) keeps a zombie task out of a retry's files."""
    return f"{run_dir}{db_path_template.format(db_id=db_id)}/attempt={attempt:02d}-{nonce}"


def parse_shard_object_name(name: str, shard_prefixes: frozenset[str]) -> str | None:
    """The run id of an object of a shard, or None for any other: a `run_id=…` alone may be a directory of anybody's."""
    match = _SHARD_OBJECT.fullmatch(name)
    return match[2] if match and match[1] in shard_prefixes else None


def join_url(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}" if name else root.rstrip("/")


def name_under(root: str, url: str) -> str | None:
    """The name of `url` relative to `root`, or None if it does not lie under it (`..` never does)."""
    base = root.rstrip("/") + "/"
    name = url[len(base) :] if url.startswith(base) else None
    return name if name and ".." not in name.split("/") else None
