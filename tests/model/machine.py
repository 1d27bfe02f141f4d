"""A configuration, its states, and every step that may come next: requests, faults, late arrivals and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.model.rules import Rules
from tests.model.world import (
    DEADLINE,
    EXISTS,
    OK,
    POINTER,
    TIMEOUT,
    Begin,
    Create,
    Delete,
    Done,
    Get,
    Goto,
    ListAll,
    ListLeases,
    ListShards,
    Look,
    Objects,
    Pointer,
    Put,
    PutForeign,
    ReadLog,
    Replace,
    Serve,
    Swap,
    Truth,
    in_words,
)
from tests.model.writers import Actor


class Local:
    """Where an actor is: compared by identity, because equal ones are made once."""

    __slots__ = ("after", "args", "ended", "index", "phase", "replies", "request")

    def __init__(self, index: int, phase: Any, args: tuple, replies: tuple, request: Any, ended: Done | None) -> None:
        self.index, self.phase, self.args, self.replies = index, phase, args, replies
        self.request, self.ended = request, ended
        self.after: dict[Any, Local] = {}


class State(NamedTuple):
    """`aged` is the newest commit that is older than the grace; `published` counts the reference's pointers; `started`
    (truth) names the starts and foreign publishes that are over; `stalled` executions have lost their lease; `held` is
    what each reader serves."""

    objects: Objects
    actors: tuple[Local, ...]
    faults: int
    clock: int = 0
    aged: int = 0
    published: int = 0
    started: frozenset[str] = frozenset()
    stalled: frozenset[str] = frozenset()
    in_flight: frozenset[tuple[str, Any]] = frozenset()
    held: tuple = ()


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Who acts on which prefix, and what may go wrong."""

    name: str
    actors: tuple[Actor, ...]
    at_least: int
    """States that must be reached, so that an exploration is never empty unnoticed."""
    reports: str
    """All that actors are seen to report."""
    objects: Objects = field(default_factory=Objects)
    aged: int = 0
    faults: int = 0
    """How many requests may lose their reply, or arrive late."""
    stalls: frozenset[str] = frozenset()
    """The executions whose lease may run out while they live."""
    grace_passes: bool = False
    coarse_clock: bool = False
    """Moments that follow each other may be equal, as with S3's whole seconds."""
    twins: tuple[tuple[str, str], ...] = ()
    """Of two that differ by name only the second starts second."""
    reruns: tuple[tuple[str, str], ...] = ()
    """The second starts when the first has ended or lost its lease (it may wake up)."""
    unless: Callable[[State, int, Any], bool] | None = None
    """Steps that do not happen."""
    without_if_match: bool = False
    exempt: frozenset[str] = frozenset()
    """Invariants that nobody promises here."""
    slow: bool = False


class Step(NamedTuple):
    who: str
    what: Any
    answer: Any = None

    def __str__(self) -> str:
        return f"{self.who}: {in_words(self.what)}" + ("" if self.answer is None else f" -> {self.answer}")


