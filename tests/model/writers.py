"""The writer of section "Commit protocol", one store request per `yield`.

A phase is a generator: it yields requests, is sent their answers, and returns `Goto` the next phase or `Done`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.model.rules import Rules
from tests.model.world import (
    DEADLINE,
    EXISTS,
    GIVEN_UP,
    OK,
    POINTER,
    Begin,
    BuildStart,
    Create,
    Delete,
    Done,
    Get,
    Goto,
    ListShards,
    Look,
    Manifest,
    Outcome,
    Pointer,
    Put,
    ReadLog,
    Record,
    Swap,
    foreign_pointer,
    holder,
)


@dataclass(frozen=True)
class Actor:
    """One execution of something. `clock_skew` is its host's, `target` what a rollback goes back to."""

    name: str
    program: Any
    run: str = ""
    request: str = "request"
    force: bool = False
    reuses: bool = False
    target: str = ""
    clock_skew: int = 0


# -- steps 0 to 2 ------------------------------------------------------------------------------------------------------


def write(me: Actor, rules: Rules):
    """Step 0: run record, base, and the outcome that an earlier execution left."""
    start = yield from start_of(me, rules)
    found = yield Get(("outcome", me.run))
    if found is not None:
        return _adopt(me, rules, start, found)
    return Goto(build, (start,))


def start_of(me: Actor, rules: Rules):
    modified, truth = yield Begin()
    log = yield ReadLog(starting=True)
    started_at = modified if rules.store_clock else modified + me.clock_skew
    return BuildStart(len(log), started_at, log[-1].log if log else None, truth)


def build(me: Actor, rules: Rules, start: BuildStart):
    """One shard, which may be an earlier execution's that was sealed."""
    shard = ("shard", me.run, me.name)
    sealed = (yield ListShards(me.run)) if me.reuses else ()
    if sealed:
        shard, began = sealed[0]
        start = began if rules.reuse_keeps_earliest_values else start._replace(truth=began.truth)
    else:
        yield Put(shard, start)
    return Goto(freeze, (Outcome(me.run, me.name, me.request, (shard,), start),))


def freeze(me: Actor, rules: Rules, outcome: Outcome):
    """Step 1: the outcome, or the one that is there."""
    answer, stored = yield from create_once(rules, ("outcome", me.run), outcome, rules.outcome_create_only)
    if answer != "exists":
        return Goto(describe, (outcome,)) if answer == "ours" else Done(answer)
    if stored is None:
        return Done("conflict")
    if not rules.outcome_decides:
        return Goto(describe, (outcome,))
    return _adopt(me, rules, outcome.start, stored)


def _adopt(me: Actor, rules: Rules, start: BuildStart, found: Outcome):
    if found.stamp == GIVEN_UP:
        return Done("expired")
    if found.request != me.request and rules.request_must_match:
        return Done("conflict")
    if not rules.rerun_keeps_values_of_outcome:
        found = found._replace(start=start._replace(truth=found.start.truth))
    return Goto(describe, (found,))


def describe(me: Actor, rules: Rules, outcome: Outcome):
    """Step 2: the manifest. The same content in other bytes is another SQLite's."""
    mine = Manifest(me.run, outcome.winners, flavour=me.name)
    name = ("manifest", f"{outcome.run}@{outcome.stamp}")
    answer, stored = yield from create_once(rules, name, mine, rules.manifest_create_only)
    if answer == "unknown" or answer == "rejected":
        return Done(answer)
    if stored is None or stored.winners != mine.winners:
        return Done("conflict")
    return Goto(decide, (outcome, stored if rules.record_names_stored_digest else mine))


# -- step 3 ------------------------------------------------------------------------------------------------------------


def decide(me: Actor, rules: Rules, outcome: Outcome, digest: Manifest):
    """Read the log and the pointer, and say what may be committed now."""
    looked = yield from look(rules)
    if looked is None:
        return Goto(decide, (outcome, digest))
    _, foreign, log, seen = looked
    refused = _check_since_base(me, rules, outcome, log) or _check_not_stale(me, rules, outcome.start, foreign, log)
    if refused:
        return refused
    if rules.check_winners_before_commit:
        there = yield ListShards(me.run)
        if not {shard for shard, _ in there}.issuperset(outcome.winners):
            return Done("winners gone")
    record = Record(
        log=log[-1].log if log else me.name,
        seq=len(log) + 1,
        parent=log[-1].write_id if log else None,
        kind="build",
        run=me.run,
        manifest=f"{outcome.run}@{outcome.stamp}",
        digest=digest,
        write_id=me.name,
        start=outcome.start,
        over=over_of(rules, foreign, log),
        forced=me.force,
        seen=seen,
    )
    return Goto(commit, (outcome, record))


