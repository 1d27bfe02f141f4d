"""The prefixes and casts that are explored."""

from __future__ import annotations

from tests.model.cleaners import begin_anew, clean_foreign, cleanup, point_foreign, publish_foreign
from tests.model.machine import Configuration
from tests.model.prefixes import (
    left_by_a_crash,
    over_the_reference,
    prefix,
    reference_only,
    rolled_back_by_the_reference,
)
from tests.model.readers import refresh
from tests.model.rollback import rollback
from tests.model.world import Create
from tests.model.writers import Actor, build, write


def _before_the_build(state, index, request) -> bool:
    """Who deletes a prefix under a live writer is on his own; one that wakes up later is not."""
    if state.actors[index].phase is not begin_anew:
        return False
    return any(each.phase not in (write, build, refresh, begin_anew) for each in state.actors)


def _outside_its_window(state, index, request) -> bool:
    """The reference's cleanup stays out of the moment between our look at the shards and our record."""
    if state.actors[index].phase is not clean_foreign:
        return False
    about_to_commit = any(
        isinstance(each.request, Create) and each.request.name[0] == "commit" for each in state.actors
    )
    return about_to_commit or any(record and record.run == "A" for record in state.objects.log)


A, B, C = (Actor(name, write, name) for name in "ABC")
A1, A2 = Actor("A1", write, "A"), Actor("A2", write, "A")
FORCED = Actor("F", write, "F", force=True)
CLEANUP, SECOND_CLEANUP = Actor("cleanup", cleanup), Actor("cleanup 2", cleanup)
READER = Actor("reader", refresh)
R, S = Actor("R", publish_foreign, "R"), Actor("S", publish_foreign, "S")


def _rollback(to: str, name: str = "rollback") -> Actor:
    return Actor(name, rollback, target=f"{to}@old")


