"""What only SQLite shards have: the file's format, other writers' files, hostile files and the download cache."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import tempfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyfusion.errors import ReaderStateError, ShardUnavailableError, ShardWriteError
from shardyfusion.local_cache import fetch
from shardyfusion.shard_contract import ShardReader, ShardSource, ShardTarget
from shardyfusion.sqlite_adapter import SqliteFactory, SqliteReaderFactory
from shardyfusion.storage import MemoryStore, StoreAddress, open_store

_TABLE = "CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID"


def _open(root: Path, **settings: int | bool) -> ShardReader:
    address = StoreAddress.parse(root)
    return SqliteReaderFactory(**settings).open(
        ShardSource(
            db_id=0,
            store=open_store(address),
            address=address,
            directory="db",
            objects=(),
            identity="1",
            cache=root / "cache",
        )
    )


def _target(root: Path, name: str = "db") -> ShardTarget:
    scratch = root / f"scratch-{name}"
    scratch.mkdir(parents=True)
    address = StoreAddress.parse(root)
    return ShardTarget(db_id=0, store=open_store(address), address=address, directory=name, scratch=scratch)


def _foreign(root: Path, *statements: str) -> None:
    (root / "db").mkdir()
    connection = sqlite3.connect(root / "db/shard.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize("page_size", [4096, 65_536])
def test_the_file_is_what_every_reader_of_the_format_expects(tmp_path: Path, page_size: int) -> None:
    with SqliteFactory(page_size=page_size).open(_target(tmp_path)) as writer:
        writer.write_batch([(b"k", b"v")])
        writer.seal()
    header = (tmp_path / "db/shard.db").read_bytes()[:100]
    assert header[:16] == b"SQLite format 3\0"
    assert int.from_bytes(header[16:18], "big") in (page_size, page_size >> 16)
    assert header[18:20] == b"\x01\x01", "a WAL header breaks range readers"
    assert header[60:64] == bytes(4), "user_version"
    connection = sqlite3.connect(tmp_path / "db/shard.db")
    assert connection.execute("SELECT sql FROM sqlite_master").fetchall() == [(_TABLE,)]
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT typeof(k), typeof(v) FROM kv").fetchall() == [("blob", "blob")]
    connection.close()


def test_bulk_insert_of_runs_and_of_rows_larger_than_a_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(20)
    lengths = rng.integers(0, 3000, 4000)
    lengths[[0, 7, 8, 3999]] = [0, 2**21 - 1 - 8, 2**21 - 8, 5_000_000]
    values = [rng.bytes(length) for length in lengths.tolist()]
    keys = [n.to_bytes(8, "big") for n in range(len(values))]
    batch = pa.record_batch([pa.array(c, pa.large_binary()) for c in (keys, values)], names=["key", "value"])
    with SqliteFactory().open(_target(tmp_path)) as writer:
        writer.write_arrow(batch)
        assert writer.seal().rows == len(keys)
    reader = _open(tmp_path)
    assert list(reader.scan()) == list(zip(keys, values, strict=True))
    reader.close()


@settings(max_examples=60)
@given(
    rows=st.dictionaries(st.binary(max_size=30), st.binary(max_size=5000), max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=3),
)
def test_any_dict_in_any_slices_comes_back(rows: dict[bytes, bytes], cuts: list[int]) -> None:
    pairs = sorted(rows.items())
    columns = [pa.array([pair[i] for pair in pairs], pa.large_binary()) for i in (0, 1)]
    batch = pa.record_batch(columns, names=["key", "value"])
    with tempfile.TemporaryDirectory() as root:
        with SqliteFactory().open(_target(Path(root))) as writer:
            edges = [0, *sorted(cuts), len(pairs)]
            for start, stop in itertools.pairwise(edges):
                writer.write_arrow(batch.slice(start, max(0, stop - start)))
            assert writer.seal().rows == len(rows)
        reader = _open(Path(root))
        assert list(reader.scan()) == pairs
        assert reader.get_many([*rows, b"x" * 31]) == rows
        reader.close()


def test_several_threads_build_at_once(tmp_path: Path) -> None:
    keys = pa.array([n.to_bytes(8, "big") for n in range(20_000)], pa.large_binary())
    batch = pa.record_batch([keys, keys], names=["key", "value"])
    rows: dict[str, int] = {}

    def build(name: str) -> None:
        with SqliteFactory().open(_target(tmp_path, name)) as writer:
            writer.write_arrow(batch)
            rows[name] = writer.seal().rows

    threads = [threading.Thread(target=build, args=(f"db{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows == {f"db{n}": 20_000 for n in range(4)}


def test_a_full_disk_is_a_retryable_error_that_names_the_file(tmp_path: Path) -> None:
    writer = SqliteFactory().open(_target(tmp_path))
    writer._connection.execute("PRAGMA max_page_count = 3")
    with pytest.raises(ShardWriteError, match=r"shard\.db.*full") as caught:
        writer.write_batch([(b"k", bytes(100_000))])
    assert caught.value.retryable
    writer.close()


def test_text_of_other_writers_is_read_as_bytes_and_other_types_are_refused(tmp_path: Path) -> None:
    _foreign(tmp_path, _TABLE, "INSERT INTO kv VALUES (x'61', 'é'), (x'62', 7)")
    reader = _open(tmp_path)
    assert reader.get(b"a") == "é".encode()
    for use in (lambda: reader.get(b"b"), lambda: reader.get_many([b"a", b"b"]), lambda: list(reader.scan())):
        with pytest.raises(ShardUnavailableError, match="int"):
            use()
    reader.close()


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE other (k, v)"],
        ["CREATE TABLE t (k, v)", "CREATE VIEW kv AS SELECT k, v FROM t"],
        ["CREATE VIRTUAL TABLE kv USING fts5(k, v)"],
        ["CREATE TABLE kv (k BLOB)"],
    ],
)
def test_a_kv_that_is_no_plain_table_is_refused(tmp_path: Path, statements: list[str]) -> None:
    _foreign(tmp_path, *statements)
    with pytest.raises(ShardUnavailableError, match=r"table kv|no such column"):
        _open(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db/shard.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ShardUnavailableError, match="not a database"):
        _open(tmp_path)


def test_odd_paths_need_no_care(tmp_path: Path) -> None:
    root = tmp_path / "a b=c&mode=rw ~é [x]"
    root.mkdir()
    _foreign(root, _TABLE, "INSERT INTO kv VALUES (x'61', x'62')")
    reader = _open(root, mmap_bytes=0)
    assert reader.get(b"a") == b"b"
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM kv")
    reader.close()


class _CountingStore(MemoryStore):
    downloads = 0

    def download(self, name: str, path: Path) -> None:
        self.downloads += 1
        super().download(name, path)


def test_the_cache_downloads_once_notices_damage_and_keeps_versions_apart(tmp_path: Path) -> None:
    store = _CountingStore("memory://cache-test")
    cache = tmp_path / "cache"
    body = b"first body"
    store.put("o", body, content_type="x/y")
    recorded = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
    path = fetch(store, "o", cache=cache, identity="1", **recorded)
    assert path.read_bytes() == body
    assert cache.stat().st_mode & 0o777 == 0o700
    assert fetch(store, "o", cache=cache, identity="2", **recorded) == path
    assert store.downloads == 1
    path.write_bytes(b"other body")  # as long as the first
    assert fetch(store, "o", cache=cache, identity="1", **recorded).read_bytes() == body
    assert store.downloads == 2

    store.put("o", b"other body", content_type="x/y")
    path.unlink()
    with pytest.raises(ShardUnavailableError, match="memory://cache-test/o is damaged: sha256"):
        fetch(store, "o", cache=cache, identity="1", **recorded)
    assert list(cache.iterdir()) == []

    unrecorded = {"sha256": None, "size": None}
    first = fetch(store, "o", cache=cache, identity="1", **unrecorded)
    assert fetch(store, "o", cache=cache, identity="1", **unrecorded) == first
    assert fetch(store, "o", cache=cache, identity="2", **unrecorded) != first
    assert store.downloads == 5


def test_many_threads_share_a_cache(tmp_path: Path) -> None:
    store = MemoryStore("memory://cache-race")
    body = bytes(range(256)) * 4000
    store.put("o", body, content_type="x/y")
    digest = hashlib.sha256(body).hexdigest()
    found: list[bytes] = []

    def read() -> None:
        path = fetch(store, "o", cache=tmp_path / "c", sha256=digest, size=len(body), identity="1")
        found.append(path.read_bytes())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [body] * 8
    assert [path.name for path in (tmp_path / "c").iterdir()] == [digest]


def test_closing_during_a_scan_is_a_clear_error(tmp_path: Path) -> None:
    _foreign(tmp_path, _TABLE, "INSERT INTO kv VALUES (x'61', x'62')")
    reader = _open(tmp_path)
    rows = reader.scan()
    reader.close()
    with pytest.raises(ReaderStateError, match="closed"):
        next(rows)
