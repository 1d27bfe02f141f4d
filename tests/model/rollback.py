"""Rollback: a record that names an old manifest, under the one number that whoever asked for it knows to be next."""

from __future__ import annotations

from tests.model.rules import Rules
from tests.model.world import BuildStart, Done, Get, Goto, ListShards, Record
from tests.model.writers import Actor, create_once, look, over_of, point, start_of


def rollback(me: Actor, rules: Rules):
    """Asked for now, of the head that is there now."""
    start = yield from start_of(me, rules)
    return Goto(check_target, (start,))


def check_target(me: Actor, rules: Rules, start: BuildStart):
    looked = yield from look(rules)
    if looked is None:
        return Goto(check_target, (start,))
    _, foreign, log, seen = looked
    if len(log) != start.base and rules.rollback_does_not_retry_number:
        return Done("head moved")
    target = next(record for record in log if record and record.manifest == me.target)
    manifest = yield Get(("manifest", me.target))
    shards = yield ListShards(target.run)
    whole = manifest is not None and {shard for shard, _ in shards}.issuperset(manifest.winners)
    expired = any(target.run in later.expired for later in log[target.seq :])
    if not whole or (expired and rules.rollback_checks_expiry):
        return Done("target gone")
    if not rules.rollback_counts_as_started_when_asked:
        start = target.start._replace(truth=start.truth)
    record = target._replace(
        seq=len(log) + 1,
        parent=log[-1].write_id,
        kind="rollback",
        write_id=me.name,
        start=start,
        over=over_of(rules, foreign, log),
        expired=frozenset(),
        seen=seen,
    )
    return Goto(roll_back, (record,))


def roll_back(me: Actor, rules: Rules, record: Record):
    answer, stored = yield from create_once(rules, ("commit", record.seq), record, rules.records_create_only)
    if answer == "ours":
        return Goto(point, (None, record))
    if answer == "exists" and stored is not None and not rules.rollback_does_not_retry_number:
        return Goto(roll_back, (record._replace(seq=record.seq + 1, parent=stored.write_id, over=stored.over),))
    return Done("head moved" if answer == "exists" else answer)
