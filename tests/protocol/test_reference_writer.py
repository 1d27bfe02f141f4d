"""Another writer of the format on the same prefix: the last publish is served, whoever made it, and ours is not lost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from shardyfusion import ShardedReader
from shardyfusion.errors import StaleBuildError
from shardyfusion.layout import COMMITS, CURRENT
from shardyfusion.testing import StoreCall
from tests.protocol.reference import Reference, build_version
from tests.protocol.tiny_writes import (
    PUTS,
    Fault,
    at_call,
    faults,
    first,
    history,
    next_tick,
    runs_of,
    served_version,
    store_of,
    write,
)
from tests.reader.snapshots import commit


class Died(BaseException):
    """The process ends here: nothing catches this, and nothing may be sent after it."""


def dying(die: Callable[[StoreCall], bool]) -> Fault:
    dead: list[StoreCall] = []

    def around(call: StoreCall) -> None:
        if dead or die(call):
            dead.append(call)
            raise Died

    return around


def write_and_die(prefix: str, run_id: str, die: Callable[[StoreCall], bool], **options: bool) -> None:
    with faults(dying(die)), pytest.raises(Died):
        write(prefix, run_id, **options)


def to_move_the_pointer(call: StoreCall) -> bool:
    return PUTS["pointer-replace"](call) or PUTS["pointer-create"](call)


def decided_at(calls: list[StoreCall]) -> int:
    """The number of the last look at the pointer before the record."""
    record = next(index for index, call in enumerate(calls) if PUTS["record"](call))
    return max(index + 1 for index in range(record) if calls[index].name == CURRENT)


class Interrupted:
    """A write on a prefix of its own, and the other writer's publish (or rollback) just before one of its requests."""

    def __init__(self, prefix: str, number: int, *, ours_before: bool, rolls_back: bool) -> None:
        self._prefix = prefix
        self._number = number
        self._earlier = [commit(prefix, build_version(prefix, "earlier"))] if ours_before else []
        self._theirs = Reference(prefix, "theirs")
        self._rolls_back = rolls_back
        self._pointer: bytes | None = None
        """What it stored as the pointer; None while it has not had its turn."""
        self.committed = True

    def write(self) -> list[StoreCall]:
        """Returns our requests."""
        with faults(at_call(self._number, self._let_it_act)) as calls:
            try:
                write(self._prefix, "ours")
            except StaleBuildError:
                self.committed = False
        if self.committed and self._number > 1:
            assert self._number > decided_at(calls), "ours went over what it had to see"
        return calls

    def _let_it_act(self) -> None:
        self._pointer = self._theirs.rollback(self._earlier[0].ref) if self._rolls_back else self._theirs.publish()

    def check(self) -> None:
        """The last one to come is served, and no record is lost."""
        assert runs_of(self._prefix) == ["earlier"] * len(self._earlier) + ["ours"] * self.committed
        if self._pointer is None or (self._number == 1 and self.committed):
            # It never came; or before we began, by another tick of the store's clock.
            assert served_version(self._prefix) == "ours"
        else:
            assert served_version(self._prefix) == ("earlier" if self._rolls_back else "theirs")
            assert store_of(self._prefix).get(CURRENT).body == self._pointer, "its later publish was overwritten"

    def write_again(self) -> None:
        write(self._prefix, "next")
        assert served_version(self._prefix) == "next"
        assert runs_of(self._prefix)[-1] == "next"


@pytest.mark.parametrize(
    ("store", "ours_before", "rolls_back", "again"),
    [
        pytest.param("memory", False, False, 1, id="memory-first"),
        pytest.param("memory", True, False, 1, id="memory"),
        pytest.param("memory", True, True, 1, id="memory-rollback"),
        pytest.param("local", True, False, 1, id="local"),
        pytest.param("s3", True, False, 4, id="s3"),
    ],
)
def test_its_publish_before_each_request_of_ours(
    store: str, ours_before: bool, rolls_back: bool, again: int, request: pytest.FixtureRequest
) -> None:
    """And every `again`-th time our next write after all that."""
    base = request.getfixturevalue(f"{store}_prefix")
    requests, swept, met = 0, 0, set[bool]()
    while swept <= requests:
        # One after the last is where it never comes. All prefixes wait for the store's clock together.
        numbers = range(swept + 1, requests + 2)
        writes = {
            number: Interrupted(f"{base}/{number}", number, ours_before=ours_before, rolls_back=rolls_back)
            for number in numbers
        }
        next_tick(base)
        for number, ours in writes.items():
            with naming(f"before request {number}"):
                requests = max(requests, len(ours.write()))
                ours.check()
                met.add(ours.committed)
        next_tick(base)
        for number in numbers[::again]:
            with naming(f"before request {number}"):
                writes[number].write_again()
        swept = numbers[-1]
    assert requests > 20
    assert met == {True, False}


@contextmanager
def naming(what: str) -> Iterator[None]:
    try:
        yield
    except BaseException as exc:
        exc.add_note(what)
        raise


def test_it_publishes_after_ours_and_we_after_it_again(any_prefix: str) -> None:
    theirs = Reference(any_prefix, "theirs")
    write(any_prefix, "one")
    with ShardedReader(any_prefix) as reader:
        for number, run in enumerate(("two", "three"), start=1):
            theirs.publish()
            assert served_version(any_prefix) == "theirs"
            assert reader.refresh()
            assert reader.get(1) == b"theirs-1"
            next_tick(any_prefix)
            write(any_prefix, run)
            assert served_version(any_prefix) == run
            assert reader.refresh()
            assert reader.get(1) == f"{run}-1".encode()
            assert reader.snapshot_info().seq == number + 1


