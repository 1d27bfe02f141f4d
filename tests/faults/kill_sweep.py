"""Stop a build at each of its points, over a prefix that serves an earlier version, and see to what is left."""

from __future__ import annotations

import re
import time
from collections.abc import Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

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
from shardyfusion.storage import wrapping_stores
from shardyfusion.testing import FaultStore, KillPoint
from tests.faults.kill_deaths import Death
from tests.faults.kill_jobs import KEYS, BuildJob, rows_of
from tests.faults.kill_prefix import Prefix

State = frozenset[str]

_CHEAPER_PART = 0.66
"""Of the points, one after another: the later a build is stopped, the longer that takes."""


class OneHourLater(FaultStore):
    """The leases of whoever died have expired."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=1)


@dataclass
class Report:
    """What came of a part of a sweep: which points there are, at which of them a build was stopped, and after which of
    these it was followed up."""

    points: list[int]
    stopped: list[int] = field(default_factory=list)
    followed: list[int] = field(default_factory=list)
    seconds: float = 0.0


class Sweep:
    """Stops one build after another, by `death`. What is left is always read, or seen not to have changed.

    It is built again, with the same run id and another one, and cleaned up, at every point, or unless `everywhere` only
    where the stopped build has left what no earlier one has. Each build begins over the same objects.
    """

    def __init__(self, prefix: str, engine: str, scratch: Path, death: Death, *, everywhere: bool) -> None:
        self._url, self._engine, self._scratch, self._death = prefix, engine, scratch, death
        self._everywhere = everywhere
        self._states: set[State] = set()
        self._numbers = count(1)
        self._prefix = Prefix(prefix, scratch)
        self._served = self._job()

    def run(self, part: int, parts: int) -> Report:
        """Stop at the points of one of two parts, or of one part that is all of them."""
        started = time.monotonic()
        self._served()
        self._prefix.remember()
        points = self._death.points(self._job())
        self._prefix.put_back()
        report = Report(points=[point.number for point in points])
        for point in self._share(points, part, parts):
            try:
                followed = self._stop_at(point)
            except Exception as exc:
                raise AssertionError(f"{self._engine} in {self._url}, stopped at {point}: {exc!r}") from exc
            report.stopped.append(point.number)
            if followed:
                report.followed.append(point.number)
        report.seconds = round(time.monotonic() - started, 1)
        return report

    def _share(self, points: list[KillPoint], part: int, parts: int) -> list[KillPoint]:
        if parts == 1 or self._everywhere:
            return points[part::parts]
        middle = round(len(points) * _CHEAPER_PART)  # not alternately: neighbours leave the same
        return points[middle:] if part else points[:middle]

    def _job(self) -> BuildJob:
        name = f"v{next(self._numbers):05d}"
        return BuildJob(self._url, self._engine, version=name, run_id=name, scratch=str(self._scratch / "shards"))

    def _stop_at(self, point: KillPoint) -> bool:
        """Whether it was followed up."""
        job, before = self._job(), self._prefix.remembered
        self._death.stop(job, point)
        after = self._prefix.objects()
        left = {name for name, found in after.items() if before.get(name) != found}
        assert set(before) <= set(after)
        assert left & set(before) <= {CURRENT}
        self._death.check(point, left)
        committed = any(parse_commit_name(name) for name in left)
        # The size of a run record tells its status.
        state = _state(
            {f"{name} {after[name][0]}" if parse_run_record_name(name) else name for name in left}, job.run_id
        )
        follow = self._everywhere or state not in self._states
        if committed or follow:
            self._check_rows(job if committed else self._served)
        else:  # the objects of the version that is served were read before, and are the same
            assert served_manifest(self._prefix.store).run_id == self._served.run_id
        if follow:
            self._follow_up(job)
            self._states.add(state)
        elif committed:
            assert job().reused
        self._prefix.put_back(None if follow or committed else after)
        return follow

    def _follow_up(self, job: BuildJob) -> None:
        later = self._job()
        assert job().run_id == job.run_id
        self._check_rows(job)
        assert later().run_id == later.run_id
        with wrapping_stores(OneHourLater):
            cleanup(self._url, keep_last=1, grace=timedelta(0))
        self._check_only_what_is_needed_is_left({job.run_id, later.run_id})
        self._check_rows(later)

    def _check_rows(self, job: BuildJob) -> None:
        """A fresh reader sees all rows of a build, and of no other."""
        with ShardedReader(self._url) as reader:
            assert reader.multi_get(KEYS) == rows_of(job.version)

    def _check_only_what_is_needed_is_left(self, run_ids: Set[str]) -> None:
        """The log, the outcomes, and the versions that are served now and were served before, with their run records."""
        store = self._prefix.store
        builds = [record for record in CommitLog(store).history() if record.kind == "build"]
        assert len({record.run_id for record in builds}) == len(builds)
        names = {info.name for info in store.list()}
        expected = {CURRENT} | {name for name in names if name.startswith((COMMITS, OUTCOMES))}
        expected |= {name for name in names if parse_run_record_name(name) in run_ids}
        kept = [record for record in builds if record.run_id in run_ids]
        assert len(kept) == len(run_ids)
        for record in kept:
            expected.add(self._name(record.manifest_ref))
            for shard in load_manifest(store, record.to_ref()).shards:
                directory = self._name(shard.db_url)
                expected |= {f"{directory}/{path}" for path in (SEAL, *(item.path for item in shard.objects))}
        assert names == expected, sorted(names ^ expected)
        self._prefix.check_nothing_unfinished()

    def _name(self, url: str) -> str:
        name = name_under(self._prefix.store.url, url)
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
