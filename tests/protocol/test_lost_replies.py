"""Every conditional request of a write is applied and its answer lost, refused for a moment, or lands late.

What the writer reports must be what happened: committed if and only if the log has the run, and "unknown" in between.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from shardyfusion.commits import Patience
from shardyfusion.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    PublishCurrentError,
    PublishManifestError,
    PublishUnknownError,
    StaleBuildError,
    StorageError,
    StoreAccessError,
    StoreUnavailableError,
)
from shardyfusion.run_registry import RunLease
from shardyfusion.testing import FaultStore, StoreCall
from tests.protocol.tiny_writes import (
    PUTS,
    RUN_RECORD,
    answer_409,
    at_call,
    deletions,
    faults,
    first,
    history,
    lose_answer,
    names_below,
    next_tick,
    runs_of,
    served_version,
    store_of,
    write,
)

GIVEN_UP = {
    "outcome": PublishManifestError,
    "manifest": PublishManifestError,
    "record": PublishUnknownError,
    "pointer-create": PublishCurrentError,
    "pointer-replace": PublishCurrentError,
}
FAULTS = {"applied-answer-lost": lose_answer, "409": answer_409}


def prepare(prefix: str, kind: str) -> list[str]:
    """`_CURRENT` is created by the first publish and replaced by later ones."""
    return [write(prefix, "earlier").run_id] if kind == "pointer-replace" else []


def check_finished(prefix: str, run_id: str, earlier: list[str]) -> None:
    assert runs_of(prefix) == [*earlier, run_id]
    assert served_version(prefix) == run_id


# On S3 a 409 comes from the wire: test_answers_on_the_wire.py.
WHERE = [(store, fault) for store in ("memory", "local", "s3") for fault in FAULTS if (store, fault) != ("s3", "409")]


@pytest.mark.parametrize(("store", "fault"), WHERE)
@pytest.mark.parametrize("repeats", [0, 1, 2])
@pytest.mark.parametrize("kind", PUTS)
def test_faults_up_to_the_patience_change_nothing_and_beyond_it_are_told(
    kind: str,
    repeats: int,
    store: str,
    fault: str,
    request: pytest.FixtureRequest,
    allow_repeats: Callable[[int], None],
) -> None:
    base = request.getfixturevalue(f"{store}_prefix")
    for lost in (repeats + 1,) if store == "s3" else (repeats, repeats + 1):
        prefix = f"{base}/{lost}"
        allow_repeats(2)
        earlier = prepare(prefix, kind)
        allow_repeats(repeats)
        with faults(first(lost, PUTS[kind], FAULTS[fault])) as calls:
            # The pointer is looked at before it is sent again, so no second answer can be lost.
            if lost <= repeats or (kind.startswith("pointer") and repeats and fault != "409"):
                assert not write(prefix, "run").reused
            else:
                with pytest.raises(GIVEN_UP[kind]) as caught:
                    write(prefix, "run")
                assert type(caught.value) is GIVEN_UP[kind]
                assert caught.value.retryable
                assert caught.value.facts["run_id"] == "run"
                check_unfinished(prefix, kind, earlier, landed=fault != "409")
        assert deletions(calls) == []
        rerun_finishes(prefix)
        check_finished(prefix, "run", earlier)


def rerun_finishes(prefix: str) -> None:
    """If there is an outcome, without writing a shard again."""
    settled = bool(names_below(prefix, "runs/outcome/run.json"))
    before = names_below(prefix, "shards/run_id=run/")
    assert write(prefix, "run").reused == settled
    assert names_below(prefix, "shards/run_id=run/") == before or not settled


def check_unfinished(prefix: str, kind: str, earlier: list[str], *, landed: bool) -> None:
    """After giving up, everything that had been made is still there, and the log says what happened."""
    committed = kind.startswith("pointer") or (kind == "record" and landed)
    assert runs_of(prefix) == ([*earlier, "run"] if committed else earlier)
    assert len(names_below(prefix, "shards/run_id=run/")) == 4, "two shards and their seals"
    if committed or kind == "record":
        assert len(names_below(prefix, "manifests/")) == 1 + len(earlier)
    if committed:
        assert served_version(prefix) == "run", "the record counts, not the pointer"


@pytest.mark.parametrize("applied", [True, False], ids=["ours-is-there", "nothing-is-there"])
@pytest.mark.parametrize("read_back", ["as-it-is", "404", "403", "lost"])
@pytest.mark.parametrize("kind", [kind for kind in PUTS if not kind.startswith("pointer")])
def test_a_412_is_settled_by_reading_back(
    kind: str, read_back: str, applied: bool, memory_prefix: str, allow_repeats: Callable[[int], None]
) -> None:
    """With our own bytes it is a success; while nothing can be read, the same bytes are sent again."""
    errors = {"404": ObjectNotFoundError, "403": StoreAccessError, "lost": StoreUnavailableError}
    refused: list[str] = []

    def refuse(call: StoreCall) -> None:
        refused.append(call.name)
        if applied:
            call.perform()
        raise ObjectExistsError(f"{call}: HTTP 412")

    def unreadable(call: StoreCall) -> None:
        if call.verb == "get" and refused == [call.name] and read_back in errors:
            refused.append("read back once")
            raise errors[read_back](f"{call}: HTTP {read_back}")

    allow_repeats(1)
    with faults(first(1, PUTS[kind], refuse), unreadable) as calls:
        assert not write(memory_prefix, "run").reused
    assert deletions(calls) == []
    assert len(refused) == 1 + (read_back in errors), "the fault happened"
    check_finished(memory_prefix, "run", [])


@pytest.mark.parametrize("error", [ObjectNotFoundError, StoreAccessError, StoreUnavailableError])
def test_a_412_that_can_never_be_read_back_is_unknown(
    error: type[StorageError], memory_prefix: str, allow_repeats: Callable[[int], None]
) -> None:
    """Also where it is denied: S3 answers 403 for what is absent, if the writer may not list."""
    landed: list[str] = []

    def lose(call: StoreCall) -> None:
        landed.append(call.name)
        lose_answer(call)

    def unreadable(call: StoreCall) -> None:
        if call.verb == "get" and call.name in landed:
            raise error(f"{call}: not now")

    allow_repeats(2)
    with faults(first(1, PUTS["record"], lose), unreadable) as calls, pytest.raises(PublishUnknownError):
        write(memory_prefix, "run")
    assert deletions(calls) == []
    assert runs_of(memory_prefix) == ["run"]
    rerun_finishes(memory_prefix)
    check_finished(memory_prefix, "run", [])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("lost", [1, 2])
def test_the_run_record_survives_lost_answers(lost: int, fault: str, memory_prefix: str) -> None:
    with faults(first(lost, RUN_RECORD, FAULTS[fault])) as calls:
        write(memory_prefix, "run")
    assert deletions(calls) == []
    assert len(names_below(memory_prefix, "runs/2")) == 1
    check_finished(memory_prefix, "run", [])


def test_a_run_that_cannot_be_recorded_does_nothing(memory_prefix: str, one_try: Patience) -> None:
    """Neither does its record when it lands after all, but keep the files of that run for the time of a lease."""
    kept: list[StoreCall] = []

    def keep(call: StoreCall) -> None:
        kept.append(call)
        answer_409(call)

    store = FaultStore(store_of(memory_prefix), before=keep)
    with pytest.raises(StoreUnavailableError):
        RunLease.start(store, run_id="run", shard_prefix="shards", db_path_template="db={db_id}", patience=one_try)
    assert names_below(memory_prefix, "") == []
    with faults(at_call(20, lambda: land(kept[0]))):
        write(memory_prefix, "run")
    assert len(names_below(memory_prefix, "runs/2")) == 2
    check_finished(memory_prefix, "run", [])


# -- late ----------------------------------------------------------------------------------------------------------


def give_up_on(prefix: str, kind: str) -> StoreCall:
    """A write whose request of this kind is still on its way when the writer gives up; returns that request."""
    kept: list[StoreCall] = []

    def keep(call: StoreCall) -> None:
        kept.append(call)
        raise StoreUnavailableError(f"{call}: no answer")

    with faults(first(1, PUTS[kind], keep)) as calls, pytest.raises(GIVEN_UP[kind]):
        write(prefix, "run")
    assert deletions(calls) == []
    return kept[0]


def land(call: StoreCall) -> None:
    with suppress(StorageError):
        call.perform()


LATE_EVERYWHERE = [("memory", kind, 1) for kind in PUTS] + [("local", "record", 3), ("s3", "record", 12)]


@pytest.mark.parametrize(("store", "kind", "step"), LATE_EVERYWHERE, ids=lambda value: str(value))
def test_a_request_that_lands_during_or_after_the_rerun_changes_nothing(
    store: str, kind: str, step: int, request: pytest.FixtureRequest, allow_repeats: Callable[[int], None]
) -> None:
    """Before, between and after all requests of a rerun, or at every `step`-th of them."""
    base = request.getfixturevalue(f"{store}_prefix")
    number, requests = 1, 1
    while number <= requests + 1:
        prefix = f"{base}/{number}"
        allow_repeats(2)
        earlier = prepare(prefix, kind)
        allow_repeats(0)
        late = give_up_on(prefix, kind)
        allow_repeats(2)
        with faults(at_call(number, lambda late=late: land(late))) as calls:
            result = write(prefix, "run")
        requests = len(calls)
        land(late)
        assert runs_of(prefix) == [*earlier, "run"], f"landed before request {number}"
        assert result.manifest_ref == history(prefix)[-1].to_ref()
        assert served_version(prefix) == "run"
        number += step
    assert requests > 10


@pytest.mark.parametrize("rerun_first", [True, False], ids=["rerun-then-late", "late-then-rerun"])
@pytest.mark.parametrize("kind", PUTS)
def test_a_request_that_lands_after_another_writers_publish_takes_nothing_from_it(
    kind: str, rerun_first: bool, any_prefix: str, allow_repeats: Callable[[int], None]
) -> None:
    allow_repeats(2)
    earlier = prepare(any_prefix, kind)
    allow_repeats(0)
    late = give_up_on(any_prefix, kind)
    allow_repeats(2)
    write(any_prefix, "other")
    reported: list[bool] = []
    for step in ["rerun", "land", "rerun"] if rerun_first else ["land", "rerun"]:
        if step == "land":
            land(late)
        else:
            try:
                write(any_prefix, "run")
                reported.append(True)
            except StaleBuildError:
                reported.append(False)
    runs = runs_of(any_prefix)
    if kind.startswith("pointer"):
        assert runs == [*earlier, "run", "other"]
        assert set(reported) == {True}, "it was committed before the other"
    elif kind == "outcome":
        # Nothing was decided before the other publish: the rerun is a build of its own, or finds itself overtaken.
        assert runs in ([*earlier, "other", "run"], [*earlier, "other"])
        assert reported == [runs[-1] == "run"] * len(reported)
    else:
        assert runs == [*earlier, "other"]
        assert set(reported) == {False}, "its first execution began before the other's"
    assert served_version(any_prefix) == runs[-1]


@pytest.mark.parametrize("forced", [True, False])
def test_a_record_that_lands_before_another_writer_looks_is_one_more_commit(
    forced: bool, any_prefix: str, allow_repeats: Callable[[int], None]
) -> None:
    """The late record takes the number that another writer is about to create, and that one decides again."""
    allow_repeats(0)
    late = give_up_on(any_prefix, "record")
    allow_repeats(2)
    next_tick(any_prefix)  # of two that started in one tick of the store's clock, the second is stale
    with faults(first(1, PUTS["record"], lambda call: land(late))):
        write(any_prefix, "other", force=forced)
    assert runs_of(any_prefix) == ["run", "other"]
    assert write(any_prefix, "run").manifest_ref.seq == 1
    assert served_version(any_prefix) == "other"
