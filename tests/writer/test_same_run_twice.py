"""One run id executed twice at once: one commit, both get it, and nothing that it needs is deleted, in any order of steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pytest

from shardyfusion import HashShardedWriteConfig, SqliteFactory
from shardyfusion.commits import BuildStart, CommitLog, CommitRecord, Patience
from shardyfusion.errors import PublishManifestError, StoreAccessError
from shardyfusion.layout import SEAL, run_directory
from shardyfusion.manifest import ShardingSpec, ShardObject
from shardyfusion.storage import ObjectStore, StoreAddress, open_store, wrapping_stores
from shardyfusion.testing import FaultStore, StoreCall
from shardyfusion.writer.attempt import ShardAttempt
from shardyfusion.writer.encode import Tally
from shardyfusion.writer.outcome import Outcome, find_outcome, freeze_outcome, make_outcome, manifest_of
from shardyfusion.writer.publish import publish_snapshot, sweep_losers
from tests.protocol.tiny_writes import PUTS, faults, first, history, names_below, runs_of, served_version, write
from tests.writer.turns import Chooser, RandomOrder, Turns, all_orders

RUN, REQUEST, ROWS = "nightly", "asked", 5
RUN_DIR = run_directory("shards", RUN)
CONFIG = HashShardedWriteConfig(num_dbs=2, s3_prefix="memory://unused/x", adapter_factory=SqliteFactory())
QUICK = Patience(pause_seconds=0)


def attempt(db_id: int, nonce: str) -> ShardAttempt:
    return ShardAttempt(
        db_id=db_id,
        attempt=0,
        directory=f"{RUN_DIR}db={db_id:05d}/attempt=00-{nonce}",
        backend="sqlite",
        rows=ROWS,
        duplicates_dropped=0,
        db_bytes=3,
        objects=(ShardObject(path="shard.db", size=3, sha256="0" * 64),),
        row_digest="sfmix64-1:0000000000000000",
        key_min=b"\x00" * 8,
        key_max=b"\x01" * 8,
        checkpoint_id=nonce * 4,
        seconds=0.0,
        waited_seconds=0.0,
    )


A0, A1, LATE, B0 = attempt(0, "aaaaaaa0"), attempt(1, "aaaaaaa1"), attempt(1, "aaaaaaa2"), attempt(0, "bbbbbbb0")
WINNERS = {"first": (A0, A1), "second": (B0, LATE)}
"""The second execution found a shard that the first had sealed twice, and took the seal that the first does not name."""


def outcome_of(name: str, start: BuildStart) -> Outcome:
    tally = Tally(
        rows=2 * ROWS,
        payload_bytes=0,
        seconds=0.0,
        counts=np.array([ROWS, ROWS]),
        digests=np.zeros(2, dtype=np.uint64),
    )
    return make_outcome(
        run_id=RUN, request=REQUEST, start=start, sharding=ShardingSpec(), tally=tally, winners=WINNERS[name]
    )


@dataclass
class Prefix:
    """A fresh prefix on which both executions have sealed their shards and not yet looked further."""

    url: str
    start: BuildStart

    @classmethod
    def prepare(cls, *, published: bool) -> Prefix:
        url = f"memory://{uuid4().hex}/snap"
        store = open_store(StoreAddress.parse(url))
        log = CommitLog(store, patience=QUICK)
        if published:
            start = BuildStart(base=0, started_at=datetime(2026, 11, 19, tzinfo=UTC))
            log.advance_pointer(
                log.append_build(
                    run_id="earlier",
                    manifest_ref=f"{url}/x",
                    manifest_sha256="0",
                    start=start,
                    check_winners=lambda: None,
                )
            )
        for made in (A0, A1, LATE, B0):
            store.put(f"{made.directory}/shard.db", b"abc", content_type="x")
            store.put(f"{made.directory}/{SEAL}", b"{}", content_type="x")
        head = log.state().head
        started_at = datetime(2026, 11, 20, tzinfo=UTC)
        return cls(url, BuildStart(base=head.seq if head else 0, started_at=started_at, log=head.log if head else None))

    def check(self, results: list[CommitRecord], published: bool) -> None:
        store = open_store(StoreAddress.parse(self.url))
        assert runs_of(self.url) == ["earlier", RUN][not published :]
        assert results == [history(self.url)[-1]] * 2
        outcome = find_outcome(store, RUN, REQUEST)
        assert outcome is not None
        kept = {f"{winner.directory}/{leaf}" for winner in outcome.winners for leaf in ("shard.db", SEAL)}
        assert {info.name for info in store.list("shards/")} == kept
        assert store.head(outcome.manifest_name) is not None
        assert CommitLog(store).state().pointer.seq == results[0].seq


class Execution:
    """What a write does once its shards are sealed, and its first look for an outcome.

    Each request is a point where the other execution may come in between, or just the first of each step: find, freeze,
    manifest, look (at what was committed, and for the winners), record, advance, sweep.
    """

    def __init__(self, prefix: Prefix, name: str, turns: Turns, *, by_request: bool) -> None:
        self.mine = outcome_of(name, prefix.start)
        self.turns = turns
        self.by_request = by_request
        self.store: ObjectStore = FaultStore(open_store(StoreAddress.parse(prefix.url)), before=self.request)
        self.step = "find"

    def run(self) -> CommitRecord:
        outcome = find_outcome(self.store, RUN, REQUEST)
        resumed = outcome is not None
        if outcome is None:
            self.enter("freeze")
            outcome = freeze_outcome(self.store, self.mine, QUICK)
            resumed = outcome is not self.mine
        self.enter("manifest")
        manifest = manifest_of(outcome, CONFIG, "key", self.store.url)
        record = publish_snapshot(
            self.store, outcome, manifest, run_dir=RUN_DIR, patience=QUICK, force=False, resumed=resumed
        )
        self.enter("advance")
        CommitLog(self.store, patience=QUICK).advance_pointer(record)
        self.enter("sweep")
        sweep_losers(self.store, outcome, RUN_DIR)
        return record

    def enter(self, step: str) -> None:
        self.step = step
        if not self.by_request:
            self.turns.wait()

    def request(self, call: StoreCall) -> None:
        if self.by_request:
            self.turns.wait()
        elif self.step == "manifest" and self.made_manifest(call):
            self.enter("look")
        elif self.step == "look" and call.verb == "create":
            self.enter("record")
        self.last = call

    def made_manifest(self, call: StoreCall) -> bool:
        return self.last.name.startswith("manifests/") and call.name != self.last.name


def run_both(choose: Chooser, *, published: bool, by_request: bool) -> None:
    prefix, turns = Prefix.prepare(published=published), Turns()
    executions = [Execution(prefix, name, turns, by_request=by_request) for name in WINNERS]
    results = turns.run([execution.run for execution in executions], choose)
    prefix.check(results, published)


def run_all(orders: Iterable[Chooser], *, published: bool, by_request: bool) -> int:
    """How many orders there were; an error says in which of them it happened."""
    count = 0
    for order in orders:
        count += 1
        try:
            run_both(order, published=published, by_request=by_request)
        except BaseException as exc:
            exc.add_note(repr(order))
            raise
    return count


PUBLISHED = pytest.mark.parametrize("published", [False, True], ids=["first-publish", "later-publish"])


@PUBLISHED
def test_every_order_of_the_steps(published: bool) -> None:
    """Seven each, less what the second is spared that finds an outcome: fewer than the 3,432 of two times seven."""
    assert run_all(all_orders(), published=published, by_request=False) > 2_000


def test_every_order_of_the_requests_with_up_to_two_switches() -> None:
    assert run_all(all_orders(most_switches=2), published=True, by_request=True) > 500


@PUBLISHED
def test_random_orders_of_the_requests(published: bool) -> None:
    run_all(map(RandomOrder, range(150)), published=published, by_request=True)


@pytest.mark.parametrize("failed_before", [False, True], ids=["from-nothing", "after-a-failure"])
def test_two_whole_writes_in_random_orders_of_their_requests(failed_before: bool) -> None:
    """Every request of either, from its run record to its sweep; after a failure both use the same seals."""
    for seed in range(20):
        prefix, turns = f"memory://{uuid4().hex}/snap", Turns()
        write(prefix, "earlier")
        if failed_before:
            with faults(first(1, PUTS["outcome"], deny)), pytest.raises(PublishManifestError):
                write(prefix, RUN)
        with wrapping_stores(lambda store, turns=turns: FaultStore(store, before=lambda call: turns.wait())):
            one, other = turns.run([lambda prefix=prefix: write(prefix, RUN)] * 2, RandomOrder(seed))
        assert one.manifest_ref == other.manifest_ref, f"seed {seed}"
        assert one.winners == other.winners, f"seed {seed}"
        assert not (one.reused and other.reused), f"seed {seed}"
        assert runs_of(prefix) == ["earlier", RUN], f"seed {seed}"
        assert served_version(prefix) == RUN, f"seed {seed}"
        kept = [f"{winner.directory}/{leaf}" for winner in one.winners for leaf in (SEAL, "shard.db")]
        assert names_below(prefix, RUN_DIR) == kept, f"seed {seed}"
        if failed_before:
            assert {one.reused_shards, other.reused_shards} == {(0, 1)}, f"seed {seed}"


def deny(call: StoreCall) -> None:
    raise StoreAccessError(f"{call}: HTTP 403")
