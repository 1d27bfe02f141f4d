"""One bit of one stored object is changed: lookups raise or are right, never wrong, never None for a key that is there.

2,000 random flips always, and a longer sweep behind `slow`. Each failure names the object and the bit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from shardyfusion import ShardedReader, SlateDbFactory, SqliteFactory
from shardyfusion.errors import ManifestParseError, ShardUnavailableError, ShardyfusionError
from shardyfusion.layout import CURRENT, JSON_TYPE
from shardyfusion.operations import verify
from shardyfusion.slatedb_adapter import SlateDbReaderFactory
from shardyfusion.storage import StoreAddress, open_store, wrapping_stores
from shardyfusion.testing.faults import FaultStore, StoreCall
from tests.integrity.published import change, flipped, names, write

SEED = 20261120
OLD = {key * 3: f"old value of {key * 3} {'.' * 150}".encode() for key in range(70)}
NEW = {key * 3: f"value of {key * 3} {'-' * 150}".encode() for key in range(10, 80)}
ABSENT = [*(key for key in OLD if key not in NEW), 1, 2, 100, 10**6, 2**62]
WATCHDOG_SECONDS = 60.0
"""For a case that hangs; the readers' own deadlines are shorter."""

FLIPS = {
    "sqlite": 500,
    "manifest": 400,
    "record": 350,
    "pointer": 175,
    "lagging pointer": 175,
    "slatedb": 300,
    "cache": 60,
    "outcome": 20,
    "seal": 20,
}
assert sum(FLIPS.values()) == 2000

Case = Callable[[str, int], str]
"""Checks what one flipped bit of an object does; returns what came of it, in a word."""


def sweep(kind: str, objects: list[tuple[str, int]], case: Case, flips: int | None = None) -> Counter[str]:
    """Flip random bits of objects (name, size), one by one. Objects are equally likely, whatever their size."""
    rng = random.Random(f"{SEED} {kind} {flips}")
    seen: Counter[str] = Counter()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(flips or FLIPS[kind]):
            name, size = rng.choice(objects)
            bit = rng.randrange(8 * size)
            try:
                seen[pool.submit(case, name, bit).result(WATCHDOG_SECONDS)] += 1
            except Exception as exc:
                raise AssertionError(f"{kind}: bit {bit} of {name} (seed {SEED}): {type(exc).__name__} {exc}") from exc
    return seen


def lookups(prefix: str, **options) -> str:
    """Look every key up, and those that are not there, in every way: each answer is right, or an error of ours."""
    refused = 0
    try:
        with ShardedReader(prefix, **options) as reader:
            assert reader.snapshot_info().fallback_from is None
            for key in (*NEW, *ABSENT):
                try:
                    assert reader.get(key) == NEW.get(key), f"key {key}"
                except ShardyfusionError:
                    refused += 1
            for db_id in range(reader.snapshot_info().num_dbs):
                here = [key for key in (*NEW, *ABSENT) if reader.route_key(key) == db_id]
                try:
                    assert reader.multi_get(here) == {key: NEW.get(key) for key in here}
                    scanned = dict(reader.scan(db_id))
                    assert scanned == {key.to_bytes(8, "big"): NEW[key] for key in here if key in NEW}
                except ShardyfusionError:
                    refused += 1
    except ShardyfusionError:
        return "raised"
    return "raised" if refused else "right"


class Local:
    """A snapshot in a directory, published twice, whose objects can be changed in place."""

    def __init__(self, root: Path, factory: object) -> None:
        self.root, self.prefix = root, str(root)
        write(self.prefix, factory, OLD, run_id="run-1", num_dbs=2)
        self.first_pointer = (root / CURRENT).read_bytes()
        write(self.prefix, factory, NEW, run_id="run-2", num_dbs=2)

    def objects(self, part: str, without: str = "seal.json") -> list[tuple[str, int]]:
        found = [name for name in names(self.prefix, part) if without not in name]
        sizes = [(name, (self.root / name).stat().st_size) for name in found]
        return [(name, size) for name, size in sizes if size]

    @contextmanager
    def flipped(self, name: str, bit: int) -> Generator[None]:
        before = (self.root / name).read_bytes()
        self._replace(name, flipped(before, bit))
        try:
            yield
        finally:
            self._replace(name, before)

    def _replace(self, name: str, body: bytes) -> None:
        beside = self.root / f"{name}.new"
        beside.write_bytes(body)
        beside.replace(self.root / name)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory) -> Local:
    return Local(tmp_path_factory.mktemp("sqlite") / "snap", SqliteFactory())


