"""What must hold in every state, or at every step. Each check yields what is wrong; the names are those of `INVARIANTS`."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.cleaners import cleanup, delete, give_up
from tests.model.machine import Machine, State
from tests.model.readers import refresh, served_by
from tests.model.world import Objects, Pointer, Record, Serve, foreign_pointer, holder, superseded

INVARIANTS = {
    "I1": "history is a chain without gaps; a run id is committed at most once",
    "I2": "what is served, committed or held by a reader is there, unless a record gave it up and the grace is over",
    "I3": "a reader, and with If-Match the pointer, never goes back within a log",
    "I4": "no false success, no false conflict",
    "I5": "what is served is the newest; a later publish of the reference stays; _CURRENT ends at the newest",
    "I6": "a build never replaces one that started later, nor is refused for one that started earlier",
    "I7": "what was written under a lease that is alive is not planned to be deleted",
    "I8": "what an outcome names is deleted only when its run id is given up",
    "I9": "all executions of one run id report the same commit",
}

REFUSED = {"stale", "expired", "rejected", "conflict", "winners gone", "head moved", "target gone", "another log"}
UNANSWERED = {"unknown", "pointer unknown"}


def check(machine: Machine, before: State, after: State, new: bool) -> Iterator[tuple[str, str]]:
    for found in _step_checks(machine, before, after):
        yield found
    if new:
        for found in _state_checks(machine, after):
            yield found


def _step_checks(machine: Machine, before: State, after: State) -> Iterator[tuple[str, str]]:
    if before.objects is not after.objects:
        old, now = before.objects.log, after.objects.log
        if now is not old and now and now[: len(old)] != old:
            yield "I1", "a commit record was changed or deleted"
        if len(now) == len(old) + 1 and now[-1] is not None:
            yield from _check_order(old, now[-1])
        was, pointer = before.objects.pointer, after.objects.pointer
        went_back = was and pointer and was.log == pointer.log and (was.seq or 0) > (pointer.seq or 0) > 0
        if went_back and not machine.configuration.without_if_match:
            yield "I3", f"_CURRENT went back from {was.seq} to {pointer.seq}"
    if before.held is not after.held:
        for local, old, new in zip(before.actors, before.held, after.held, strict=True):
            if old is not None and new is not old and _went_back(old, new, after.objects.log):
                yield "I3", f"a reader went back from {_named(old)} to {_named(new)}"
            read = local.replies[1] if isinstance(local.request, Serve) else ()
            if read and isinstance(new, Record) and read[0].log != new.log:
                yield "I5", f"a reader serves {_named(new)} of a log that is no longer there"
    if before.actors is not after.actors:
        yield from _check_reports(machine, before, after)


def _state_checks(machine: Machine, state: State) -> Iterator[tuple[str, str]]:
    yield from _check_chain(state.objects)
    yield from _check_objects(machine, state.objects)
    for version in state.held:
        if version is not None:
            yield from _check_held(state, version)
    yield from _check_served(machine, state)
    yield from _check_ended(machine, state)


# -- I1, I2, I8: what is stored ----------------------------------------------------------------------------------------


def _check_chain(objects: Objects) -> Iterator[tuple[str, str]]:
    parent, runs = None, set()
    for record in objects.log:
        if record is None:
            yield "I1", "a commit record is missing"
            return
        if record.parent != parent:
            yield "I1", f"commit {record.seq} does not follow the one before it"
        if record.kind == "build" and record.run in runs:
            yield "I1", f"run {record.run} was committed twice"
        parent = record.write_id
        runs.add(record.run)


def _check_objects(machine: Machine, objects: Objects) -> Iterator[tuple[str, str]]:
    log = [record for record in objects.log if record]
    served = served_by(machine.rules, objects.pointer, foreign_pointer(objects.pointer, tuple(log)), tuple(log))
    if served and served.manifest and not objects.whole(served.manifest, getattr(served, "digest", None)):
        yield "I2", f"what {_named(served)} serves is not there"
    for record in log:
        if record.manifest and not objects.whole(record.manifest) and not _given_up(record.run, record.seq, log):
            yield "I2", f"commit {record.seq} names what was deleted and not given up after it"
    for name, body in objects.items():
        deleted = name[0] == "outcome" and not all(winner in objects for winner in body.winners)
        if deleted and not _given_up(body.run, body.start.base, log):
            yield "I8", f"the winners of run {body.run} were deleted"


def _given_up(run: str | None, seq: int, log: list[Record]) -> bool:
    return any(run in record.expired and record.seq > seq for record in log)


def _check_held(state: State, version: Record | Pointer) -> Iterator[tuple[str, str]]:
    """A version may go once it was superseded longer than the grace ago."""
    if version.manifest is None or state.objects.whole(version.manifest):
        return
    log = [record for record in state.objects.log if record]
    if isinstance(version, Record) and (not log or log[0].log != version.log):
        return
    ended = max((seq for manifest, seq in superseded(state.objects.log) if manifest == version.manifest), default=None)
    if ended is not None and ended <= state.aged:
        return
    yield "I2", f"a reader holds {_named(version)}, and it is not there"


# -- I3, I5: what is served --------------------------------------------------------------------------------------------


def _age(version: Record | Pointer, log: tuple) -> tuple[int, int]:
    """Versions in the order in which they came to be served."""
    if isinstance(version, Pointer):
        return version.ordinal, 0
    return max((record.seen for record in log[: version.seq] if record), default=0), version.seq


def _went_back(old: Record | Pointer, new: Record | Pointer, log: tuple) -> bool:
    logs = {version.log for version in (old, new) if isinstance(version, Record)} | {record.log for record in log[:1]}
    return len(logs) == 1 and _age(new, log) < _age(old, log)


def _named(version: Record | Pointer) -> str:
    if isinstance(version, Record):
        return f"commit {version.seq} ({version.manifest})"
    return f"the reference's publish {version.ordinal} ({version.manifest})"


def _check_served(machine: Machine, state: State) -> Iterator[tuple[str, str]]:
    """The reference's last publish is newer than the log unless a build or rollback read the pointer after it."""
    objects, log = state.objects, state.objects.log
    seen = max((record.seen for record in log if record), default=0)
    served = served_by(machine.rules, objects.pointer, foreign_pointer(objects.pointer, log), log)
    if state.published > seen:
        if not isinstance(served, Pointer) or served.ordinal != state.published:
            yield "I5", f"the reference's publish {state.published} is not served but {served and _named(served)}"
    elif log and (not isinstance(served, Record) or served.seq != len(log)):
        yield "I5", f"commit {len(log)} is not served but {served and _named(served)}"
    ended = [local.ended for local in state.actors if local.phase is not refresh]
    if all(ended) and log and not any(end.result in UNANSWERED for end in ended if end):
        newest, pointer = holder(log), objects.pointer
        if newest and state.published <= seen and (pointer is None or (pointer.seq or 0) < newest.seq):
            yield "I5", "everybody is done, and _CURRENT is not at the newest version"