def test_our_commit_over_its_pointer_is_served_wherever_we_die_after_it(memory_prefix: str) -> None:
    """At each request after the record, the pointer's included; and whatever comes next works."""
    number = 1
    while True:
        prefix = f"{memory_prefix}/{number}"
        write(prefix, "earlier")
        theirs = Reference(prefix, "theirs")
        pointer = theirs.publish()
        next_tick(prefix)
        since = [0]

        def die(call: StoreCall, since: list[int] = since, number: int = number) -> bool:
            since[0] += bool(since[0] or PUTS["record"](call))
            return since[0] == number + 1

        with faults(dying(die)) as calls:
            try:
                write(prefix, "ours")
                died = False
            except Died:
                died = True
        assert runs_of(prefix) == ["earlier", "ours"]
        assert history(prefix)[-1].over == hashlib.sha256(pointer).hexdigest()
        assert served_version(prefix) == "ours", f"died before {calls[-1]}"
        if number % 2:
            next_tick(prefix)
            write(prefix, "next")
            assert served_version(prefix) == "next"
        else:
            theirs.publish()
            assert served_version(prefix) == "theirs"
        if not died:
            break
        number += 1
    assert number > 6


@pytest.mark.parametrize("forced", [True, False])
def test_a_build_that_began_before_its_publish_is_stale_unless_forced(forced: bool, any_prefix: str) -> None:
    write(any_prefix, "earlier")
    theirs = Reference(any_prefix, "theirs")
    with faults(first(1, PUTS["outcome"], lambda call: theirs.publish() and None)):
        if forced:
            write(any_prefix, "ours", force=True)
        else:
            with pytest.raises(StaleBuildError, match="another writer"):
                write(any_prefix, "ours")
    assert served_version(any_prefix) == ("ours" if forced else "theirs")
    next_tick(any_prefix)
    write(any_prefix, "next")
    assert served_version(any_prefix) == "next"


def test_its_rollback_after_ours_is_served(any_prefix: str) -> None:
    """To its own snapshot and to one of ours; a build under way is then stale, and the next one works."""
    theirs = Reference(any_prefix, "theirs")
    ours = write(any_prefix, "ours")
    theirs.publish()
    next_tick(any_prefix)
    write(any_prefix, "newer")
    assert served_version(any_prefix) == "newer"
    theirs.rollback(ours.manifest_ref.ref)
    assert served_version(any_prefix) == "ours"
    with (
        faults(first(1, PUTS["manifest"], lambda call: theirs.rollback(ours.manifest_ref.ref) and None)),
        pytest.raises(StaleBuildError),
    ):
        write(any_prefix, "under-way")
    assert served_version(any_prefix) == "ours"
    next_tick(any_prefix)
    write(any_prefix, "next")
    assert served_version(any_prefix) == "next"
    assert runs_of(any_prefix) == ["ours", "newer", "next"]


# -- what happens between two requests of one look -----------------------------------------------------------------


def at_listing(number: int, happen: Callable[[], None]) -> Fault:
    """`happen` after the pointer was read and before the records are listed, at the so-manieth listing."""
    return at_call(number, happen, lambda call: call.verb == "list" and call.name == COMMITS)


def committed_over_its_pointer(prefix: str) -> tuple[Reference, Callable[[], None]]:
    """Its pointer stands, and a commit over it that never moved it. Then the same again, when called."""
    write(prefix, "earlier")
    one, two = Reference(prefix, "theirs-1"), Reference(prefix, "theirs-2")
    one.publish()
    next_tick(prefix)
    write_and_die(prefix, "ours-1", to_move_the_pointer)

    def again() -> None:
        two.publish()
        next_tick(prefix)
        write_and_die(prefix, "ours-2", to_move_the_pointer)

    return two, again


def test_a_reader_between_two_of_its_publishes_is_not_led_back(memory_prefix: str) -> None:
    """It reads the first pointer, and a head that names only the second: the first is older than what it serves."""
    _, again = committed_over_its_pointer(memory_prefix)
    with faults(at_listing(1, again)), ShardedReader(memory_prefix) as reader:
        assert reader.get(1) == b"ours-2-1"
    assert served_version(memory_prefix) == "ours-2"


def test_a_reader_that_serves_a_commit_does_not_go_back_to_what_that_was_made_over(memory_prefix: str) -> None:
    _, again = committed_over_its_pointer(memory_prefix)
    with faults(at_listing(2, again)), ShardedReader(memory_prefix) as reader:
        assert reader.get(1) == b"ours-1-1"
        reader.refresh()
        assert reader.get(1) == b"ours-2-1"


def test_a_forced_build_between_two_of_its_publishes_hides_no_commit(memory_prefix: str) -> None:
    """Its record must be over the second pointer, or the second would look newer than both commits."""
    two, again = committed_over_its_pointer(memory_prefix)
    with faults(at_listing(2, again)):
        write(memory_prefix, "forced", force=True)
    assert runs_of(memory_prefix) == ["earlier", "ours-1", "ours-2", "forced"]
    assert served_version(memory_prefix) == "forced"
    two.publish()
    assert served_version(memory_prefix) == "theirs-2"
