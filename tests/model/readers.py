"""Readers: what is served, from a pointer that may lag and a log that is probed upward."""

from __future__ import annotations

from tests.model.rules import Rules
from tests.model.world import Goto, Pointer, Record, Serve
from tests.model.writers import Actor, look


def refresh(me: Actor, rules: Rules, held: Record | Pointer | None = None):
    """A reader that keeps refreshing."""
    looked = yield from look(rules)
    if looked is None:
        return Goto(refresh, (held,))
    pointer, foreign, log, _ = looked
    served = served_by(rules, pointer, foreign, log)
    if isinstance(held, Record) and isinstance(served, Record) and served.seq < held.seq:
        same_log = served.log == held.log or not rules.new_log_starts_anew
        served = held if same_log else served
    if served is not None:
        yield Serve(served)
    return Goto(refresh, (served,))


def served_by(rules: Rules, pointer: Pointer | None, foreign: Pointer | None, log: tuple) -> Record | Pointer | None:
    if foreign:
        return foreign
    if not rules.probe_upward and pointer and pointer.seq:
        return log[pointer.seq - 1] if pointer.seq <= len(log) else None
    return log[-1] if log else None
