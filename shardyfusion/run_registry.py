"""Run records (docs/format.md, section 4): one `run.yaml` per execution, with a lease that a heartbeat keeps alive.

Creating the record twice is also the probe of the store: one that accepts the second ignores create-only writes.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self, cast, get_args

from shardyfusion.commits import Patience, create_once
from shardyfusion.errors import (
    ManifestParseError,
    ObjectExistsError,
    ObjectNotFoundError,
    ShardyfusionError,
    StorageError,
    StoreUnavailableError,
    UnsafeStoreError,
)
from shardyfusion.layout import RUNS, YAML_TYPE, parse_run_record_name, run_record_name, timestamp
from shardyfusion.masking import masked
from shardyfusion.storage import ObjectStore

_log = logging.getLogger(__name__)

LEASE = timedelta(minutes=10)
HEARTBEAT_SECONDS = 60.0

Status = Literal["running", "succeeded", "failed"]

_START_SECONDS = 3.0
"""How long a start is patient at most. A store that cannot be reached is told soon: nothing is lost by it yet."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The stored fields; moments are RFC 3339 text."""

    run_id: str
    started_at: str
    updated_at: str
    lease_expires_at: str
    s3_prefix: str
    shard_prefix: str
    db_path_template: str
    status: Status = "running"
    writer_type: str = "dask"
    manifest_ref: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    format_version: int = 1

    def encode(self) -> bytes:
        import yaml

        return yaml.safe_dump(asdict(self), sort_keys=True, default_flow_style=False, allow_unicode=True).encode()

    @classmethod
    def decode(cls, body: bytes, name: str) -> Self:
        """`ManifestParseError` if it is none. What later versions add is ignored."""
        import yaml

        try:
            found: object = yaml.safe_load(body)
            if not isinstance(found, Mapping):
                raise TypeError("it is no mapping")
            fields = {f.name: cast("Any", found)[f.name] for f in dataclass_fields(cls) if f.name in found}
            record = cls(**fields)
            record._check()
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as exc:
            raise ManifestParseError(f"the run record cannot be read: {exc}", name=name) from exc
        return record

    def _check(self) -> None:
        """Whoever wrote it, the fields are of their types: a status that nobody knows must not pass for an end."""
        for field in dataclass_fields(self):
            value = getattr(self, field.name)
            expected = int if field.name == "format_version" else str
            if not isinstance(value, expected) and not (value is None and field.default is None):
                raise TypeError(f"{field.name} is {value!r}")
        if self.status not in get_args(Status):
            raise ValueError(f"status is {self.status!r}")


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run record as found. `record` is None if it cannot be read; `modified` is by the store's clock."""

    name: str
    run_id: str
    modified: datetime
    record: RunRecord | None

    def alive(self, now: datetime) -> bool:
        """Whether its execution may still be at work at the store's time `now`.

        Judged by when the record was last written, on the store's clock: a wrong clock of the writer's host counts for
        nothing. A record that cannot be read is given the benefit of the doubt.
        """
        running = self.record is None or self.record.status == "running"
        return running and now - self.modified < LEASE

    def state(self, now: datetime) -> Literal["running", "succeeded", "failed", "lost", "unreadable"]:
        """Its status, for people. `lost`: it should be running, and has not been heard of for the length of a lease."""
        if self.record is None:
            return "unreadable"
        return "lost" if self.record.status == "running" and not self.alive(now) else self.record.status


def recorded_runs(store: ObjectStore, *, newest: int | None = None) -> Iterator[RecordedRun]:
    """Every run record of the prefix, oldest first by name, or just the `newest` so many of them; those of other
    writers of the format too."""
    named = ((info.name, parse_run_record_name(info.name)) for info in store.list(RUNS))
    found = [(name, run_id) for name, run_id in named if run_id is not None]
    for name, run_id in found[-newest if newest else 0 :]:
        try:
            stored = store.get(name)
        except ObjectNotFoundError:  # deleted since it was listed
            continue
        try:
            record = RunRecord.decode(stored.body, name)
        except ManifestParseError as exc:
            _log.warning("%s: %s", store.url, exc)
            record = None
        yield RecordedRun(name=name, run_id=run_id, modified=stored.info.modified, record=record)


