"""What every engine for shards promises, on the writing and on the reading side."""

from __future__ import annotations

import hashlib
import pickle
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyfusion.errors import ReaderStateError, ShardUnavailableError, ShardWriteError
from shardyfusion.shard_contract import (
    DbAdapter,
    DbAdapterFactory,
    SealedShard,
    ShardReader,
    ShardReaderFactory,
    ShardSource,
    ShardTarget,
)
from shardyfusion.storage import ObjectStore, StoreAddress, open_store

if TYPE_CHECKING:
    import pyarrow as pa

Rows = dict[bytes, bytes]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """An engine on a store, with a directory of that store for one shard, and a local directory for everything else."""

    writes: DbAdapterFactory
    reads: ShardReaderFactory
    address: StoreAddress
    store: ObjectStore
    local: Path
    directory: str = field(default_factory=lambda: f"shards/run_id=r/db=00003/attempt=00-{uuid.uuid4().hex[:8]}")

    def writer(self) -> DbAdapter:
        scratch = self.local / f"scratch-{uuid.uuid4().hex}"
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
        return replace(self, directory=f"shards/{uuid.uuid4().hex}")

    def listing(self) -> list[tuple[str, int, str]]:
        return [(info.name, info.size, info.etag) for info in self.store.list()]

    def put(self, path: str, body: bytes) -> None:
        self.store.put(f"{self.directory}/{path}", body, content_type="application/octet-stream")


class ShardBackendTests:
    """Provide `writes` and `reads`, the two factories of the engine, and `prefix`, where an empty store can be opened.

    `recorded_object` may be overridden to say which object of a shard is compared with its digest when it is opened.
    """

    @pytest.fixture
    def writes(self) -> DbAdapterFactory:
        raise NotImplementedError("a fixture `writes` returns the factory that opens adapters")

    @pytest.fixture
    def reads(self) -> ShardReaderFactory:
        raise NotImplementedError("a fixture `reads` returns the factory that opens shard readers")

    @pytest.fixture
    def prefix(self) -> str:
        raise NotImplementedError("a fixture `prefix` returns the URL of an empty place, another for each test")

    def recorded_object(self, sealed: SealedShard) -> str:
        return sealed.objects[0].path

    @pytest.fixture
    def bench(self, writes: DbAdapterFactory, reads: ShardReaderFactory, prefix: str, tmp_path: Path) -> Bench:
        address, local = StoreAddress.parse(prefix), tmp_path / "local"
        local.mkdir()
        return Bench(writes=writes, reads=reads, address=address, store=open_store(address), local=local)

    def test_rows_come_back_by_get_get_many_and_scan(self, bench: Bench) -> None:
        rows = numbered(3000)
        sealed = bench.build(rows)
        assert sealed.rows == 3000
        reader = bench.reader(sealed)
        for n in (0, 1, 1234, 2999):
            assert reader.get(n.to_bytes(8, "big")) == rows[n.to_bytes(8, "big")]
        for absent in (b"", b"absent", (3000).to_bytes(8, "big"), b"x" * 70_000):
            assert reader.get(absent) is None
        some = [(n * 7).to_bytes(8, "big") for n in range(600)]
        expected = {key: rows[key] for key in some if key in rows}
        assert dict(reader.get_many([*some, b"absent", b"", some[0]])) == expected
        assert read_all(reader) == rows

    def test_awkward_keys_and_values_survive_in_slices(self, bench: Bench) -> None:
        rows = _awkward_rows(bench.writes.min_key_bytes, bench.writes.max_key_bytes or 3_000_000)
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

    def test_the_last_write_of_a_key_wins(self, bench: Bench) -> None:
        with bench.writer() as writer:
            writer.write_batch(iter([(b"b", b"1"), (b"a", b"1"), (b"b", b"2")]))
            writer.write_batch([(b"a", b"2"), (b"c", b"")])
            sealed = writer.seal()
        assert sealed.rows == 3
        assert read_all(bench.reader(sealed)) == {b"a": b"2", b"b": b"2", b"c": b""}

    def test_an_empty_shard_reads_as_empty(self, bench: Bench) -> None:
        sealed = bench.build({})
        assert sealed.rows == 0
        assert read_all(bench.reader(sealed)) == {}

    def test_nothing_is_visible_without_seal_and_close_never_raises(self, bench: Bench) -> None:
        with suppress(KeyError), bench.writer() as writer:
            writer.write_arrow(arrow(numbered(10)))
            raise KeyError("the worker fails")
        writer.close()
        assert bench.listing() == []
        uses: Sequence[Callable[[], object]] = (
            lambda: writer.write_batch([(b"k", b"v")]),
            lambda: writer.write_arrow(arrow({b"k": b"v"})),
            writer.seal,
        )
        for use in uses:
            with pytest.raises(ShardWriteError, match="closed"):
                use()
        with pytest.raises(ShardUnavailableError, match="attempt=00"):
            bench.reader()

    def test_objects_are_recorded_as_stored_and_reading_changes_nothing(self, bench: Bench, tmp_path: Path) -> None:
        sealed = bench.build(numbered(500))
        before = bench.listing()
        assert [(f"{bench.directory}/{found.path}", found.size) for found in sealed.objects] == [b[:2] for b in before]
        for number, found in enumerate(sealed.objects):
            copy = tmp_path / f"copy-{number}"
            bench.store.download(f"{bench.directory}/{found.path}", copy)
            assert hashlib.sha256(copy.read_bytes()).hexdigest() == found.sha256
        assert sealed.db_bytes == sum(found.size for found in sealed.objects)
        reader = bench.reader(sealed)
        assert reader.get(b"absent") is None
        assert len(dict(reader.scan())) == 500
        reader.close()
        assert bench.listing() == before

    def test_a_closed_reader_says_so(self, bench: Bench) -> None:
        sealed = bench.build(numbered(3000))
        reader = bench.reader(sealed)
        half_way = reader.scan()
        next(half_way)
        reader.close()
        reader.close()
        uses: Sequence[Callable[[], object]] = (
            lambda: reader.get(b"k"),
            lambda: reader.get_many([b"k"]),
            reader.scan,
            lambda: list(half_way),
        )
        for use in uses:
            with pytest.raises(ReaderStateError, match="closed"):
                use()

    def test_missing_and_damaged_objects_make_the_shard_unavailable(self, bench: Bench) -> None:
        sealed = bench.build(numbered(2000))
        recorded = self.recorded_object(sealed)
        body = bench.store.get(f"{bench.directory}/{recorded}").body
        for damaged in (body[:-1] + bytes([body[-1] ^ 1]), body[:-1], body + b"\0"):
            bench.put(recorded, damaged)
            with pytest.raises(ShardUnavailableError, match=r"damaged|recorded"):
                bench.reader(sealed)
        bench.store.delete([f"{bench.directory}/{recorded}"])
        with pytest.raises(ShardUnavailableError, match=f"shard 3.*{bench.directory}"):
            bench.reader(sealed)
        bench.put(recorded, body)
        assert len(read_all(bench.reader(sealed))) == 2000

    def test_only_scratch_and_the_cache_are_used_locally(self, bench: Bench) -> None:
        read_all(bench.reader(bench.build(numbered(10))))
        assert {path.name.partition("-")[0] for path in bench.local.iterdir()} <= {"scratch", "cache"}
        assert [path.name for path in bench.local.glob("cache/**/*.part")] == []

    def test_any_dict_comes_back(self, bench: Bench) -> None:
        keys = st.binary(min_size=bench.writes.min_key_bytes, max_size=40)

        @given(rows=st.dictionaries(keys, st.binary(max_size=200), max_size=60), cut=st.integers(0, 60))
        @settings(max_examples=8, deadline=None)
        def check(rows: Rows, cut: int) -> None:
            here, batch = bench.elsewhere(), arrow(rows)
            with here.writer() as writer:
                writer.write_arrow(batch.slice(0, cut))
                writer.write_arrow(batch.slice(cut))
                sealed = writer.seal()
            assert sealed.rows == len(rows)
            assert read_all(here.reader(sealed)) == rows

        check()

    def test_factories_are_small_picklable_values(self, writes: DbAdapterFactory, reads: ShardReaderFactory) -> None:
        assert writes.backend == reads.backend
        for factory in (writes, reads):
            pickled = pickle.dumps(factory)
            assert len(pickled) < 10_000
            assert pickle.loads(pickled) == factory


