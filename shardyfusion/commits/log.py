"""The commit log of one prefix: reading it, appending a build to it, and moving `_CURRENT` after it.

One create-only record per change is the linearisation point; the pointer is a hint that readers probe upward from.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from shardyfusion.commits.create import Patience, create_once
from shardyfusion.commits.records import (
    BuildStart,
    CommitRecord,
    LogState,
    Pointer,
    decode_pointer,
    encode_pointer,
)
from shardyfusion.errors import (
    CommitLogError,
    ManifestParseError,
    ObjectExistsError,
    ObjectNotFoundError,
    PublishCurrentError,
    PublishUnknownError,
    RunExpiredError,
    StaleBuildError,
    StorageError,
    StoreAccessError,
    StoreUnavailableError,
    UnsafeStoreError,
)
from shardyfusion.layout import COMMITS, CURRENT, JSON_TYPE, commit_name, join_url, parse_commit_name
from shardyfusion.storage import ObjectStore

_log = logging.getLogger(__name__)


class CommitLog:
    """The log of one prefix. Stateless: every call reads the store."""

    def __init__(self, store: ObjectStore, *, patience: Patience | None = None, pointer_name: str = CURRENT) -> None:
        self._store = store
        self._patience = patience or Patience()
        self._pointer_name = pointer_name

    # -- reading ---------------------------------------------------------------------------------------------------

    def state(self, *, known_seq: int = 0) -> LogState:
        """Pointer and head. `known_seq` is a number that the caller has seen exist: probing starts no lower."""
        state = self._look_from(self._pointer(), known_seq)
        while state.foreign is not None:
            # Between the two reads it may have been committed over, replaced, and its successor committed over: that
            # head names only the successor. So it counts as newer than the head only if it still stands after it.
            pointer = self._pointer()
            if pointer is not None and pointer.body_sha256 == state.foreign.body_sha256:
                break
            state = self._look_from(pointer, known_seq)
        return state

    def _look_from(self, pointer: Pointer | None, known_seq: int) -> LogState:
        if pointer is not None and pointer.seq is not None:
            start = max(pointer.seq, known_seq)
            record = self.read(start) if start else None
            if start and record is None:
                # The pointer outlived its log, or the caller's number is of a log that was replaced.
                return LogState(pointer=pointer, head=self._listed_head())
            return LogState(pointer=pointer, head=self._climb(record))
        return LogState(pointer=pointer, head=self._listed_head())

    def read(self, seq: int) -> CommitRecord | None:
        name = commit_name(seq)
        try:
            return CommitRecord.decode(self._store.get(name).body, name)
        except ObjectNotFoundError:
            return None

    def records(self, first: int, last: int) -> Iterator[CommitRecord]:
        """Records `first..last`, each checked to follow its parent; `CommitLogError` where the chain is broken."""
        previous: CommitRecord | None = self.read(first - 1) if first > 1 else None
        if first > 1 and previous is None:
            raise CommitLogError(f"commit {first - 1} is missing", prefix=self._store.url)
        for seq in range(first, last + 1):
            record = self.read(seq)
            if record is None:
                raise CommitLogError(f"commit {seq} is missing although {last} exists", prefix=self._store.url)
            if record.parent != (None if previous is None else (previous.seq, previous.write_id)):
                raise CommitLogError(f"commit {seq} does not follow commit {seq - 1}", prefix=self._store.url)
            if previous is not None and record.log != previous.log:
                raise CommitLogError(f"commit {seq} belongs to another log", prefix=self._store.url)
            yield record
            previous = record

    def history(self, limit: int | None = None) -> Iterator[CommitRecord]:
        """Commit records, newest first."""
        head = self.state().head
        seq = head.seq if head else 0
        while seq > 0 and (limit is None or limit > 0):
            record = self.read(seq)
            if record is None:
                raise CommitLogError(f"commit {seq} is missing", prefix=self._store.url)
            yield record
            seq, limit = seq - 1, None if limit is None else limit - 1

    def _pointer(self) -> Pointer | None:
        try:
            stored = self._store.get(self._pointer_name)
        except ObjectNotFoundError:
            return None
        url = join_url(self._store.url, self._pointer_name)
        return decode_pointer(stored.body, url=url, etag=stored.info.etag, modified=stored.info.modified)

    def _listed_head(self) -> CommitRecord | None:
        seqs = [seq for info in self._store.list(COMMITS) if (seq := parse_commit_name(info.name))]
        return self._climb(self.read(max(seqs))) if seqs else None

    def _climb(self, record: CommitRecord | None) -> CommitRecord | None:
        """Probe upward from a record to the newest. 403 above a readable record counts as absent: S3 answers so for
        what is not there when the caller may not list."""
        while True:
            seq = record.seq + 1 if record else 1
            try:
                above = self.read(seq)
            except StoreAccessError:
                if record is None:
                    raise
                _log.warning("%s: no permission to read commit %d; taken as absent", self._store.url, seq)
                above = None
            if above is None:
                return record
            record = above

    # -- writing ---------------------------------------------------------------------------------------------------

    def append_build(
        self,
        *,
        run_id: str,
        manifest_ref: str,
        manifest_sha256: str,
        start: BuildStart,
        check_winners: Callable[[], None],
        force: bool = False,
    ) -> CommitRecord:
        """Commit a full build as the next record, or return the record that this run id already has.

        `check_winners` is called before each try; it raises when what the manifest names is no longer all there.
        Raises: StaleBuildError, RunExpiredError, CommitLogError, PublishUnknownError, PublishManifestError.
        """
        write_id = uuid.uuid4().hex
        seen = checked = start.base
        while True:
            state = self.state(known_seq=seen)
            head_seq = state.head.seq if state.head else 0
            committed = self._check_since(start, head_seq, run_id, checked)
            if committed is not None:
                return committed
            checked = head_seq
            if not force:
                _check_not_stale(start, state, run_id)
            check_winners()
            record = next_record(
                state,
                kind="build",
                run_id=run_id,
                manifest_ref=manifest_ref,
                manifest_sha256=manifest_sha256,
                write_id=write_id,
                base=start.base,
                started_at=start.started_at,
            )
            if self.create(record):
                return record
            seen = record.seq

    def find_build(self, run_id: str, start: BuildStart) -> CommitRecord | None:
        """The commit that this run id has made since its build began. `RunExpiredError` if a cleanup gave it up."""
        head = self.state(known_seq=start.base).head
        return self._check_since(start, head.seq if head else 0, run_id)

    def create(self, record: CommitRecord) -> bool:
        """Store a record under its number; False if another has it. `PublishUnknownError` if it may still land."""
        name = commit_name(record.seq)
        try:
            _, ours = create_once(self._store, name, record.encode(), content_type=JSON_TYPE, patience=self._patience)
        except StoreUnavailableError as exc:
            raise PublishUnknownError(
                f"commit {record.seq} may or may not have landed, nothing was deleted; {_how_to_finish(record)}",
                run_id=record.run_id,
                manifest_ref=record.manifest_ref,
            ) from exc
        return ours

    def _check_since(
        self, start: BuildStart, head_seq: int, run_id: str, checked: int | None = None
    ) -> CommitRecord | None:
        """Read every record since the build's base, or since the last one checked: our own commit, our expiry, or a
        broken log."""
        if head_seq < start.base:
            raise CommitLogError(
                f"the log ended at {start.base} when this build started and ends at {head_seq} now; it was replaced",
                prefix=self._store.url,
                run_id=run_id,
            )
        mine: CommitRecord | None = None
        for record in self.records((start.base if checked is None else checked) + 1, head_seq):
            if start.log is not None and record.log != start.log:
                raise CommitLogError(
                    "the commit log was replaced during the build", prefix=self._store.url, run_id=run_id
                )
            if run_id in record.expired:
                raise RunExpiredError(
                    f"cleanup gave up run {run_id!r} in commit {record.seq}; use a new run_id", run_id=run_id
                )
            if record.run_id == run_id and record.kind == "build":
                mine = record
        return mine

    def advance_pointer(self, committed: CommitRecord) -> None:
        """Bring `_CURRENT` to the head, never to a lower number, and never over a newer pointer of the reference.

        Raises `PublishCurrentError` when that does not succeed within the patience; the commit stands all the same.
        """
        patience = self._patience
        until = patience.clock() + patience.deadline_seconds
        while True:
            try:
                state = self.state(known_seq=committed.seq)
                head = state.head or committed
                if not head.manifest_ref or state.foreign or _has_reached(state.pointer, head):
                    return
                self._put_pointer(head, state.pointer)
                failure = None
            except (ObjectExistsError, ObjectNotFoundError, StoreUnavailableError) as exc:
                failure = exc  # someone else moved it, or the answer was lost: look again
            except (StorageError, ManifestParseError) as exc:
                raise _pointer_lags(committed, exc) from exc
            if patience.clock() >= until:
                if failure is None:
                    return  # moved, if late: whoever has committed since moves it on
                raise _pointer_lags(committed, failure) from failure
            if failure is not None:
                patience.sleep(patience.pause_seconds)

    def _put_pointer(self, record: CommitRecord, read: Pointer | None) -> None:
        body = encode_pointer(record)
        if read is None:
            self._store.create(self._pointer_name, body, content_type=JSON_TYPE)
            return
        try:
            self._store.replace(self._pointer_name, body, etag=read.etag, content_type=JSON_TYPE)
        except UnsafeStoreError:
            # No conditional update on this store: a slow writer may move the pointer back for a while. Readers probe
            # the log upward and are not fooled.
            self._store.put(self._pointer_name, body, content_type=JSON_TYPE)


def next_record(
    state: LogState, *, write_id: str | None = None, takes_over: bool = True, **fields: Any
) -> CommitRecord:
    """The record that would follow the head of `state`; `fields` are those that the kind of change decides.

    With `takes_over` it is published over whatever the pointer names now, a foreign snapshot included.
    """
    head, foreign = state.head, state.foreign if takes_over else None
    return CommitRecord(
        log=head.log if head else uuid.uuid4().hex,
        seq=head.seq + 1 if head else 1,
        parent=(head.seq, head.write_id) if head else None,
        write_id=write_id or uuid.uuid4().hex,
        committed_at=datetime.now(UTC),
        over=foreign.body_sha256 if foreign else head.over if head else None,
        over_ref=foreign.ref.ref if foreign else head.over_ref if head else None,
        **fields,
    )


def _how_to_finish(record: CommitRecord) -> str:
    if record.kind == "rollback":  # not "the same again": from here on, "previous" is what is being withdrawn
        return f"roll back to {record.manifest_ref} to finish"
    return f"{f'rerun with run_id={record.run_id!r}' if record.kind == 'build' else 'run the same again'} to finish"


def _has_reached(pointer: Pointer | None, head: CommitRecord) -> bool:
    """A number counts within its log: a pointer that outlived its own may have a higher one."""
    return pointer is not None and (pointer.seq or 0) >= head.seq and pointer.ref.log == head.log


def _pointer_lags(record: CommitRecord, why: Exception) -> PublishCurrentError:
    return PublishCurrentError(
        f"commit {record.seq} is durable, but _CURRENT could not be moved to it: {why}; {_how_to_finish(record)}",
        run_id=record.run_id,
        manifest_ref=record.manifest_ref,
    )


def _check_not_stale(start: BuildStart, state: LogState, run_id: str) -> None:
    head, foreign = state.head, state.foreign
    if foreign is not None and start.started_at <= foreign.modified:
        raise StaleBuildError(
            "another writer has published since this build started; rerun with a new run_id, or pass force=True",
            run_id=run_id,
            published=foreign.ref.run_id,
        )
    if head is None or head.seq == start.base:
        return
    if (start.base, start.started_at) <= (head.base, head.started_at):
        raise StaleBuildError(
            f"commit {head.seq} (run {head.run_id!r}) started no earlier and is published already; "
            "rerun with a new run_id, or pass force=True",
            run_id=run_id,
            published=head.run_id,
        )