def look(rules: Rules):
    """Pointer and log; None to look again, because the pointer was changed while the log was read."""
    pointer, seen = yield Look()
    log = yield ReadLog()
    foreign = foreign_pointer(pointer, log)
    if foreign and rules.over_is_read_again_after_the_log:
        again, _ = yield Look()
        if again != pointer:
            return None
    return pointer, foreign, log, seen


def over_of(rules: Rules, foreign: Pointer | None, log: tuple) -> Pointer | None:
    if foreign and rules.over_is_recorded:
        return foreign
    return log[-1].over if log and rules.over_is_inherited else None


def _check_since_base(me: Actor, rules: Rules, outcome: Outcome, log: tuple):
    start, mine = outcome.start, None
    if rules.another_log_is_refused and (len(log) < start.base or (start.log and log[-1].log != start.log)):
        return Done("another log")
    since = log[start.base :] if rules.every_record_is_read else log[start.base :][-1:]
    for record in since:
        passes = me.force and not rules.force_does_not_pass_expiry
        if me.run in record.expired and rules.own_expiry_is_looked_for and not passes:
            return Done("expired")
        if record.run == me.run and record.kind == "build" and rules.own_run_id_is_looked_for:
            mine = record
    return Goto(point, (outcome, mine)) if mine else None


def _check_not_stale(me: Actor, rules: Rules, start: BuildStart, foreign: Pointer | None, log: tuple):
    if me.force or not rules.stale_builds_are_refused:
        return None
    if foreign and rules.staleness_by_foreign_pointer and start.started_at <= foreign.modified:
        return Done("stale", start=start, versus=foreign)
    if len(log) <= start.base:
        return None
    mine, theirs = (start.base, start.started_at), (log[-1].start.base, log[-1].start.started_at)
    if not rules.staleness_by_started_at:
        return Done("stale", start=start, versus=holder(log)) if mine[0] < theirs[0] else None
    if not rules.staleness_by_base_first:
        mine, theirs = mine[1:], theirs[1:]
    return Done("stale", start=start, versus=holder(log)) if mine <= theirs else None


def commit(me: Actor, rules: Rules, outcome: Outcome, record: Record):
    """The record. A number that someone else has means: read and decide again."""
    answer, _ = yield from create_once(rules, ("commit", record.seq), record, rules.records_create_only)
    if answer == "ours":
        return Goto(point, (outcome, record))
    if answer == "exists":
        return Goto(decide, (outcome, record.digest))
    if not rules.nothing_deleted_after_unknown:
        for shard in outcome.winners:
            yield Delete(shard)
    return Done(answer, start=outcome.start)


def create_once(rules: Rules, name: tuple, body: Any, conditional: bool):
    """A create-only PUT that survives lost replies: ("ours" | "exists" | "unknown" | "rejected", what is stored)."""
    while True:
        answer = yield Create(name, body, conditional)
        if answer == OK:
            return "ours", body
        if answer == EXISTS:
            stored = (yield Get(name)) if rules.read_back_on_412 else None
            if stored is not None or not rules.read_back_on_412:
                return ("ours" if stored == body else "exists"), stored
            continue
        if not rules.timeout_is_not_rejection:
            return "rejected", None
        if not rules.timeout_is_not_success:
            return "ours", body
        if answer == DEADLINE:
            return "unknown", None


# -- step 4, and after it ----------------------------------------------------------------------------------------------


def point(me: Actor, rules: Rules, outcome: Outcome | None, record: Record):
    """Bring `_CURRENT` to the head, then look once more. A rollback has no outcome, and nothing to sweep."""
    after = Goto(sweep, (outcome, record)) if outcome else Done("rolled back", record)
    looked = yield from look(rules)
    if looked is None:
        return Goto(point, (outcome, record))
    pointer, foreign, log, _ = looked
    head = log[-1] if log and rules.pointer_takes_the_head else record
    arrived = pointer and (pointer.seq == head.seq or (rules.pointer_takes_the_head and (pointer.seq or 0) > head.seq))
    if arrived or (foreign and rules.foreign_pointer_is_left_alone):
        return after
    body = Pointer(head.manifest, head.seq, head.log, head.write_id)
    if pointer is None:
        answer = yield Create(POINTER, body)
    else:
        answer = yield Swap(body, pointer, rules.if_match_on_pointer)
    if answer == DEADLINE or (answer == EXISTS and not rules.pointer_is_read_again_on_412):
        return Done("pointer unknown" if answer == DEADLINE else "pointer lags", record)
    return after if answer == OK and not rules.pointer_probes_once_more else Goto(point, (outcome, record))


def sweep(me: Actor, rules: Rules, outcome: Outcome, record: Record):
    """Delete what the run holds beside its winners."""
    held = yield ListShards(me.run)
    for shard, _ in held:
        if shard not in outcome.winners if rules.sweep_spares_outcome else shard[2] != me.name:
            yield Delete(shard)
    return Done("committed", record)