CONFIGURATIONS = {
    each.name: each
    for each in (
        Configuration(
            name="two writers",
            at_least=9_000,
            reports="A: committed, pointer unknown, stale, unknown; B: committed, pointer unknown, unknown",
            actors=(A, B),
            faults=1,
            twins=(("A", "B"),),
        ),
        Configuration(
            name="one writer, three faults",
            at_least=390,
            reports="A: committed, pointer unknown, unknown",
            actors=(A,),
            faults=3,
        ),
        Configuration(
            name="the same run id twice",
            at_least=28_000,
            reports="A1: committed, pointer unknown, unknown; A2: committed, pointer unknown, unknown",
            actors=(A1, A2),
            faults=1,
            twins=(("A1", "A2"),),
        ),
        Configuration(
            name="the same run id twice, two faults",
            at_least=140_000,
            reports="A1: committed, pointer unknown, unknown; A2: committed, pointer unknown, unknown",
            slow=True,
            actors=(A1, A2),
            faults=2,
            twins=(("A1", "A2"),),
        ),
        Configuration(
            name="two writers, two faults",
            at_least=54_000,
            reports="A: committed, pointer unknown, stale, unknown; B: committed, pointer unknown, unknown",
            slow=True,
            actors=(A, B),
            faults=2,
            twins=(("A", "B"),),
        ),
        Configuration(
            name="three writers",
            at_least=190_000,
            reports="A: committed, stale; B: committed, stale; C: committed, stale",
            slow=True,
            actors=(A, B, C),
            twins=(("A", "B"), ("B", "C")),
        ),
        Configuration(
            name="the same run id twice, forced",
            at_least=2_700,
            reports="A1: committed; A2: committed",
            actors=(Actor("A1", write, "A", force=True), Actor("A2", write, "A", force=True)),
            twins=(("A1", "A2"),),
        ),
        Configuration(
            name="the same run id for two requests",
            at_least=690,
            reports="A1: committed, conflict; A2: committed, conflict",
            actors=(A1, Actor("A2", write, "A", request="another request")),
        ),
        Configuration(
            name="a run id that was published before",
            at_least=480,
            reports="A1: committed; C: committed",
            objects=prefix("A", "B"),
            actors=(Actor("A1", write, "A", force=True), C),
        ),
        Configuration(
            name="a rerun and another writer",
            at_least=2_000,
            reports="A2: stale, unknown; B: committed, pointer unknown, unknown",
            objects=left_by_a_crash(),
            actors=(A2, B),
            faults=1,
        ),
        Configuration(
            name="hosts' clocks are off",
            at_least=1_800,
            reports="A: committed, stale; B: committed, stale",
            actors=(Actor("A", write, "A", clock_skew=9), Actor("B", write, "B", clock_skew=-9)),
        ),
        Configuration(
            name="a build and cleanup within a second",
            at_least=710,
            reports="A: committed; cleanup: cleaned",
            objects=prefix("o1", "o2"),
            aged=2,
            actors=(A, CLEANUP),
            coarse_clock=True,
        ),
        Configuration(
            name="a forced writer",
            at_least=21_000,
            reports="A: committed, pointer unknown, stale, unknown; F: committed, pointer unknown, unknown",
            actors=(A, FORCED),
            faults=1,
        ),
        Configuration(
            name="cleanup and a build that stalls",
            at_least=7_100,
            reports="A: committed, expired, pointer unknown, unknown, winners gone; cleanup: cleaned, unknown",
            objects=prefix("o1", "o2"),
            aged=2,
            actors=(A, CLEANUP),
            stalls=frozenset("A"),
            faults=1,
        ),
        Configuration(
            name="cleanup and a forced build that stalls",
            at_least=800,
            reports="F: committed, expired, winners gone; cleanup: cleaned",
            objects=prefix("o1", "o2"),
            aged=2,
            actors=(FORCED, CLEANUP),
            stalls=frozenset("F"),
        ),
        Configuration(
            name="cleanup and the same run id twice",
            at_least=240_000,
            reports="A1: committed, expired, winners gone; A2: committed, expired, winners gone; "
            "cleanup: cleaned, nothing to clean",
            slow=True,
            actors=(A1, A2, CLEANUP),
            stalls=frozenset(["A1"]),
            reruns=(("A1", "A2"),),
        ),
        Configuration(
            name="cleanup and a rerun that reuses shards",
            at_least=250_000,
            reports="A1: committed, expired, winners gone; A2: committed, expired, winners gone; "
            "cleanup: cleaned, nothing to clean",
            slow=True,
            actors=(A1, Actor("A2", write, "A", reuses=True), CLEANUP),
            stalls=frozenset(["A1"]),
            reruns=(("A1", "A2"),),
        ),
        Configuration(
            name="cleanup and a rerun of an old run id",
            at_least=610,
            reports="A1: committed, expired, pointer unknown, unknown; cleanup: cleaned, nothing to clean, unknown",
            objects=prefix("A", "B"),
            aged=2,
            actors=(A1, CLEANUP),
            faults=1,
        ),
        Configuration(
            name="two cleanups and a build",
            at_least=53_000,
            reports="A: committed, expired, winners gone; cleanup: cleaned, nothing to clean; "
            "cleanup 2: cleaned, nothing to clean",
            slow=True,
            objects=prefix("o1", "o2"),
            aged=2,
            actors=(A, CLEANUP, SECOND_CLEANUP),
            stalls=frozenset("A"),
            twins=(("cleanup", "cleanup 2"),),
        ),
        Configuration(
            name="cleanup and a reader",
            at_least=26_000,
            reports="A: committed; cleanup: cleaned, nothing to clean",
            objects=prefix("o1", "o2"),
            aged=1,
            actors=(A, CLEANUP, READER),
            grace_passes=True,
        ),
        Configuration(
            name="rollback and a writer",
            at_least=12_000,
            reports="A: committed, pointer unknown, stale, unknown; "
            "rollback: head moved, pointer unknown, rolled back, unknown",
            objects=prefix("o1", "o2"),
            actors=(A, _rollback("o1")),
            faults=1,
        ),
        Configuration(
            name="rollback and cleanup",
            at_least=2_100,
            reports="cleanup: cleaned, nothing to clean, unknown; "
            "rollback: head moved, pointer unknown, rolled back, target gone, unknown",
            objects=prefix("o1", "o2"),
            aged=2,
            actors=(_rollback("o1"), CLEANUP),
            faults=2,
        ),
        Configuration(
            name="two writers and cleanup",
            at_least=210_000,
            reports="A: committed, expired, stale, winners gone; B: committed, stale; cleanup: cleaned",
            slow=True,
            objects=prefix("o1", "o2"),
            aged=2,
            actors=(A, B, CLEANUP),
            stalls=frozenset("A"),
            twins=(("A", "B"),),
        ),
        Configuration(
            name="rollback, cleanup and a writer",
            at_least=250_000,
            reports="A: committed, expired, stale, winners gone; cleanup: cleaned, nothing to clean; "
            "rollback: head moved, rolled back, target gone",
            slow=True,
            objects=prefix("o1", "o2"),
            aged=2,
            actors=(_rollback("o1"), CLEANUP, A),
            stalls=frozenset("A"),
        ),
        Configuration(
            name="two rollbacks",
            at_least=11_000,
            reports="rollback: head moved, pointer unknown, rolled back, unknown; "
            "rollback 2: head moved, pointer unknown, rolled back, unknown",
            objects=prefix("o1", "o2"),
            actors=(_rollback("o1"), _rollback("o1", "rollback 2")),
            twins=(("rollback", "rollback 2"),),
            faults=2,
        ),
        Configuration(
            name="the reference publishes twice",
            at_least=2_500,
            reports="A: committed, stale; R: published; S: published",
            actors=(A, R, S),
            twins=(("R", "S"),),
        ),
        Configuration(
            name="the reference and two writers",
            at_least=27_000,
            reports="A: committed, stale; B: committed, stale; R: published",
            actors=(A, B, R),
            twins=(("A", "B"),),
        ),
        Configuration(
            name="the reference, two writers and a reader",
            at_least=510_000,
            reports="A: committed, stale; F: committed; R: published",
            slow=True,
            actors=(A, FORCED, Actor("R", point_foreign, target="o1@old"), READER),
            objects=prefix("o1"),
        ),
        Configuration(
            name="the reference rolls back, and so do we",
            at_least=62_000,
            reports="R: published; S: published; rollback: head moved, rolled back; "
            "rollback 2: head moved, rolled back",
            slow=True,
            objects=prefix("o1", "o2"),
            actors=(
                _rollback("o1"),
                _rollback("o1", "rollback 2"),
                Actor("R", point_foreign, target="o1@old"),
                Actor("S", point_foreign, target="o2@old"),
            ),
            twins=(("rollback", "rollback 2"),),
        ),
        Configuration(
            name="cleanup where the reference publishes",
            at_least=12_000,
            reports="A: committed, stale; R: published; cleanup: cleaned",
            objects=prefix("o1", "o2"),
            aged=2,
            actors=(A, R, CLEANUP),
        ),
        Configuration(
            name="cleanup after the reference's rollback",
            at_least=18_000,
            reports="A: committed; cleanup: cleaned, nothing to clean",
            objects=rolled_back_by_the_reference(),
            aged=2,
            actors=(A, CLEANUP, READER),
            grace_passes=True,
        ),
        Configuration(
            name="the reference, a rollback and a forced build",
            at_least=16_000,
            reports="F: committed; S: published; rollback: head moved, rolled back",
            objects=rolled_back_by_the_reference(),
            actors=(FORCED, _rollback("o1"), Actor("S", point_foreign, target="o1@old")),
        ),
        Configuration(
            name="a reader while the reference publishes",
            at_least=2_800,
            reports="A: committed, stale; R: published",
            objects=over_the_reference(),
            actors=(A, R, READER),
        ),
        Configuration(
            name="cleanup and a reader of the reference's snapshots",
            at_least=1_000,
            reports="R: published; cleanup: nothing to clean",
            objects=reference_only(),
            actors=(R, CLEANUP, READER),
        ),
        Configuration(
            name="cleanup of a prefix of the reference",
            at_least=7_200,
            reports="A: committed, expired, pointer unknown, unknown, winners gone; "
            "cleanup: cleaned, nothing to clean, unknown",
            objects=reference_only(),
            actors=(A, CLEANUP),
            stalls=frozenset("A"),
            faults=1,
        ),
        Configuration(
            name="the reference's cleanup",
            at_least=42,
            reports="A: committed, winners gone; R: cleaned",
            actors=(A, Actor("R", clean_foreign, "A")),
            unless=_outside_its_window,
            exempt=frozenset(["I8"]),
        ),
        Configuration(
            name="a store without If-Match",
            at_least=18_000,
            reports="A: committed, stale; B: committed",
            objects=prefix("o1"),
            actors=(A, B, READER),
            twins=(("A", "B"),),
            without_if_match=True,
        ),
        Configuration(
            name="a reader and two writers",
            at_least=17_000,
            reports="A: committed, stale; B: committed",
            objects=prefix("o1"),
            actors=(A, B, READER),
            twins=(("A", "B"),),
        ),
        Configuration(
            name="a build in a prefix that is begun anew",
            at_least=1_900,
            reports="A: another log, committed, stale; B: committed, stale; new: replaced",
            objects=prefix("o1", "o2"),
            actors=(Actor("new", begin_anew), A, B),
            reruns=(("new", "B"),),
            unless=_before_the_build,
        ),
        Configuration(
            name="a reader of a prefix that is begun anew",
            at_least=250,
            reports="B: committed; new: replaced",
            objects=prefix("o1", "o2"),
            actors=(Actor("new", begin_anew), B, READER),
            reruns=(("new", "B"),),
            unless=_before_the_build,
        ),
    )
}
