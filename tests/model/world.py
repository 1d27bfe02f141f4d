"""What the protocol's actors see and change: the stored objects, and the requests that a store answers.

A body is a named tuple instead of bytes; its digest and its ETag are the tuple itself. Fields called `truth` are never
looked at by an actor: they record what really happened, for the invariants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

POINTER = ("pointer",)
GIVEN_UP = "given up"
"""The stamp of an outcome that a cleanup left instead."""


class Truth(NamedTuple):
    """When something really began: `after` names the starts and foreign publishes that were over by then."""

    who: str
    after: frozenset[str] = frozenset()


class BuildStart(NamedTuple):
    base: int
    started_at: int
    log: str | None
    truth: Truth


class Outcome(NamedTuple):
    run: str
    stamp: str
    request: str
    winners: tuple[tuple, ...]
    start: BuildStart


class Manifest(NamedTuple):
    """`flavour` stands for the bytes: another SQLite stores the same manifest in other bytes."""

    run: str
    winners: tuple[tuple, ...]
    flavour: str = ""


class Pointer(NamedTuple):
    """`_CURRENT`; `seq` is None in one that the reference wrote, and `ordinal` counts those."""

    manifest: str
    seq: int | None = None
    log: str | None = None
    write_id: str | None = None
    modified: int = 0
    ordinal: int = 0
    truth: Truth | None = None


class Record(NamedTuple):
    """`seen` counts the reference's publishes that its writer could have seen (truth, like `start.truth`)."""

    log: str
    seq: int
    parent: str | None
    kind: str
    run: str | None
    manifest: str | None
    digest: Manifest | None
    write_id: str
    start: BuildStart
    over: Pointer | None = None
    expired: frozenset[str] = frozenset()
    forced: bool = False
    seen: int = 0


class Objects(dict):
    """An immutable mapping of name to body, with a hash that is kept up to date instead of computed."""

    __slots__ = ("_hash", "_log")

    def __init__(self, items: Any = ()) -> None:
        super().__init__(items)
        self._log: tuple[Record | None, ...] | None = None
        self._hash = 0
        for item in self.items():
            self._hash ^= hash(item)

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._hash

    def put(self, name: tuple, body: Any) -> Self:
        other = self._copy(name)
        if name in self:
            other._hash ^= hash((name, self[name]))
        dict.__setitem__(other, name, body)
        other._hash ^= hash((name, body))
        return other

    def drop(self, name: tuple) -> Self:
        if name not in self:
            return self
        other = self._copy(name)
        other._hash ^= hash((name, dict.pop(other, name)))
        return other

    def _copy(self, changed: tuple) -> Self:
        other = type(self).__new__(type(self))
        dict.update(other, self)
        other._hash = self._hash
        other._log = None if changed[0] == "commit" else self._log
        return other

    @property
    def log(self) -> tuple[Record | None, ...]:
        """The commit records in order; None where one is missing below the newest."""
        if self._log is None:
            seqs = [name[1] for name in self if name[0] == "commit"]
            self._log = tuple(self.get(("commit", seq)) for seq in range(1, max(seqs, default=0) + 1))
        return self._log

    @property
    def pointer(self) -> Pointer | None:
        return self.get(POINTER)

    def whole(self, manifest: str | None, digest: Manifest | None = None) -> bool:
        """The manifest is there, is the one whose digest was committed, and so are its shards."""
        body = self.get(("manifest", manifest))
        return body is not None and digest in (None, body) and all(shard in self for shard in body.winners)


def foreign_pointer(pointer: Pointer | None, log: tuple[Record | None, ...]) -> Pointer | None:
    """The pointer, if the reference wrote it and the head does not say that it is over."""
    if pointer is None or pointer.seq is not None:
        return None
    return None if log and log[-1] is not None and log[-1].over == pointer else pointer


def holder(log: tuple[Record | None, ...]) -> Record | None:
    """The newest record that says what is served: cleanup records only repeat it."""
    return next((record for record in reversed(log) if record and record.kind != "cleanup"), None)


def superseded(log: tuple[Record | None, ...], overs: bool = True) -> Iterator[tuple[str | None, int]]:
    """Manifests that were served, each with the record that ended that; `overs`: those of the reference's pointers too."""
    for parent, record in zip((None, *log), log, strict=False):
        if record and parent and parent.manifest != record.manifest:
            yield parent.manifest, record.seq
        if record and record.over and overs and record.over != (parent and parent.over):
            yield record.over.manifest, record.seq


# -- requests ----------------------------------------------------------------------------------------------------------

OK, EXISTS, TIMEOUT, DEADLINE = "ok", "412", "timeout, tries again", "timeout, gives up"


class Create(NamedTuple):
    """Create-only if `conditional`; answered OK, EXISTS, TIMEOUT or DEADLINE."""

    name: tuple
    body: Any
    conditional: bool = True


class Swap(NamedTuple):
    """PUT `_CURRENT` if it still is `expected`; a plain PUT if not `conditional`. Answered like `Create`."""

    body: Pointer
    expected: Pointer
    conditional: bool = True


class Put(NamedTuple):
    name: tuple
    body: Any


class PutForeign(NamedTuple):
    """The reference's PUT of `_CURRENT`: unconditional, stamped by the store."""

    manifest: str


class Get(NamedTuple):
    name: tuple


class Look(NamedTuple):
    """GET `_CURRENT`; answered (pointer, how often the reference has published: truth)."""


class ReadLog(NamedTuple):
    """The head with every record below it. `starting`: this ends the start of a build or rollback."""

    starting: bool = False


class Begin(NamedTuple):
    """Create the run record; answered (LastModified, truth)."""


class ListLeases(NamedTuple):
    """The run ids that have a live lease."""


class ListAll(NamedTuple):
    """Every object, and the number of the newest record that is older than the grace."""


class ListShards(NamedTuple):
    run: str


class Delete(NamedTuple):
    name: tuple


class Serve(NamedTuple):
    """Not a request: a reader changes to this version."""

    version: Pointer | Record


class Replace(NamedTuple):
    """Someone deletes the whole prefix."""


def in_words(request: Any) -> str:
    match request:
        case Create(name) | Put(name) | Get(name) | Delete(name):
            return f"{type(request).__name__.lower()} {'/'.join(map(str, name))}"
        case Swap(body, expected):
            return f"move _CURRENT from {expected.seq or 'the reference'} to {body.seq}"
        case PutForeign(manifest):
            return f"put _CURRENT of the reference for {manifest}"
        case ListShards(run):
            return f"list the shards of {run}"
        case Serve(version):
            return f"serve {version.manifest}"
        case str():
            return request
        case _:
            words = {Look: "read _CURRENT", ReadLog: "read the log", Begin: "create the run record"}
            words |= {ListLeases: "list the leases", ListAll: "list everything", Replace: "delete the prefix"}
            return words[type(request)]


class Goto(NamedTuple):
    """An actor goes on to another phase, and forgets all but these arguments."""

    phase: Any
    args: tuple


class Done(NamedTuple):
    """What an actor reports. `versus` is what a stale build lost to."""

    result: str
    record: Record | None = None
    start: BuildStart | None = None
    versus: Record | Pointer | None = None
