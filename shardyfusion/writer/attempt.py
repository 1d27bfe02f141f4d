"""What one execution of one shard produced, as data: it rides home, and into `seal.json` and the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, Self

from shardyfusion.layout import join_url
from shardyfusion.manifest import ShardObject, ShardRecord
from shardyfusion.serde.keys import KeyEncoding, decode_key
from shardyfusion.serde.row_digest import parse_digest
from shardyfusion.type_defs import BackendName
from shardyfusion.writer.conservation import RowSum


@dataclass(frozen=True, kw_only=True)
class ShardAttempt:
    """A sealed, non-empty shard. `directory` is relative to the prefix and belongs to this attempt alone.

    `rows` were counted in the closed database; `row_digest` is over the rows handed to the adapter.
    """

    db_id: int
    attempt: int
    directory: str
    backend: BackendName
    rows: int
    duplicates_dropped: int
    db_bytes: int
    objects: tuple[ShardObject, ...]
    row_digest: str
    key_min: bytes
    key_max: bytes
    checkpoint_id: str
    seconds: float
    waited_seconds: float

    @property
    def kept(self) -> RowSum:
        """The rows that are in it."""
        return RowSum(self.rows, parse_digest(self.row_digest))

    def to_record(self, root_url: str, encoding: KeyEncoding) -> ShardRecord:
        """This attempt as a row of the manifest."""
        return ShardRecord(
            db_id=self.db_id,
            db_url=join_url(root_url, self.directory),
            attempt=self.attempt,
            row_count=self.rows,
            db_bytes=self.db_bytes,
            min_key=decode_key(encoding, self.key_min),
            max_key=decode_key(encoding, self.key_max),
            checkpoint_id=self.checkpoint_id,
            writer_info={
                "attempt": self.attempt,
                "duration_ms": round(self.seconds * 1000),
                "stage_id": None,
                "task_attempt_id": None,
            },
            backend=self.backend,
            objects=self.objects,
            row_digest=self.row_digest,
            key_bytes_min=self.key_min,
            key_bytes_max=self.key_max,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "objects": [dict(vars(item)) for item in self.objects],
            "key_min": self.key_min.hex(),
            "key_max": self.key_max.hex(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        given: dict[str, Any] = {f.name: fields[f.name] for f in dataclass_fields(cls) if f.name in fields}
        given["objects"] = tuple(ShardObject(**item) for item in fields["objects"])
        given["key_min"], given["key_max"] = bytes.fromhex(fields["key_min"]), bytes.fromhex(fields["key_max"])
        return cls(**given)
