"""Every state that a configuration can reach, breadth first, and the shortest schedule to one that breaks an invariant.

An actor that crashed is an actor that takes no further step; since every state is checked, crashes need no transition
of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.model.machine import Configuration, Machine, State, Step
from tests.model.rules import Rules

Check = Callable[[Machine, State, State, bool], Iterator[tuple[str, str]]]
"""Yields (invariant, what is wrong) for a step; the flag says that the state after it is new."""


@dataclass(kw_only=True)
class Exploration:
    states: int
    reports: str = ""
    broken: str | None = None
    why: str = ""
    schedule: tuple[Step, ...] = ()

    def __str__(self) -> str:
        lines = [f"{number:3}. {step}" for number, step in enumerate(self.schedule, 1)]
        return "\n".join([f"{self.broken}: {self.why}, after {self.states} states, by this schedule:", *lines])


def explore(configuration: Configuration, rules: Rules, check: Check, only: str | None = None) -> Exploration:
    """Visit every state, or stop at the first step that breaks an invariant (`only`: that one)."""
    if configuration.without_if_match:
        rules = rules.without("if_match_on_pointer")
    machine = Machine(configuration, rules)
    came_from: dict[State, tuple[State, Step] | None] = {machine.first: None}
    waiting = deque([machine.first])
    ended: dict[str, set[str]] = {}
    while waiting:
        state = waiting.popleft()
        for step, after in machine.steps(state):
            new = after not in came_from
            for name, why in check(machine, state, after, new):
                if only in (None, name) and name not in configuration.exempt:
                    schedule = (*_schedule(came_from, state), step)
                    return Exploration(states=len(came_from), broken=name, why=why, schedule=schedule)
            if new:
                came_from[after] = (state, step)
                waiting.append(after)
                for actor, local in zip(configuration.actors, after.actors, strict=True):
                    if local.ended:
                        ended.setdefault(actor.name, set()).add(local.ended.result)
    reports = "; ".join(f"{name}: {', '.join(sorted(ended[name]))}" for name in sorted(ended))
    return Exploration(states=len(came_from), reports=reports)


def _schedule(came_from: dict[State, tuple[State, Step] | None], state: State) -> tuple[Step, ...]:
    steps: list[Step] = []
    while (link := came_from[state]) is not None:
        state, step = link
        steps.append(step)
    return tuple(reversed(steps))