# -- I6: who replaces whom ---------------------------------------------------------------------------------------------


def _check_order(log: tuple, record: Record) -> Iterator[tuple[str, str]]:
    newest, over = holder(log), record.over
    if record.kind == "rollback" and record.seq != record.start.base + 1 and record.start.base:
        yield "I6", "a rollback replaces a commit that whoever asked for it had not seen"
    if record.kind != "build" or record.forced:
        return
    mine = record.start.truth.who
    if newest and mine in newest.start.truth.after:
        yield "I6", f"{mine} replaces {newest.start.truth.who}, which started later"
    if over and over.truth and mine in over.truth.after and (not log or log[-1].over != over):
        yield "I6", f"{mine} replaces {over.truth.who}, which came after its start"


# -- I4, I6, I7, I9: what is reported and planned ----------------------------------------------------------------------


def _check_reports(machine: Machine, before: State, after: State) -> Iterator[tuple[str, str]]:
    for actor, was, local in zip(machine.configuration.actors, before.actors, after.actors, strict=True):
        if local is was:
            continue
        if local.phase is not was.phase and local.phase in (give_up, delete):
            live = {name for name, run in machine.live_leases(after)}
            if was.phase is cleanup and any(key[0] == "shard" and key[2] in live for key in local.args[1]):
                yield "I7", f"{actor.name} plans to delete what was written under a lease that is alive"
        end = local.ended
        if end and end.result == "conflict":
            outcome = after.objects.get(("outcome", actor.run))
            if outcome is not None and outcome.request == actor.request:
                yield "I4", f"{actor.name} reports a conflict, and there is none"
        if end and end.result == "stale" and end.versus and end.start:
            if any(record and record.kind == "build" and record.run == actor.run for record in after.objects.log):
                yield "I4", f"{actor.name} was refused as stale, and its run is committed"
            yield from _check_refusal(end.start, end.versus)
        if end and end.result == "committed":
            outcome = after.objects.get(("outcome", actor.run))
            if outcome is not None and outcome.request != actor.request:
                yield "I4", f"{actor.name} reports another request's commit as its own"


def _check_refusal(start, versus: Record | Pointer) -> Iterator[tuple[str, str]]:
    """Only a build that cannot be told apart by what the store's clock shows may be refused for an earlier one."""
    if isinstance(versus, Pointer):
        tie, theirs = start.started_at == versus.modified, versus.truth
    else:
        tie, theirs = start[:2] == versus.start[:2], versus.start.truth
    if not tie and theirs and theirs.who in start.truth.after:
        yield "I6", f"{start.truth.who} was refused for {theirs.who}, which started earlier"


def _check_ended(machine: Machine, state: State) -> Iterator[tuple[str, str]]:
    log, commits = state.objects.log, {}
    for actor, local in zip(machine.configuration.actors, state.actors, strict=True):
        end = local.ended
        if not end:
            continue
        record = end.record
        if record and record not in log:
            yield "I4", f"{actor.name} reports {end.result!r}, and its record is not in the log"
        if end.result in REFUSED and any(each and each.write_id == actor.name for each in log):
            yield "I4", f"{actor.name} reports {end.result!r}, and its record is in the log"
        if end.result == "committed" and commits.setdefault(actor.run, record) != record:
            yield "I9", f"two executions of run {actor.run} report different commits"
