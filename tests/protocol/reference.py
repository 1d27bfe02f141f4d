"""Another writer of the same format, which knows nothing of commit records: FORMAT version 4 and `_CURRENT` alone."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from datetime import UTC, datetime

from shardyfusion.layout import CURRENT, JSON_TYPE, SQLITE_TYPE, join_url, manifest_name, timestamp
from shardyfusion.manifest import Manifest, encode_manifest
from tests.protocol.tiny_writes import KEYS, store_of
from tests.reader.snapshots import build

OUR_COLUMNS = ("backend", "objects", "row_digest", "key_bytes_min", "key_bytes_max")


def build_version(prefix: str, version: str) -> Manifest:
    """The shards of a version, without a writer."""
    return build(prefix, {key: f"{version}-{key}".encode() for key in KEYS}, num_dbs=2, run_id=version)


class Reference:
    """Its shards of one version are built at once, so that a publish is its two plain PUTs and nothing else."""

    def __init__(self, prefix: str, version: str) -> None:
        self.version = version
        self.store = store_of(prefix)
        manifest = build_version(prefix, version)
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
            db.deserialize(encode_manifest(manifest))
            for column in OUR_COLUMNS:
                db.execute(f"ALTER TABLE shards DROP COLUMN {column}")
            db.execute("UPDATE build_meta SET custom = '{}'")
            self._manifest = db.serialize()

    def publish(self) -> bytes:
        """Returns the pointer as stored."""
        name = manifest_name(timestamp(datetime.now(UTC)), self.version)
        self.store.put(name, self._manifest, content_type=SQLITE_TYPE)
        return self.rollback(join_url(self.store.url, name))

    def rollback(self, manifest_ref: str) -> bytes:
        """Names any manifest as the current one; whether it is there is not looked at."""
        run_id = re.search("run_id=([^/]+)", manifest_ref)
        assert run_id
        fields = {
            "format_version": 1,
            "manifest_content_type": SQLITE_TYPE,
            "manifest_ref": manifest_ref,
            "run_id": run_id[1],
            "updated_at": timestamp(datetime.now(UTC)),
        }
        body = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        self.store.put(CURRENT, body, content_type=JSON_TYPE)
        return body
