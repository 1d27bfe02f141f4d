"""What the configurations start from."""

from __future__ import annotations

from tests.model.world import POINTER, BuildStart, Manifest, Objects, Outcome, Pointer, Record, Truth


def prefix(*runs: str, log: str = "log") -> Objects:
    """A prefix to which these runs were published one after another, the last of them being served."""
    objects, parent = Objects(), None
    for seq, run in enumerate(runs, 1):
        shard = ("shard", run, "old")
        name = f"{run}@old"
        start = BuildStart(seq - 1, seq - len(runs), log, Truth(run, frozenset(runs[: seq - 1])))
        manifest = Manifest(run, (shard,))
        record = Record(log, seq, parent, "build", run, name, manifest, f"write of {run}", start)
        objects = objects.put(shard, start).put(("manifest", name), manifest).put(("commit", seq), record)
        objects = objects.put(("outcome", run), Outcome(run, "old", "request", (shard,), start))
        objects = objects.put(POINTER, Pointer(name, seq, log, record.write_id))
        parent = record.write_id
    return objects


def reference_only() -> Objects:
    """A prefix that only the reference has published to."""
    shard = ("shard", "old R", "old")
    pointer = Pointer("old R", ordinal=1, truth=Truth("old R"))
    return Objects().put(shard, None).put(("manifest", "old R"), Manifest("old R", (shard,))).put(POINTER, pointer)


def rolled_back_by_the_reference() -> Objects:
    objects = prefix("o1", "o2")
    return objects.put(POINTER, Pointer("o1@old", ordinal=1, truth=Truth("foreign 1")))


def over_the_reference() -> Objects:
    """Our commit is over the reference's pointer, and its writer died before step 4."""
    objects, pointer = prefix("o1"), reference_only()[POINTER]
    for name, body in reference_only().items():
        objects = objects.put(name, body)
    return objects.put(("commit", 1), objects[("commit", 1)]._replace(over=pointer, seen=1))


def left_by_a_crash() -> Objects:
    """Run A got as far as its outcome, from the empty prefix, before o1 was published."""
    shard = ("shard", "A", "A1")
    start = BuildStart(0, -200, None, Truth("A1"))
    objects = prefix("o1").put(shard, start).put(("outcome", "A"), Outcome("A", "A1", "request", (shard,), start))
    o1 = objects[("commit", 1)]
    return objects.put(("commit", 1), o1._replace(start=o1.start._replace(truth=Truth("o1", frozenset({"A1"})))))
