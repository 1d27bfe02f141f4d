"""Cleanup, the reference's own programs on the same prefix, and whoever begins a prefix anew."""

from __future__ import annotations

from tests.model.rules import Rules
from tests.model.world import (
    GIVEN_UP,
    Begin,
    BuildStart,
    Create,
    Delete,
    Done,
    Get,
    Goto,
    ListAll,
    ListLeases,
    ListShards,
    Look,
    Manifest,
    Objects,
    Outcome,
    Pointer,
    Put,
    PutForeign,
    ReadLog,
    Record,
    Replace,
    Truth,
    foreign_pointer,
    superseded,
)
from tests.model.writers import Actor, create_once

NOTHING_HELD = BuildStart(0, -1, None, Truth("nobody"))


def cleanup(me: Actor, rules: Rules):
    """Plan exact keys, commit that, and then delete them.

    What could go is listed first, then what is alive, then what is retained: a run has a lease before it has objects,
    and a root before it ends its lease, so that nothing slips through between the three.
    """
    if rules.cleanup_reads_roots_last:
        candidates, _ = yield ListAll()
        leases = yield ListLeases()
        roots = yield from _read_roots(rules)
    else:
        roots = yield from _read_roots(rules)
        leases = yield ListLeases()
        candidates, _ = yield ListAll()
    retained, objects, pointer = roots
    expired, keys = plan(rules, candidates, leases, objects, retained)
    if not keys:
        return Done("nothing to clean")
    if not rules.cleanup_commits_before_deleting:
        return Goto(delete, (expired, keys, None))
    marks = tuple(run for run in sorted(expired) if ("outcome", run) not in candidates)
    return Goto(give_up, (cleanup_record(me, rules, objects.log, pointer, expired), keys, marks))


def _read_roots(rules: Rules):
    """The manifests that stay: the served one, those superseded less than the grace ago, and the reference's."""
    pointer, _ = yield Look()
    objects, aged = yield ListAll()
    log = [record for record in objects.log if record]
    roots = {log[-1].manifest} if log else set()
    if rules.cleanup_respects_grace:
        ended = superseded(objects.log, overs=rules.over_names_its_manifest)
        roots |= {manifest for manifest, seq in ended if seq > aged}
    if pointer and rules.cleanup_keeps_what_pointer_names:
        roots.add(pointer.manifest)
    if rules.cleanup_keeps_manifests_without_record:
        named = {record.manifest for record in log}
        ours = {name[1] for name in objects if name[0] == "outcome"} | {record.run for record in log}
        manifests = [(name[1], body.run) for name, body in objects.items() if name[0] == "manifest"]
        roots |= {name for name, run in manifests if name not in named and run not in ours}
    return frozenset(roots), objects, pointer


def plan(rules: Rules, candidates: Objects, leases: frozenset[str], objects: Objects, roots: frozenset[str]):
    """The run ids to give up, and the keys to delete."""
    kept = [objects[("manifest", root)] for root in roots if ("manifest", root) in objects]
    reached = {shard for manifest in kept for shard in manifest.winners} | {("manifest", root) for root in roots}
    kept_runs = {manifest.run for manifest in kept}
    expired: set[str] = set()
    keys: list[tuple] = []
    for name in sorted(name for name in candidates if name[0] in ("manifest", "shard")):
        run = candidates[name].run if name[0] == "manifest" else name[1]
        if name in reached or (run in leases and rules.cleanup_respects_leases):
            continue
        keys.append(name)
        if run not in kept_runs:
            expired.add(run)
    return frozenset(expired), tuple(keys)


def cleanup_record(me: Actor, rules: Rules, log: tuple, pointer: Pointer | None, expired: frozenset[str]) -> Record:
    head = log[-1] if log else None
    start = head.start if head else NOTHING_HELD
    if not rules.cleanup_repeats_holders_values:
        start = BuildStart(len(log), 1_000, None, start.truth)
    over = head.over if head else None
    if not rules.cleanup_leaves_foreign_pointer:
        over = foreign_pointer(pointer, log) or over
    return Record(
        log=head.log if head else me.name,
        seq=len(log) + 1,
        parent=head.write_id if head else None,
        kind="cleanup",
        run=head.run if head else None,
        manifest=head.manifest if head else None,
        digest=head.digest if head else None,
        write_id=me.name,
        start=start,
        over=over,
        expired=expired,
    )


def give_up(me: Actor, rules: Rules, record: Record, keys: tuple, marks: tuple[str, ...]):
    """The record; then an outcome for each run that had come to none, so that a rerun is refused at once."""
    answer, _ = yield from create_once(rules, ("commit", record.seq), record, rules.records_create_only)
    if answer == "ours":
        for run in marks:
            yield Create(("outcome", run), Outcome(run, GIVEN_UP, "", (), NOTHING_HELD))
        return Goto(delete, (record.expired, keys, record))
    if answer != "exists":
        return Done(answer)
    if rules.cleanup_plans_again:
        return Goto(cleanup, ())
    log = yield ReadLog()
    return Goto(give_up, (cleanup_record(me, rules, log, None, record.expired), keys, marks))


def delete(me: Actor, rules: Rules, expired: frozenset[str], keys: tuple, record: Record | None):
    """Key by key, and a crash may come after any."""
    if not rules.cleanup_deletes_exact_keys:
        keys = ()
        for run in sorted(expired):
            held = yield ListShards(run)
            keys += tuple(shard for shard, _ in held)
    for name in keys:
        yield Delete(name)
    if not rules.outcomes_never_deleted:
        for run in sorted(expired):
            yield Delete(("outcome", run))
    if not rules.records_never_deleted:
        for seq in range(1, record.seq if record else 1):
            yield Delete(("commit", seq))
    return Done("cleaned", record)


# -- the reference -----------------------------------------------------------------------------------------------------


def publish_foreign(me: Actor, rules: Rules):
    """The reference's writer: lease, shards, manifest, pointer; it neither reads nor writes our log."""
    yield Begin()
    shard = ("shard", me.run, me.name)
    yield Put(shard, None)
    yield Put(("manifest", me.run), Manifest(me.run, (shard,)))
    yield PutForeign(me.run)
    return Done("published")


def point_foreign(me: Actor, rules: Rules):
    """The reference's rollback: the pointer, if the manifest is there."""
    manifest = yield Get(("manifest", me.target))
    if manifest is None:
        return Done("target gone")
    yield PutForeign(me.target)
    return Done("published")


def clean_foreign(me: Actor, rules: Rules):
    """The reference's cleanup takes a running build of ours for a dead one."""
    held = yield ListShards(me.run)
    for shard, _ in held:
        yield Delete(shard)
    return Done("cleaned")


# -- the prefix is begun anew ------------------------------------------------------------------------------------------


def begin_anew(me: Actor, rules: Rules):
    """Everything is deleted, and a new log is begun."""
    yield Replace()
    return Done("replaced")
