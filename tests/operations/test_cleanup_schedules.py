"""Cleanups beside everything else, in 300 random orders of their requests: nothing reachable goes, ever."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from shardyfusion.commits import CommitLog
from shardyfusion.errors import (
    ConfigValidationError,
    HeadMovedError,
    ManifestParseError,
    RunExpiredError,
    ShardCoverageError,
    ShardUnavailableError,
    StaleBuildError,
    StoreUnavailableError,
)
from shardyfusion.layout import COMMITS, OUTCOMES, RUNS, parse_run_record_name
from shardyfusion.operations import cleanup, rollback
from shardyfusion.run_registry import LEASE
from shardyfusion.storage import MemoryStore, ObjectStore, wrapping_stores
from shardyfusion.testing import FaultStore, Job, Killed, StoreCall, Turns
from shardyfusion.writer.outcome import Outcome
from tests.operations.protocol_jobs import build, lacking, reference_publish

SCHEDULES = 300
NO_GRACE = timedelta(0)
SITUATIONS = {
    "deletions": 1000,
    "cleanup killed before delete": 20,
    "cleanup asleep before delete": 20,
    "cleanup killed before create": 1,
    "build: done": 1000,
    "build, slept: RunExpiredError": 10,
    "rerun: RunExpiredError": 3,
    "rollback: done": 50,
    "rollback: RunExpiredError": 3,
    "rollback: HeadMovedError": 5,
    "reference: done": 100,
}
"""What the schedules must reach, and how often at least."""
ALLOWED = {
    "build": (StaleBuildError,),
    "rerun": (StaleBuildError, RunExpiredError),
    "rollback": (
        HeadMovedError,
        RunExpiredError,
        ConfigValidationError,
        ManifestParseError,
        ShardUnavailableError,
    ),
    "cleanup": (),
    "reference": (),
}


class KeyByKey(FaultStore):
    """Deletes one object at a time, so that a cleanup can be held up, or die, half-way."""

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            super().delete([name])


class Schedule:
    """One prefix, its clock, and jobs whose requests are put in an order by a seeded generator."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        # The host's clock is an hour ahead of the store's, or behind it, or right.
        self.time = datetime.now(UTC) + timedelta(hours=self.rng.choice([-1, 0, 1]))
        self.url = f"memory://{uuid4().hex}/snap"
        self.raw = MemoryStore(self.url, clock=lambda: self.time)
        self.turns = Turns()
        self.asleep: set[Job] = set()
        self.slept: set[Job] = set()
        self.reached: Counter[str] = Counter()

    def store_of_this_thread(self, store: ObjectStore) -> ObjectStore:
        """What `open_store` gives to the operations."""
        job = next((job for job in self.turns.jobs if job.name == threading.current_thread().name), None)
        return self.store(job) if job and store.url == self.url else self.raw

    def store(self, job: Job) -> ObjectStore:
        return KeyByKey(job.store(FaultStore(self.raw, after=self.check_deletion)))

    # -- time --------------------------------------------------------------------------------------------------------

    def pass_time(self, minutes: float) -> None:
        """Time goes by, and every process that is neither dead nor asleep writes its heartbeat."""
        for _ in range(max(1, int(minutes / 5))):
            self.time += timedelta(minutes=min(minutes, 5))
            at_work = [job for job in self.turns.running if job not in self.asleep]
            for info in list(self.raw.list(RUNS)):
                run_id = parse_run_record_name(info.name)
                if any(job.name.endswith(f"{run_id}") for job in at_work):
                    self.raw.put(info.name, self.raw.get(info.name).body, content_type="")

    # -- what must hold ------------------------------------------------------------------------------------------------

    def check_deletion(self, call: StoreCall) -> None:
        if call.verb == "delete":
            self.reached["deletions"] += 1
            if call.name.endswith(("/manifest", "/shard.db")):  # of what else is deleted, nothing needs anything
                self.check()

    def check(self) -> None:
        log = CommitLog(self.raw)
        state = log.state()
        records = list(log.records(1, state.head.seq)) if state.head else []
        given_up_by = {name: record.seq for record in records for name in record.expired}
        assert [info.name for info in self.raw.list(COMMITS)] == [f"{COMMITS}{r.seq:020d}.json" for r in records]
        for record in records:
            name = record.manifest_ref.removeprefix(f"{self.url}/")
            given_up = max(given_up_by.get(name, 0), given_up_by.get(record.run_id, 0))
            if name and given_up < record.seq:
                assert lacking(self.raw, record.to_ref()) == [], record
            assert record.kind != "build" or not 0 < given_up < record.seq, f"{record} was given up before"
        if state.served:
            assert lacking(self.raw, state.served) == [], state.served
        for info in self.raw.list(OUTCOMES):
            body = self.raw.get(info.name).body
            if "expired_by" not in json.loads(body):
                outcome = Outcome.decode(body, info.name)
                if outcome.run_id not in given_up_by:
                    for winner in outcome.winners:
                        assert self.raw.head(f"{winner.directory}/shard.db"), (outcome.run_id, winner.directory)

    def check_job(self, job: Job) -> None:
        """A build that was at work all the time is never given up, let alone robbed of a shard."""
        allowed = ALLOWED[job.name.split()[0]]
        if job in self.slept:  # taken for dead
            allowed = (*allowed, RunExpiredError, ShardCoverageError, StoreUnavailableError)
        assert job.error is None or isinstance(job.error, (*allowed, Killed)), (job.name, job.error)
        outcome = type(job.error).__name__ if job.error else "done"
        self.reached[f"{job.name.split()[0]}{', slept' if job in self.slept else ''}: {outcome}"] += 1