@pytest.fixture(scope="module")
def slatedb(tmp_path_factory) -> Local:
    return Local(tmp_path_factory.mktemp("slatedb") / "snap", SlateDbFactory())


def damage_is_verified(snapshot: Local, db_part: str) -> None:
    report = verify(snapshot.prefix, "full")
    assert [shard.url in f"file://{snapshot.root}/{db_part}" for shard in report.damaged] == [True]


def sqlite_case(snapshot: Local) -> Case:
    def case(name: str, bit: int) -> str:
        with snapshot.flipped(name, bit):
            damage_is_verified(snapshot, name)
            return lookups(snapshot.prefix)

    return case


def test_sqlite_shards(sqlite):
    assert lookups(sqlite.prefix) == "right"
    assert set(sweep("sqlite", sqlite.objects("run_id=run-2/db="), sqlite_case(sqlite))) == {"raised"}


def slatedb_case(snapshot: Local) -> Case:
    def case(name: str, bit: int) -> str:
        with snapshot.flipped(name, bit):
            damage_is_verified(snapshot, name)
            return lookups(snapshot.prefix, reader_factory=SlateDbReaderFactory(deadline_seconds=5))

    return case


def test_slatedb_objects(slatedb):
    assert lookups(slatedb.prefix) == "right"
    seen = sweep("slatedb", slatedb.objects("run_id=run-2/db="), slatedb_case(slatedb))
    assert seen["raised"] > 0, "the tables and the newest manifest are needed; older manifests are not"


def manifest_case(snapshot: Local) -> Case:
    def case(name: str, bit: int) -> str:
        with snapshot.flipped(name, bit):
            report = verify(snapshot.prefix, "full")
            assert report.problems
            assert report.seq == 2
            with pytest.raises(ManifestParseError):
                ShardedReader(snapshot.prefix, max_fallbacks=0)
            with ShardedReader(snapshot.prefix) as reader:  # wholly the old snapshot, and it says so
                info = reader.snapshot_info()
                assert (info.seq, info.fallback_from) == (1, report.manifest_ref)
                assert reader.multi_get([*OLD, 1, 2]) == {**OLD, 1: None, 2: None}
        return "raised"

    return case


def test_manifests(sqlite):
    (manifest,) = sqlite.objects("_run_id=run-2/manifest")
    assert set(sweep("manifest", [manifest], manifest_case(sqlite))) == {"raised"}


def record_case(snapshot: Local) -> Case:
    def case(name: str, bit: int) -> str:
        with snapshot.flipped(name, bit):
            found = lookups(snapshot.prefix, max_fallbacks=3)
            sound = verify(snapshot.prefix).ok
            # Only in the name of the digest itself can a bit go unseen: all that the record says is still right then.
            assert not sound or unseen(snapshot, name, bit)
            assert not sound or found == "right"
            return found

    return case


def unseen(snapshot: Local, name: str, bit: int) -> bool:
    return b'"sha256"' not in (snapshot.root / name).read_bytes()


def test_commit_records(sqlite):
    seen = sweep("record", sqlite.objects("commits/"), record_case(sqlite))
    assert seen["raised"] > 100, "the newest record"
    assert seen["right"] > 100, "the one before it, which only verify looks at"


def pointer_case(snapshot: Local) -> Case:
    def case(name: str, bit: int) -> str:
        with snapshot.flipped(name, bit):
            return lookups(snapshot.prefix)

    return case


def test_pointers(sqlite):
    seen = sweep("pointer", sqlite.objects(CURRENT), pointer_case(sqlite))
    assert seen["raised"] > 100


def test_lagging_pointers(sqlite):
    """It names the first commit and no bit of it makes a reader serve that."""
    store = open_store(StoreAddress.parse(sqlite.prefix))
    before = store.get(CURRENT).body
    store.put(CURRENT, sqlite.first_pointer, content_type=JSON_TYPE)
    try:
        assert lookups(sqlite.prefix) == "right"
        seen = sweep("lagging pointer", sqlite.objects(CURRENT), pointer_case(sqlite))
        assert seen["raised"] > 100
    finally:
        store.put(CURRENT, before, content_type=JSON_TYPE)


# -- downloads ---------------------------------------------------------------------------------------------------------


