"""The contract of shard engines, run against every engine and every kind of store it can write to."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardyfusion.errors import ConfigValidationError, ReaderStateError, ShardUnavailableError, ShardWriteError
from shardyfusion.shard_contract import (
    DbAdapter,
    DbAdapterFactory,
    SealedShard,
    ShardReader,
    ShardReaderFactory,
    ShardSource,
    ShardTarget,
)
from shardyfusion.slatedb_adapter import LocalSlateDbFactory, SlateDbFactory, SlateDbReaderFactory
from shardyfusion.sqlite_adapter import SqliteFactory, SqliteReaderFactory
from shardyfusion.storage import ObjectStore, StoreAddress, open_store

Rows = dict[bytes, bytes]

_ENGINES: dict[str, tuple[DbAdapterFactory, ShardReaderFactory]] = {
    "sqlite": (SqliteFactory(), SqliteReaderFactory()),
    "slatedb": (SlateDbFactory(), SlateDbReaderFactory()),
    "local_slatedb": (LocalSlateDbFactory(), SlateDbReaderFactory()),
}
_COMBINATIONS = [(e, s) for e in _ENGINES for s in ("file", "memory", "s3") if (e, s) != ("slatedb", "memory")]


@dataclass(frozen=True)
class Bench:
    """One engine on one store, with every shard in a directory of its own."""

    engine: str
    writes: DbAdapterFactory
    reads: ShardReaderFactory
    address: StoreAddress
    store: ObjectStore
    local: Path
    directory: str = field(default_factory=lambda: f"shards/run_id=r/db=00003/attempt=00-{uuid4().hex[:8]}")

    def writer(self) -> DbAdapter:
        scratch = self.local / f"scratch-{uuid4().hex}"
        scratch.mkdir()
        return self.writes.open(
            ShardTarget(db_id=3, store=self.store, address=self.address, directory=self.directory, scratch=scratch)
        )

    def reader(self, sealed: SealedShard | None = None) -> ShardReader:
        return self.reads.open_reader(self.source(sealed))

    def source(self, sealed: SealedShard | None = None) -> ShardSource:
        return ShardSource(
            db_id=3,
            store=self.store,
            address=self.address,
            directory=self.directory,
            objects=sealed.objects if sealed else (),
            identity=self.directory,
            cache=lambda: self.local / "cache",
        )

    def build(self, rows: Rows) -> SealedShard:
        with self.writer() as writer:
            writer.write_arrow(arrow(rows))
            return writer.seal()

    def elsewhere(self) -> Bench:
        return replace(self, directory=f"shards/{uuid4().hex}")

    def listing(self) -> list[tuple[str, int, str]]:
        return [(info.name, info.size, info.etag) for info in self.store.list()]

    def put(self, path: str, body: bytes) -> None:
        self.store.put(f"{self.directory}/{path}", body, content_type="application/octet-stream")


@pytest.fixture(params=_COMBINATIONS, ids="-".join)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    engine, kind = request.param
    prefix = {
        "file": lambda: str(tmp_path / "odd name ~é [x]" / "store"),
        "memory": lambda: f"memory://{uuid4().hex}/snap",
        "s3": lambda: request.getfixturevalue("s3_prefix"),
    }[kind]()
    address = StoreAddress.parse(prefix)
    writes, reads = _ENGINES[engine]
    return Bench(engine, writes, reads, address, open_store(address), tmp_path)


def arrow(rows: Rows | list[tuple[bytes, bytes]]) -> pa.RecordBatch:
    pairs = sorted(rows.items()) if isinstance(rows, dict) else rows
    columns = [pa.array([pair[i] for pair in pairs], pa.large_binary()) for i in (0, 1)]
    return pa.record_batch(columns, names=["key", "value"])


def numbered(count: int) -> Rows:
    return {n.to_bytes(8, "big"): b"value %d" % n * (n % 5) for n in range(count)}


def read_all(reader: ShardReader) -> Rows:
    try:
        scanned = list(reader.scan())
        assert [key for key, _ in scanned] == sorted({key for key, _ in scanned})
        rows = dict(scanned)
        assert dict(reader.get_many(list(rows))) == rows
        return rows
    finally:
        reader.close()


def awkward_rows(shortest: int, longest: int) -> Rows:
    """Empty values, values beyond a page, beyond a run of rows and far beyond, and keys of the extreme lengths."""
    sizes = [0, 1, 100, 4095, 4096, 65_536, 200_000]
    rows = {b"size %07d" % size: bytes(i % 251 for i in range(size)) for size in sizes}
    rows |= {b"\0": b"zero", b"\xff\xff": b"ones", b"\x00\x00": b"", b"k" * longest: b"long key"}
    return rows | ({} if shortest else {b"": b"empty key"})


def test_rows_come_back_by_get_get_many_and_scan(bench: Bench) -> None:
    rows = numbered(3000)
    sealed = bench.build(rows)
    assert sealed.rows == 3000
    reader = bench.reader(sealed)
    for n in (0, 1, 1234, 2999):
        assert reader.get(n.to_bytes(8, "big")) == rows[n.to_bytes(8, "big")]
    for absent in (b"", b"absent", (3000).to_bytes(8, "big"), b"x" * 70_000):
        assert reader.get(absent) is None
    some = [(n * 7).to_bytes(8, "big") for n in range(600)]
    assert dict(reader.get_many([*some, b"absent", b"", some[0]])) == {key: rows[key] for key in some if key in rows}
    assert read_all(reader) == rows


def test_awkward_keys_and_values_survive_in_slices(bench: Bench) -> None:
    rows = awkward_rows(bench.writes.min_key_bytes, bench.writes.max_key_bytes or 3_000_000)
    batch = arrow([(b"", b"before"), *sorted(rows.items()), (b"\xff\xff\xff", b"behind")])
    with bench.writer() as writer:
        writer.write_arrow(batch.slice(1, 4))
        writer.write_arrow(batch.slice(5, 0))
        writer.write_arrow(batch.slice(5, len(rows) - 4))
        assert writer.db_bytes() > 0
        sealed = writer.seal()
        assert writer.db_bytes() == sealed.db_bytes >= sum(map(len, rows.values()))
    assert sealed.rows == len(rows)
    assert read_all(bench.reader(sealed)) == rows


def test_the_last_write_of_a_key_wins(bench: Bench) -> None:
    with bench.writer() as writer:
        writer.write_batch(iter([(b"b", b"1"), (b"a", b"1"), (b"b", b"2")]))
        writer.write_batch([(b"a", b"2"), (b"c", b"")])
        sealed = writer.seal()
    assert sealed.rows == 3
    assert read_all(bench.reader(sealed)) == {b"a": b"2", b"b": b"2", b"c": b""}


def test_an_empty_shard_reads_as_empty(bench: Bench) -> None:
    sealed = bench.build({})
    assert sealed.rows == 0
    assert read_all(bench.reader(sealed)) == {}


def test_nothing_is_visible_without_seal_and_close_never_raises(bench: Bench) -> None:
    with suppress(KeyError), bench.writer() as writer:
        writer.write_arrow(arrow(numbered(10)))
        raise KeyError("the worker fails")
    writer.close()
    assert bench.listing() == []
    for use in (
        lambda: writer.write_batch([(b"k", b"v")]),
        lambda: writer.write_arrow(arrow({b"k": b"v"})),
        writer.seal,
    ):
        with pytest.raises(ShardWriteError, match="closed"):
            use()
    with pytest.raises(ShardUnavailableError, match="attempt=00"):
        bench.reader()


def test_objects_are_recorded_as_stored_and_reading_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    sealed = bench.build(numbered(500))
    before = bench.listing()
    assert [(f"{bench.directory}/{found.path}", found.size) for found in sealed.objects] == [b[:2] for b in before]
    for found in sealed.objects:
        copy = tmp_path / "copy" / uuid4().hex
        copy.parent.mkdir(exist_ok=True)
        bench.store.download(f"{bench.directory}/{found.path}", copy)
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == found.sha256
    assert sealed.db_bytes == sum(found.size for found in sealed.objects)
    reader = bench.reader(sealed)
    assert reader.get(b"absent") is None
    assert len(dict(reader.scan())) == 500
    reader.close()
    assert bench.listing() == before


def test_a_closed_reader_says_so(bench: Bench) -> None:
    sealed = bench.build(numbered(3000))
    reader = bench.reader(sealed)
    half_way = reader.scan()
    next(half_way)
    reader.close()
    reader.close()
    for use in (lambda: reader.get(b"k"), lambda: reader.get_many([b"k"]), reader.scan, lambda: list(half_way)):
        with pytest.raises(ReaderStateError, match="closed"):
            use()


def test_missing_and_damaged_objects_make_the_shard_unavailable(bench: Bench) -> None:
    sealed = bench.build(numbered(2000))
    # What the engine itself checks is not enough: SlateDB's manifest carries no checksum.
    checked = max(found.path for found in sealed.objects if "manifest" in found.path or found.path == "shard.db")
    body = bench.store.get(f"{bench.directory}/{checked}").body
    for damaged in (body[:-1] + bytes([body[-1] ^ 1]), body[:-1], body + b"\0"):
        bench.put(checked, damaged)
        with pytest.raises(ShardUnavailableError, match=r"damaged|recorded"):
            bench.reader(sealed)
    bench.store.delete([f"{bench.directory}/{checked}"])
    with pytest.raises(ShardUnavailableError, match=f"shard 3.*{bench.directory}"):
        bench.reader(sealed)
    bench.put(checked, body)
    assert len(read_all(bench.reader(sealed))) == 2000


def test_only_scratch_and_the_cache_are_used_locally(bench: Bench) -> None:
    read_all(bench.reader(bench.build(numbered(10))))
    allowed = ("scratch-", "odd name", "cache")
    assert [path.name for path in bench.local.iterdir() if not path.name.startswith(allowed)] == []
    left = [path for path in bench.local.glob("cache/**/*") if path.name.endswith(".part") or "slatedb" in path.name]
    assert left == []


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.dictionaries(st.binary(max_size=40), st.binary(max_size=200), max_size=60), cut=st.integers(0, 60))
def test_any_dict_comes_back(bench: Bench, rows: Rows, cut: int) -> None:
    if bench.engine != "sqlite":
        rows = {key: value for key, value in rows.items() if key}
    here = bench.elsewhere()
    batch = arrow(rows)
    with here.writer() as writer:
        writer.write_arrow(batch.slice(0, cut))
        writer.write_arrow(batch.slice(cut))
        sealed = writer.seal()
    assert sealed.rows == len(rows)
    assert read_all(here.reader(sealed)) == rows


def test_only_what_downloads_asks_for_a_local_directory(bench: Bench) -> None:
    asked: list[Path] = []

    def cache() -> Path:
        asked.append(bench.local / "cache")
        return asked[-1]

    source = replace(bench.source(bench.build({b"k": b"v"})), cache=cache)
    assert read_all(bench.reads.open_reader(source)) == {b"k": b"v"}
    in_place = bench.address.kind == "file" or (bench.address.kind == "s3" and bench.reads.backend == "slatedb")
    assert bool(asked) != in_place


@pytest.mark.parametrize("factory", [*dict.fromkeys(f for pair in _ENGINES.values() for f in pair)], ids=repr)
def test_factories_are_small_picklable_values(factory: object) -> None:
    assert pickle.loads(pickle.dumps(factory)) == factory
    assert factory.backend in ("sqlite", "slatedb")


def _refusals() -> Iterable[tuple[str, Callable[[], object]]]:
    s3 = StoreAddress.parse("s3://bucket/snap", options={"verify_ssl": False, "endpoint_url": "https://127.0.0.1:1"})
    yield "memory://x.*LocalSlateDbFactory", lambda: SlateDbFactory().check(StoreAddress.parse("memory://x"))
    yield "verify_ssl", lambda: SlateDbFactory().check(s3)
    yield "'~'", lambda: SlateDbFactory().check(StoreAddress.parse("s3://bucket/~me"))
    yield "page_size", lambda: SqliteFactory(page_size=1000)
    yield "mmap_bytes", lambda: SqliteReaderFactory(mmap_bytes=-1)
    yield "cache_bytes", lambda: SqliteReaderFactory(cache_bytes=0)
    yield "mmap_bytes is float", lambda: SqliteReaderFactory(mmap_bytes=1.5)
    yield "cache_bytes is str", lambda: SqliteReaderFactory(cache_bytes="8192")
    yield "verify_local is NoneType", lambda: SqliteReaderFactory(verify_local=None)
    yield "cache_bytes", lambda: SlateDbReaderFactory(cache_bytes=0)
    yield "deadline_seconds", lambda: SlateDbReaderFactory(deadline_seconds=0)
    yield "deadline_seconds", lambda: LocalSlateDbFactory(deadline_seconds=-1)
    yield "sst_bytes", lambda: SlateDbFactory(sst_bytes=0)


@pytest.mark.parametrize(("message", "call"), list(_refusals()))
def test_what_cannot_work_is_refused_by_name(s3: str, message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ConfigValidationError, match=message):
        call()
