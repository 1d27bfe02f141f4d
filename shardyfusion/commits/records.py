"""What the commit log and the `_CURRENT` pointer hold, and how that is stored. Pure: no requests are sent here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime
from typing import Any, Self

from shardyfusion.errors import ManifestParseError
from shardyfusion.layout import SQLITE_TYPE, parse_commit_name, parse_timestamp, timestamp
from shardyfusion.manifest import ManifestRef
from shardyfusion.serde.checked_json import decode_checked, encode_checked


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """One numbered, create-only change of what is served.

    `base` (the head when the build started) and `started_at` (the store's clock) order full builds. `over` is the
    sha256 of the last pointer of another writer that this log knows of, `over_ref` the manifest which that one named.
    `expired` names the run ids and manifests that a cleanup gave up. `manifest_ref` is empty in a log that serves
    nothing, as when a cleanup made its first record.
    """

    log: str
    seq: int
    parent: tuple[int, str] | None
    kind: str
    run_id: str
    manifest_ref: str
    manifest_sha256: str
    write_id: str
    base: int
    started_at: datetime
    committed_at: datetime
    over: str | None = None
    over_ref: str | None = None
    expired: tuple[str, ...] = ()
    operation_id: str | None = None

    def encode(self) -> bytes:
        fields = {
            **asdict(self),
            "format": 1,
            "started_at": timestamp(self.started_at),
            "committed_at": timestamp(self.committed_at),
        }
        return encode_checked(fields)

    @classmethod
    def decode(cls, body: bytes, name: str) -> Self:
        try:
            fields = decode_checked(body)
            if fields.pop("format") != 1:
                raise ValueError("unknown format")
            for moment in ("started_at", "committed_at"):
                fields[moment] = parse_timestamp(fields[moment])
            fields["parent"] = tuple(fields["parent"]) if fields["parent"] else None
            fields["expired"] = tuple(fields["expired"])
            # A later version may add fields; what this one knows still means the same.
            record = cls(**{f.name: fields[f.name] for f in dataclass_fields(cls) if f.name in fields})
            record._check()
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ManifestParseError(f"the commit record cannot be read: {exc}", name=name) from exc
        if parse_commit_name(name) != record.seq:
            raise ManifestParseError("the commit record holds another number than its name", name=name, seq=record.seq)
        return record

    def _check(self) -> None:
        texts = (self.log, self.kind, self.run_id, self.manifest_ref, self.manifest_sha256, self.write_id)
        if not all(isinstance(text, str) for text in texts) or not all(type(n) is int for n in (self.seq, self.base)):
            raise ValueError("a field has the wrong type")

    def to_ref(self) -> ManifestRef:
        return ManifestRef(
            ref=self.manifest_ref,
            run_id=self.run_id,
            published_at=self.committed_at,
            seq=self.seq,
            log=self.log,
            sha256=self.manifest_sha256,
        )


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """`_CURRENT` as read (docs/format.md, section 2). `seq` is None in a pointer that the reference wrote."""

    ref: ManifestRef
    seq: int | None
    etag: str
    modified: datetime
    body_sha256: str


def encode_pointer(record: CommitRecord) -> bytes:
    fields = {
        "format_version": 1,
        "manifest_content_type": SQLITE_TYPE,
        "manifest_ref": record.manifest_ref,
        "run_id": record.run_id,
        "updated_at": timestamp(record.committed_at),
        "seq": record.seq,
        "log": record.log,
        "write_id": record.write_id,
        "manifest_sha256": record.manifest_sha256,
    }
    return encode_checked(fields)


def decode_pointer(body: bytes, *, url: str, etag: str, modified: datetime) -> Pointer:
    try:
        fields = decode_checked(body)
        seq = fields.get("seq")
        if seq is not None and (type(seq) is not int or seq < 1):
            raise ValueError(f"seq is {seq!r}")
        updated = fields["updated_at"]
        ref = ManifestRef(
            ref=str(fields["manifest_ref"]),
            run_id=str(fields["run_id"]),
            published_at=datetime.fromtimestamp(updated, UTC)
            if isinstance(updated, int | float)
            else parse_timestamp(updated),
            seq=seq,
            log=fields.get("log"),
            sha256=fields.get("manifest_sha256"),
        )
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError) as exc:
        raise ManifestParseError(
            f"the pointer {url} cannot be read: {exc!r}; if only this library publishes here, delete it: readers then "
            "find the newest commit by listing, and the next write makes a new one"
        ) from exc
    return Pointer(ref=ref, seq=seq, etag=etag, modified=modified, body_sha256=hashlib.sha256(body).hexdigest())


@dataclass(frozen=True, kw_only=True)
class LogState:
    """The pointer and the newest commit record, as one read of the store found them."""

    pointer: Pointer | None
    head: CommitRecord | None

    @property
    def foreign(self) -> Pointer | None:
        """A pointer of the reference that is newer than everything in our log."""
        pointer = self.pointer
        if pointer is None or pointer.seq is not None:
            return None
        return None if self.head and self.head.over == pointer.body_sha256 else pointer

    @property
    def served(self) -> ManifestRef | None:
        if self.foreign:
            return self.foreign.ref
        return self.head.to_ref() if self.head and self.head.manifest_ref else None


@dataclass(frozen=True, kw_only=True)
class BuildStart:
    """What a full build is ordered by: the head it saw when it started, and the store's clock then."""

    base: int
    started_at: datetime
    log: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"base": self.base, "started_at": timestamp(self.started_at), "log": self.log}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(base=fields["base"], started_at=parse_timestamp(fields["started_at"]), log=fields["log"])