class Machine:
    """The transitions of one configuration under one set of rules."""

    def __init__(self, configuration: Configuration, rules: Rules) -> None:
        self.configuration = configuration
        self.rules = rules
        self._locals: dict[tuple, Local] = {}
        self._twin_of = {self._index(second): self._index(first) for first, second in configuration.twins}
        self._rerun_of = {self._index(second): self._index(first) for first, second in configuration.reruns}
        pointer, log = configuration.objects.pointer, configuration.objects.log
        truths = {record.start.truth.who for record in log if record}
        if pointer and pointer.truth:
            truths.add(pointer.truth.who)
        self.first = State(
            objects=configuration.objects,
            started=frozenset(truths),
            actors=tuple(self._settle(i, each.program, ()) for i, each in enumerate(configuration.actors)),
            faults=configuration.faults,
            aged=configuration.aged,
            published=pointer.ordinal if pointer else 0,
            held=(None,) * len(configuration.actors),
        )

    def _index(self, name: str) -> int:
        return next(i for i, actor in enumerate(self.configuration.actors) if actor.name == name)

    # -- actors --------------------------------------------------------------------------------------------------------

    def _settle(self, index: int, phase: Any, args: tuple, replies: tuple = ()) -> Local:
        """Run an actor up to its next request."""
        key = (index, phase, args, replies)
        if key not in self._locals:
            running = phase(self.configuration.actors[index], self.rules, *args)
            try:
                request = next(running)
                for reply in replies:
                    request = running.send(reply)
                local = Local(index, phase, args, replies, request, None)
            except StopIteration as end:
                if isinstance(end.value, Goto):
                    local = self._settle(index, end.value.phase, end.value.args)
                else:
                    local = Local(index, phase, args, replies, None, end.value)
            self._locals[key] = local
        return self._locals[key]

    def _go_on(self, state: State, index: int, answer: Any) -> State:
        local = state.actors[index]
        after = local.after.get(answer)
        if after is None:
            after = self._settle(index, local.phase, local.args, (*local.replies, answer))
            local.after[answer] = after
        return state._replace(actors=(*state.actors[:index], after, *state.actors[index + 1 :]))

    def live_leases(self, state: State) -> frozenset[tuple[str, str]]:
        """(execution, run id) of each."""
        return frozenset(
            (actor.name, actor.run)
            for actor, local, first in zip(self.configuration.actors, state.actors, self.first.actors, strict=True)
            if local is not first and not local.ended and actor.name not in state.stalled
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[Step, State]]:
        for index, local in enumerate(state.actors):
            if local.ended or not self._may(state, index, local.request):
                continue
            who = self.configuration.actors[index].name
            for answer, changed in self._answers(state, index, local.request):
                note = answer if isinstance(local.request, Create | Swap) else None
                yield Step(who, local.request, note), self._go_on(changed, index, answer)
            if state.faults and isinstance(local.request, Create | Swap | Delete):
                yield from self._faults(state, index, local.request)
        for late in state.in_flight:
            landed = state._replace(in_flight=state.in_flight - {late})
            yield Step(late[0], late[1], "arrives late"), landed._replace(objects=_applied(state.objects, late[1])[1])
        yield from self._time(state)

    def _may(self, state: State, index: int, request: Any) -> bool:
        if state.actors[index] is self.first.actors[index]:
            twin, first = self._twin_of.get(index), self._rerun_of.get(index)
            if twin is not None and state.actors[twin] is self.first.actors[twin]:
                return False
            if first is not None and not state.actors[first].ended:
                return self.configuration.actors[first].name in state.stalled
        unless = self.configuration.unless
        return unless is None or not unless(state, index, request)

    def _time(self, state: State) -> Iterator[tuple[Step, State]]:
        configuration = self.configuration
        if configuration.grace_passes and state.aged < len(state.objects.log):
            yield Step("time", "the grace passes"), state._replace(aged=len(state.objects.log))
        for name in configuration.stalls - state.stalled:
            index = self._index(name)
            if state.actors[index] is not self.first.actors[index] and not state.actors[index].ended:
                yield Step("time", f"the lease of {name} runs out"), state._replace(stalled=state.stalled | {name})

    def _faults(self, state: State, index: int, request: Any) -> Iterator[tuple[Step, State]]:
        who = self.configuration.actors[index].name
        left = state._replace(faults=state.faults - 1)
        late = left._replace(in_flight=left.in_flight | {(who, request)})
        if isinstance(request, Delete):
            yield Step(who, request, "is on its way"), self._go_on(late, index, TIMEOUT)
            return
        applied = left._replace(objects=_applied(state.objects, request)[1])
        for answer in (TIMEOUT, DEADLINE):
            yield Step(who, request, f"applied, reply lost; {answer}"), self._go_on(applied, index, answer)
            yield Step(who, request, f"is on its way; {answer}"), self._go_on(late, index, answer)

    def _answers(self, state: State, index: int, request: Any) -> Iterator[tuple[Any, State]]:
        actor = self.configuration.actors[index]
        match request:
            case Create() | Swap() | Put() | Delete():
                answer, objects = _applied(state.objects, request)
                yield answer, state._replace(objects=objects)
            case Get(name):
                yield state.objects.get(name), state
            case Look():
                yield (state.objects.pointer, state.published), state
            case ReadLog(starting):
                yield state.objects.log, state._replace(started=state.started | {actor.name}) if starting else state
            case ListAll():
                yield (state.objects, state.aged), state
            case ListLeases():
                yield frozenset(run for _, run in self.live_leases(state)), state
            case ListShards(run):
                names = sorted(name for name in state.objects if name[0] == "shard" and name[1] == run)
                yield tuple((name, state.objects[name]) for name in names), state
            case Begin():
                for now in self._moments(state):
                    yield (now, Truth(actor.name, state.started)), state._replace(clock=now)
            case PutForeign(manifest):
                for now in self._moments(state):
                    yield OK, _publish_foreign(state, manifest, now)
            case Serve(version):
                yield OK, state._replace(held=(*state.held[:index], version, *state.held[index + 1 :]))
            case Replace():
                yield OK, state._replace(objects=Objects(), aged=0)
            case _:
                raise AssertionError(request)

    def _moments(self, state: State) -> tuple[int, ...]:
        return (state.clock, state.clock + 1) if self.configuration.coarse_clock else (state.clock + 1,)


def _applied(objects: Objects, request: Any) -> tuple[str, Objects]:
    match request:
        case Create(name, body, conditional):
            return (EXISTS, objects) if conditional and name in objects else (OK, objects.put(name, body))
        case Swap(body, expected, conditional):
            changed = conditional and objects.pointer != expected
            return (EXISTS, objects) if changed else (OK, objects.put(POINTER, body))
        case Put(name, body):
            return OK, objects.put(name, body)
        case Delete(name):
            return OK, objects.drop(name)
        case _:
            raise AssertionError(request)


def _publish_foreign(state: State, manifest: str, now: int) -> State:
    ordinal = state.published + 1
    truth = Truth(f"foreign {ordinal}", state.started)
    pointer = Pointer(manifest, modified=now, ordinal=ordinal, truth=truth)
    return state._replace(
        objects=state.objects.put(POINTER, pointer),
        clock=now,
        published=ordinal,
        started=state.started | {truth.who},
    )
