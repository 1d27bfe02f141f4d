"""Stop a build at each of its points, over a prefix that serves an earlier version, and see to what is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Set
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from uuid import uuid4

from shardyfusion import ShardedReader
from shardyfusion.commits import CommitLog, load_manifest, served_manifest
from shardyfusion.layout import (
    COMMITS,
    CURRENT,
    OUTCOMES,
    SEAL,
    name_under,
    parse_commit_name,
    parse_run_record_name,
)
from shardyfusion.operations import cleanup
from shardyfusion.storage import PendingUpload, StoreAddress, open_store, wrapping_stores
from shardyfusion.testing import FaultStore, KillPoint, count_kill_points
from tests.faults.kill_jobs import KEYS, BuildJob, rows_of

Stop = Callable[[BuildJob, KillPoint], None]
State = frozenset[str]
Objects = dict[str, tuple[int, str]]

FOLLOWED_PER_PREFIX = 20
"""A log that grows makes every cleanup slower."""


class OneHourLater(FaultStore):
    """The leases of whoever died have expired."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=1)


class Sweep:
    """Stops one build after another, by `stop`. What is left is always read, or seen not to have changed.

    It is built again, with the same run id and another one, and cleaned up, at every point, or with `followed` only
    where the stopped build has left what no earlier one has: `followed` holds the states that were followed up.
    """

    def __init__(
        self, root: str, engine: str, scratch: Path, stop: Stop, *, followed: set[State] | None = None
    ) -> None:
        self._root, self._engine, self._scratch, self._stop = root, engine, scratch, stop
        self._followed = followed
        self._numbers = count(1)
        self.follow_ups = 0

    def run(self) -> list[KillPoint]:
        """Stop at every point, and return them."""
        self._start_prefix()
        job = self._job()
        points = count_kill_points(job, directories=job.directories)
        self._start_prefix()
        for point in points:
            try:
                self._stop_at(point)
            except Exception as exc:
                raise AssertionError(f"{self._engine} in {self._prefix}, stopped at {point}: {exc!r}") from exc
        return list(points)

    def _start_prefix(self) -> None:
        self._prefix = f"{self._root}/{uuid4().hex[:8]}"
        self._store = open_store(StoreAddress.parse(self._prefix))
        self._served = self._job()
        self._served()
        self._before = self._objects()

    def _job(self) -> BuildJob:
        name = f"v{next(self._numbers):05d}"
        return BuildJob(self._prefix, self._engine, version=name, run_id=name, scratch=str(self._scratch))

    def _stop_at(self, point: KillPoint) -> None:
        job = self._job()
        self._stop(job, point)
        after = self._objects()
        left = {name for name, found in after.items() if self._before.get(name) != found}
        assert set(self._before) <= set(after)
        assert left & set(self._before) <= {CURRENT}
        committed = any(parse_commit_name(name) for name in left)
        # The size of a run record tells its status.
        state = _state(
            {f"{name} {after[name][0]}" if parse_run_record_name(name) else name for name in left}, job.run_id
        )
        follow = self._followed is None or state not in self._followed
        if committed or follow:
            self._check_rows(job if committed else self._served)
        else:  # the objects of the version that is served were read before, and are the same
            assert served_manifest(self._store).run_id == self._served.run_id
        if follow:
            self._follow_up(job)
            if self._followed is not None:
                self._followed.add(state)
        elif committed:
            assert job().reused  # it also brings the pointer along, so that the next build begins as all others
            self._store.abort_uploads(list(self._uploads()))
            self._served, self._before = job, self._objects()
        else:
            self._forget(left)

    def _follow_up(self, job: BuildJob) -> None:
        later = self._job()
        assert job().run_id == job.run_id
        self._check_rows(job)
        assert later().run_id == later.run_id
        with wrapping_stores(OneHourLater):
            cleanup(self._prefix, keep_last=1, grace=timedelta(0))
        self._check_only_what_is_needed_is_left({job.run_id, later.run_id})
        self._check_rows(later)
        self._served, self._before = later, self._objects()
        self.follow_ups += 1
        if self.follow_ups % FOLLOWED_PER_PREFIX == 0:
            self._start_prefix()

    def _check_rows(self, job: BuildJob) -> None:
        """A fresh reader sees all rows of a build, and of no other."""
        with ShardedReader(self._prefix) as reader:
            assert reader.multi_get(KEYS) == rows_of(job.version)

    def _objects(self) -> Objects:
        """What is there, temporary files of a local store included: sizes and etags."""
        found = {info.name: (info.size, info.etag) for info in self._store.list()}
        return found | {upload.name: (0, upload.upload_id) for upload in self._uploads()}

    def _uploads(self) -> Iterable[PendingUpload]:
        return () if "://" in self._prefix else self._store.pending_uploads()  # elsewhere one put makes an object

    def _forget(self, left: Set[str]) -> None:
        """Undo what a stopped build has done, so that the next one begins where it began."""
        unfinished = [upload for upload in self._uploads() if upload.name in left]
        self._store.abort_uploads(unfinished)
        self._store.delete(left - {upload.name for upload in unfinished})

    def _check_only_what_is_needed_is_left(self, run_ids: Set[str]) -> None:
        """The log, the outcomes, and the versions that are served now and were served before, with their run records."""
        log, names = CommitLog(self._store), {info.name for info in self._store.list()}
        builds = [record for record in log.history() if record.kind == "build"]
        assert len({record.run_id for record in builds}) == len(builds)
        expected = {CURRENT} | {name for name in names if name.startswith((COMMITS, OUTCOMES))}
        expected |= {name for name in names if parse_run_record_name(name) in run_ids}
        kept = [record for record in builds if record.run_id in run_ids]
        assert len(kept) == len(run_ids)
        for record in kept:
            expected.add(self._name(record.manifest_ref))
            for shard in load_manifest(self._store, record.to_ref()).shards:
                directory = self._name(shard.db_url)
                expected |= {f"{directory}/{path}" for path in (SEAL, *(item.path for item in shard.objects))}
        assert names == expected
        if "://" in self._prefix:
            assert list(self._store.pending_uploads()) == []
        else:
            files = {path for path in Path(self._prefix).rglob("*") if path.is_file()}
            assert {path.relative_to(self._prefix).as_posix() for path in files} == names

    def _name(self, url: str) -> str:
        name = name_under(self._store.url, url)
        assert name is not None
        return name


def _state(left: Set[str], run_id: str) -> State:
    """What a stopped build has left, without what is random in its names.

    Of a shard without its seal it does not matter how much is there: nobody reads it, and whoever cleans up deletes it.
    """
    sealed = {name.removesuffix(SEAL) for name in left if name.endswith(f"/{SEAL}")}
    known: set[str] = set()
    for name in left:
        directory, attempt, file = name.rpartition("/attempt=")
        unsealed = attempt and not name.startswith(tuple(sealed)) and ".shardyfusion-" not in name
        known.add(f"{directory} unsealed" if unsealed else f"{directory}{attempt}{file}")
    return frozenset(
        re.sub(r"[0-9a-f]{8,}|[0-9A-Z]{26}|\d{4}-\d\d-\d\dT[\d:.]+Z", "#", name.replace(run_id, "RUN"))
        for name in known
    )