def arrow(rows: Rows | Sequence[tuple[bytes, bytes]]) -> pa.RecordBatch:
    """What adapters are given: a dict in key order, or pairs as they are."""
    import pyarrow as pa

    pairs = sorted(rows.items()) if isinstance(rows, dict) else rows
    columns = [pa.array([pair[i] for pair in pairs], pa.large_binary()) for i in (0, 1)]
    return pa.record_batch(columns, names=["key", "value"])


def numbered(count: int) -> Rows:
    return {n.to_bytes(8, "big"): b"value %d" % n * (n % 5) for n in range(count)}


def read_all(reader: ShardReader) -> Rows:
    """Scan a shard, look everything up again, and close it."""
    try:
        scanned = list(reader.scan())
        assert [key for key, _ in scanned] == sorted({key for key, _ in scanned})
        rows = dict(scanned)
        assert dict(reader.get_many(list(rows))) == rows
        return rows
    finally:
        reader.close()


def _awkward_rows(shortest: int, longest: int) -> Rows:
    """Empty values, values beyond a page, beyond a run of rows and far beyond, and keys of the extreme lengths."""
    sizes = [0, 1, 100, 4095, 4096, 65_536, 200_000]
    rows = {b"size %07d" % size: bytes(i % 251 for i in range(size)) for size in sizes}
    rows |= {b"\0": b"zero", b"\xff\xff": b"ones", b"\x00\x00": b"", b"k" * longest: b"long key"}
    return rows | ({} if shortest else {b"": b"empty key"})