def build_job(schedule: Schedule, run_id: str, kind: str = "build") -> Job:
    return schedule.turns.start(f"{kind} {run_id}", lambda job: build(schedule.store(job), run_id))


def reference_job(schedule: Schedule, run_id: str) -> Job:
    return schedule.turns.start(f"reference {run_id}", lambda job: reference_publish(schedule.store(job), run_id))


def cleanup_job(schedule: Schedule) -> Job:
    keep, grace = schedule.rng.choice([1, 2, 3]), schedule.rng.choice([0, 3, 60])
    return schedule.turns.start(
        f"cleanup {uuid4().hex[:6]}",
        lambda job: cleanup(schedule.url, keep_last=keep, grace=timedelta(minutes=grace)),
    )


def rollback_job(schedule: Schedule) -> Job:
    to = schedule.rng.choice(["previous", "old-0", "old-1", "old-2"])
    return schedule.turns.start(f"rollback {uuid4().hex[:6]}", lambda job: rollback(schedule.url, to=to))


def to_the_end(job: Job) -> Job:
    while not job.ended:
        job.resume()
    return job


def history(schedule: Schedule) -> None:
    """Some versions, by now unevenly old, a run that died half-way, and perhaps another writer's snapshot."""
    rng = schedule.rng
    for number in range(3):
        to_the_end(build_job(schedule, f"old-{number}"))
        schedule.pass_time(rng.choice([1, 20, 200]))
        if rng.random() < 0.5:
            dead = build_job(schedule, f"dead-{number}")
            for _ in range(rng.randrange(1, 30)):
                if not dead.ended:
                    dead.resume()
            if not dead.ended:
                dead.kill()
        if rng.random() < 0.3:
            to_the_end(reference_job(schedule, f"other-{number}"))
        schedule.pass_time(rng.choice([1, 20, 200]))


def play(schedule: Schedule) -> None:
    """Let every job come to its end, in some order, some of them killed, or asleep for long."""
    rng = schedule.rng
    jobs = [cleanup_job(schedule), cleanup_job(schedule), rollback_job(schedule)]
    jobs += [build_job(schedule, f"new-{number}") for number in range(2)]
    if rng.random() < 0.5:
        jobs.append(reference_job(schedule, "other-new"))
    if rng.random() < 0.5:
        jobs.append(build_job(schedule, rng.choice(["dead-0", "dead-1", "old-0"]), kind="rerun"))
    rng.shuffle(jobs)
    while schedule.turns.running:
        awake = [job for job in schedule.turns.running if job not in schedule.asleep]
        chance = rng.random()
        if chance < 0.02 or not awake:
            schedule.pass_time(rng.choice([1, 4, 30, 120]))
            schedule.asleep -= {job for job in schedule.asleep if rng.random() < 0.3}
        elif chance < 0.03:
            put_to_sleep(schedule, rng.choice(awake))
        elif chance < 0.035:
            kill(schedule, rng.choice(awake))
        else:
            job = rng.choice(awake)
            for _ in range(rng.choice([1, 1, 2, 8])):
                if not job.ended:
                    job.resume()
                if job.pending is not None and job.pending.verb == "delete":
                    hold_up(schedule, job)


def put_to_sleep(schedule: Schedule, job: Job) -> None:
    # The other writer's publish asks nobody, so that a cleanup cannot hold it up once it has taken it for dead.
    if not job.name.startswith("reference"):
        schedule.asleep.add(job)
        schedule.slept.add(job)


def kill(schedule: Schedule, job: Job) -> None:
    schedule.reached[f"{job.name.split()[0]} killed before {job.pending.verb}"] += 1
    job.kill()


def hold_up(schedule: Schedule, job: Job) -> None:
    """A cleanup between two of its deletions is where it hurts most to be cut short, or to go on days later."""
    chance = schedule.rng.random()
    if chance < 0.03:
        kill(schedule, job)
    elif chance < 0.06:
        schedule.reached["cleanup asleep before delete"] += 1
        put_to_sleep(schedule, job)


def run(seed: int) -> Counter[str]:
    schedule = Schedule(seed)
    with wrapping_stores(schedule.store_of_this_thread):
        history(schedule)
        if schedule.rng.random() < 0.3:  # a build that sleeps for days, and wakes while others are at work
            stalled = build_job(schedule, "stalled")
            for _ in range(schedule.rng.randrange(8, 26)):
                if not stalled.ended:
                    stalled.resume()
            put_to_sleep(schedule, stalled)
            schedule.pass_time(schedule.rng.choice([30, 3000]))
        play(schedule)
        for job in schedule.turns.jobs:
            schedule.check_job(job)
        schedule.check()
        schedule.time += 2 * LEASE
        cleanup(schedule.url, keep_last=1, grace=NO_GRACE)
        schedule.check()
        again = cleanup(schedule.url, keep_last=1, grace=NO_GRACE)
        assert again.plan.empty, again
        assert again.seq is None
    return schedule.reached


@pytest.mark.timeout(900)
def test_nothing_reachable_is_ever_deleted() -> None:
    reached: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        try:
            reached += run(seed)
        except BaseException as exc:
            exc.add_note(f"schedule {seed}")
            raise
    print(*sorted(reached.items()), sep="\n")
    for situation, at_least in SITUATIONS.items():
        assert reached[situation] >= at_least, f"{situation}: {reached[situation]} times in {SCHEDULES} schedules"
