"""What only SQLite shards have: the file's format, other writers' files, hostile files and the download cache."""

from __future__ import annotations

import hashlib
import itertools
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyfusion import local_cache
from shardyfusion.errors import (
    ReaderStateError,
    ShardTimeoutError,
    ShardUnavailableError,
    ShardWriteError,
    StorageError,
    StoreAccessError,
    StoreUnavailableError,
)
from shardyfusion.local_cache import discard, fetch
from shardyfusion.shard_contract import ShardReader, ShardSource, ShardTarget
from shardyfusion.sqlite_adapter import SqliteFactory, SqliteReaderFactory
from shardyfusion.sqlite_adapter import reader as sqlite_reader
from shardyfusion.storage import MemoryStore, StoreAddress, open_store

_TABLE = "CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID"


def _open(root: Path, **settings: int | bool) -> ShardReader:
    address = StoreAddress.parse(root)
    return SqliteReaderFactory(**settings).open_reader(
        ShardSource(
            db_id=0,
            store=open_store(address),
            address=address,
            directory="db",
            objects=(),
            identity="1",
            cache=lambda: root / "cache",
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


@pytest.mark.parametrize("pairs_first", [[], [(b"", b"")]], ids=["pages", "inserts"])
def test_bulk_rows_that_make_runs_and_are_larger_than_a_run(
    tmp_path: Path, pairs_first: list[tuple[bytes, bytes]]
) -> None:
    rng = np.random.default_rng(20)
    lengths = rng.integers(0, 3000, 4000)
    lengths[[0, 7, 8, 3999]] = [0, 2**21 - 1 - 8, 2**21 - 8, 5_000_000]
    values = [rng.bytes(length) for length in lengths.tolist()]
    keys = [n.to_bytes(8, "big") for n in range(len(values))]
    batch = pa.record_batch([pa.array(c, pa.large_binary()) for c in (keys, values)], names=["key", "value"])
    with SqliteFactory().open(_target(tmp_path)) as writer:
        if pairs_first:
            writer.write_batch(pairs_first)  # from then on SQLite inserts everything
        writer.write_arrow(batch)
        assert writer.seal().rows == len(pairs_first) + len(keys)
    reader = _open(tmp_path)
    assert list(reader.scan()) == [*pairs_first, *zip(keys, values, strict=True)]
    reader.close()


@settings(max_examples=100)
@given(
    rows=st.dictionaries(st.binary(max_size=30), st.binary(max_size=5000), max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=3),
    by_inserts=st.booleans(),
)
def test_any_dict_in_any_slices_comes_back(rows: dict[bytes, bytes], cuts: list[int], by_inserts: bool) -> None:
    pairs = sorted(rows.items())
    columns = [pa.array([pair[i] for pair in pairs], pa.large_binary()) for i in (0, 1)]
    batch = pa.record_batch(columns, names=["key", "value"])
    with tempfile.TemporaryDirectory() as root:
        with SqliteFactory().open(_target(Path(root))) as writer:
            if by_inserts:
                writer.write_batch([])
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
    writer.write_batch([])
    writer._inserts._connection.execute("PRAGMA max_page_count = 3")
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


def test_a_scan_holds_few_large_rows_at_once(tmp_path: Path) -> None:
    _foreign(
        tmp_path,
        _TABLE,
        "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 139) "
        "INSERT INTO kv SELECT CAST(i AS BLOB), zeroblob(1000000) FROM n",
    )
    reader = _open(tmp_path)
    tracemalloc.start()
    try:
        assert sum(len(value) for _, value in reader.scan()) == 40_000_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    reader.close()


_EXIT_DURING_A_QUERY = """
import sys, threading, time
from pathlib import Path
from shardyfusion.shard_contract import ShardSource
from shardyfusion.sqlite_adapter import SqliteReaderFactory
from shardyfusion.storage import StoreAddress, open_store

address = StoreAddress.parse(sys.argv[1])
source = ShardSource(db_id=0, store=open_store(address), address=address, directory="db", objects=(), identity="1",
                     cache=lambda: Path(sys.argv[1]))
reader = SqliteReaderFactory().open_reader(source)
inside = threading.Event()
reader._connection.create_function("inside", 0, lambda: inside.set() or 1)
endless = "WITH RECURSIVE c(x) AS (SELECT inside() UNION ALL SELECT x FROM c) SELECT count(*) FROM c"
threading.Thread(target=lambda: reader._connection.execute(endless).fetchone(), daemon=True).start()
assert inside.wait(20)
print("leaving")
"""


def test_a_process_may_exit_while_a_daemon_thread_reads(tmp_path: Path) -> None:
    """The connection is not closed at exit: that would wait for SQLite, or free what it is working on."""
    _foreign(tmp_path, _TABLE)
    command = [sys.executable, "-c", _EXIT_DURING_A_QUERY, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "leaving\n", "")


class _FailingStore(MemoryStore):
    def __init__(self, url: str, error: StorageError) -> None:
        super().__init__(url)
        self._error = error

    def download(self, name: str, path: Path) -> None:
        raise self._error


def _cached_source(store: MemoryStore, cache: Path) -> ShardSource:
    address = StoreAddress.parse(store.url)
    return ShardSource(
        db_id=0, store=store, address=address, directory="db", objects=(), identity="1", cache=lambda: cache
    )


@pytest.mark.parametrize(
    ("cause", "raised"), [(StoreUnavailableError("busy"), ShardTimeoutError), (StoreAccessError("no"), None)]
)
def test_a_passing_failure_of_the_store_stays_retryable(tmp_path: Path, cause: StorageError, raised: type) -> None:
    with pytest.raises(ShardUnavailableError) as caught:
        SqliteReaderFactory().open_reader(_cached_source(_FailingStore("memory://failing", cause), tmp_path))
    assert caught.type is (raised or ShardUnavailableError)
    assert caught.value.retryable == (raised is not None)


def test_a_file_that_another_process_discards_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _foreign(tmp_path, _TABLE, "INSERT INTO kv VALUES (x'61', x'62')")
    store = MemoryStore("memory://discarded")
    store.put("db/shard.db", (tmp_path / "db/shard.db").read_bytes(), content_type="x/y")
    fetched: list[Path] = []

    def fetch_and_lose(*args: object, **kwargs: object) -> Path:
        fetched.append(fetch(*args, **kwargs))
        if len(fetched) == 1:
            discard(tmp_path / "cache", [fetched[0].name])
        return fetched[-1]

    monkeypatch.setattr(sqlite_reader, "fetch", fetch_and_lose)
    reader = SqliteReaderFactory().open_reader(_cached_source(store, tmp_path / "cache"))
    assert reader.get(b"a") == b"b"
    assert len(fetched) == 2
    reader.close()


@pytest.fixture
def fetching(tmp_path: Path) -> Callable[[], Path]:
    """Fetches one recorded object of four bytes into the directory `c`."""
    store = MemoryStore("memory://fetching")
    store.put("o", b"body", content_type="x/y")
    digest = hashlib.sha256(b"body").hexdigest()
    return lambda: fetch(store, "o", cache=tmp_path / "c", sha256=digest, size=4, identity="1")


def test_a_download_may_be_discarded_as_soon_as_it_has_its_name(
    fetching: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", lambda path, target: path.unlink())
    path = fetching()
    assert not path.exists()
    monkeypatch.undo()
    assert fetching().read_bytes() == b"body"


def test_what_a_killed_download_left_is_swept_after_a_day(fetching: Callable[[], Path], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    old, young, other = (tmp_path / "c" / name for name in (".x.1-a.part", ".y.2-b.part", "keep"))
    for path in (old, young, other):
        path.write_bytes(b"part")
    for path in (old, other):
        os.utime(path, (0, time.time() - 25 * 3600))
    path = fetching()
    assert set((tmp_path / "c").iterdir()) == {path, young, other}


def test_what_is_known_of_files_is_bounded_and_forgotten_with_them(
    fetching: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, object] = {}
    monkeypatch.setattr(local_cache, "_verified", known)
    monkeypatch.setattr(local_cache, "_MOST_VERIFIED", 3)
    path = fetching()
    assert list(known) == [str(path)]
    discard(path.parent, [path.name])
    assert known == {}
    for number in range(10):
        (path.parent / str(number)).write_bytes(b"body")
        local_cache.check_file(path.parent / str(number), sha256=path.name, size=4, url="x")
        assert len(known) <= 3


def test_a_directory_in_the_place_of_a_cached_file_is_named(fetching: Callable[[], Path], tmp_path: Path) -> None:
    path = fetching()
    path.unlink()
    path.mkdir()
    with pytest.raises(ShardUnavailableError, match=rf"memory://fetching/o.*directory.*{path.name}"):
        fetching()
    assert list((tmp_path / "c").iterdir()) == [path]