def test_cached_files_are_checked_and_fetched_anew(tmp_path):
    prefix, cache = f"memory://{uuid4().hex}/snap", tmp_path / "cache"
    write(prefix, SqliteFactory(), NEW, num_dbs=2)
    assert lookups(prefix, local_root=cache) == "right"
    files = [(path.name, path.stat().st_size) for path in cache.iterdir()]
    assert len(files) == 2

    def case(name: str, bit: int) -> str:
        damaged = cache / f"{name}.new"
        damaged.write_bytes(flipped((cache / name).read_bytes(), bit))
        damaged.replace(cache / name)
        return lookups(prefix, local_root=cache)

    assert set(sweep("cache", files, case)) == {"right"}


def test_a_download_is_checked_before_it_is_used(any_prefix, tmp_path):
    """What the store sends is damaged: an error, and nothing of it stays in the cache."""
    if "file://" in any_prefix:
        pytest.skip("read in place")
    write(any_prefix, SqliteFactory(), NEW, num_dbs=2)
    rng = random.Random(f"{SEED} {any_prefix[:3]}")
    for name in names(any_prefix, "shard.db"):
        body = open_store(StoreAddress.parse(any_prefix)).get(name).body
        bit = rng.randrange(8 * len(body))
        change(any_prefix, name, flipped(body, bit))
        with ShardedReader(any_prefix, local_root=tmp_path / "cache") as reader:
            lost = next(key for key in NEW if f"db={reader.route_key(key):05d}" in name)
            for _ in range(2):
                with pytest.raises(ShardUnavailableError, match="damaged: sha256"):
                    reader.get(lost)
        assert not list((tmp_path / "cache").iterdir()), f"bit {bit} of {name}"
        assert [shard.problem is not None for shard in verify(any_prefix, "full").damaged] == [True]
        change(any_prefix, name, body)
    assert lookups(any_prefix, local_root=tmp_path / "cache") == "right"


# -- reruns ------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def killed_at(prefix: str, part: str) -> dict[str, bytes]:
    """What a write leaves that is killed before it creates the object whose name holds `part`."""

    def kill(call: StoreCall) -> None:
        if call.verb == "create" and part in call.name:
            raise Killed

    with pytest.raises(Killed), wrapping_stores(lambda store: FaultStore(store, before=kill)):
        write(prefix, SqliteFactory(), NEW, num_dbs=2)
    store = open_store(StoreAddress.parse(prefix))
    return {info.name: store.get(info.name).body for info in store.list()}


def put_back(prefix: str, bodies: dict[str, bytes]) -> None:
    store = open_store(StoreAddress.parse(prefix))
    store.delete([info.name for info in store.list()])
    for name, body in bodies.items():
        store.put(name, body, content_type=JSON_TYPE)


@pytest.mark.parametrize(("kind", "at"), [("outcome", "commits/"), ("seal", "runs/outcome/")])
def test_a_rerun_over_damage_publishes_what_is_right_or_nothing(kind, at):
    prefix = f"memory://{uuid4().hex}/snap"
    bodies = killed_at(prefix, at)
    built = names(prefix, "shard.db")
    part = "runs/outcome/" if kind == "outcome" else "seal.json"
    damaged = [(name, len(body)) for name, body in bodies.items() if part in name]
    write(prefix, SqliteFactory(), NEW, num_dbs=2)
    assert names(prefix, "shard.db") == built, "a rerun builds nothing that is there already"

    def case(name: str, bit: int) -> str:
        put_back(prefix, {**bodies, name: flipped(bodies[name], bit)})
        try:
            write(prefix, SqliteFactory(), NEW, num_dbs=2)
        except ShardyfusionError:
            with pytest.raises(ShardyfusionError):
                ShardedReader(prefix)
            return "raised"
        assert lookups(prefix) == "right"
        report = verify(prefix, "full")
        assert report.ok, report
        return "right"

    seen = sweep(kind, damaged, case)
    assert seen["raised" if kind == "outcome" else "right"] >= FLIPS[kind] - 2, seen


# -- longer ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_bit_of_small_objects(sqlite) -> None:
    """Pointer and records: no bit of them goes wrong."""
    for name, size in (*sqlite.objects(CURRENT), *sqlite.objects("commits/")):
        for bit in range(8 * size):
            with sqlite.flipped(name, bit):
                lookups(sqlite.prefix)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "slatedb", "manifest"])
def test_many_more_flips(kind, sqlite, slatedb) -> None:
    if kind == "manifest":
        sweep(kind, sqlite.objects("_run_id=run-2/manifest"), manifest_case(sqlite), flips=3000)
    elif kind == "sqlite":
        sweep(kind, sqlite.objects("run_id=run-2/db="), sqlite_case(sqlite), flips=3000)
    else:
        sweep(kind, slatedb.objects("run_id=run-2/db="), slatedb_case(slatedb), flips=2000)