class RunLease:
    """A live run record: renewed in the background until `finish`.

    Invariants: the record exists from `start` on; exactly one terminal status is written; the heartbeat thread ends
    with `finish` and never outlives the process. A renewal that fails is logged, not raised: a lost lease can at worst
    fail this build, never break a snapshot.
    """

    def __init__(self, store: ObjectStore, name: str, record: RunRecord, heartbeat_seconds: float) -> None:
        self._store = store
        self._name = name
        self._record = record
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._renew, args=(heartbeat_seconds,), name=f"lease-{record.run_id}", daemon=True
        )
        self.started_at: datetime
        """When the run started, on the store's clock."""

    @classmethod
    def start(
        cls,
        store: ObjectStore,
        *,
        run_id: str,
        shard_prefix: str,
        db_path_template: str,
        allow_unsafe_store: bool = False,
        patience: Patience | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> RunLease:
        """Create the record, probe the store with it, and keep it alive.

        Raises `UnsafeStoreError` if the store ignores create-only writes. Nothing is left behind by a start that
        fails, as far as the store lets it be removed.
        """
        now = datetime.now(UTC)
        record = RunRecord(
            run_id=run_id,
            started_at=timestamp(now),
            updated_at=timestamp(now),
            lease_expires_at=timestamp(now + LEASE),
            s3_prefix=store.url,
            shard_prefix=shard_prefix,
            db_path_template=db_path_template,
        )
        name = run_record_name(timestamp(now), run_id, uuid.uuid4().hex)
        patience = patience or Patience()
        patience = replace(patience, deadline_seconds=min(patience.deadline_seconds, _START_SECONDS))
        create_once(store, name, record.encode(), content_type=YAML_TYPE, patience=patience)
        with _removed_on_error(store, name):
            _probe(store, name, record.encode(), allow_unsafe_store)
            info = store.head(name)
            if info is None:
                raise StoreUnavailableError(
                    f"the run record {name} was created but is not there; is the prefix being deleted?"
                )
        lease = cls(store, name, record, heartbeat_seconds)
        lease.started_at = info.modified
        lease._thread.start()
        return lease

    def _renew(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            now = datetime.now(UTC)
            self._put(replace(self._record, updated_at=timestamp(now), lease_expires_at=timestamp(now + LEASE)))

    def _put(self, record: RunRecord) -> None:
        try:
            self._store.put(self._name, record.encode(), content_type=YAML_TYPE)
            self._record = record
        except Exception as exc:  # of whatever kind: it must neither end the heartbeat nor hide the error of the run
            _log.warning("run record %s could not be updated: %s", self._name, masked(str(exc)))

    def finish(self, *, manifest_ref: str | None = None, error: BaseException | None = None) -> None:
        """Write the terminal status and end the lease."""
        self._stop.set()
        self._thread.join()
        now = timestamp(datetime.now(UTC))
        terminal: dict[str, Any] = {
            "status": "succeeded" if error is None else "failed",
            "manifest_ref": manifest_ref,
            "error_type": None if error is None else type(error).__name__,
            "error_message": None if error is None else masked(str(error)),
        }
        self._put(replace(self._record, updated_at=now, lease_expires_at=now, **terminal))


@contextmanager
def _removed_on_error(store: ObjectStore, name: str) -> Generator[None]:
    try:
        yield
    except ShardyfusionError:
        with suppress(StorageError):
            store.delete([name])
        raise


def _probe(store: ObjectStore, name: str, body: bytes, allow_unsafe_store: bool) -> None:
    for _ in range(2):  # to be accepted once can also mean that a cleanup took us for dead and removed the record
        try:
            store.create(name, body, content_type=YAML_TYPE)
        except ObjectExistsError:
            return
        except StoreUnavailableError as exc:
            raise StoreUnavailableError(f"{store.url} did not answer the probe for create-only writes: {exc}") from exc
    if allow_unsafe_store:
        _log.warning(
            "%s ignores create-only writes (If-None-Match: *). Two writers on this prefix can lose a version without "
            "noticing; continuing because allow_unsafe_store=True",
            store.url,
        )
        return
    raise UnsafeStoreError(
        f"{store.url} ignores create-only writes (If-None-Match: *), so two writers could lose a version unnoticed; "
        "use a store that honours them, or pass allow_unsafe_store=True if there is never more than one writer"
    )
