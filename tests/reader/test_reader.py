"""`ShardedReader` on published SQLite snapshots, beyond what the suite for readers asks."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shardyfusion.commits import CommitLog
from shardyfusion.errors import (
    ConfigValidationError,
    ManifestParseError,
    ReaderStateError,
    ShardUnavailableError,
    StoreAccessError,
)
from shardyfusion.layout import CURRENT, JSON_TYPE
from shardyfusion.manifest import encode_manifest
from shardyfusion.reader import ShardDetails, ShardedReader
from shardyfusion.serde.keys import KeyEncoding
from shardyfusion.slatedb_adapter import LocalSlateDbFactory, SlateDbFactory, SlateDbReaderFactory
from shardyfusion.sqlite_adapter import SqliteFactory, SqliteReaderFactory
from shardyfusion.storage import LocalStore, StoreAddress, open_store
from tests.reader.snapshots import ROWS, build, commit, listing, publish, relocate


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "snap")


def stored(key: int) -> bytes:
    return key.to_bytes(8, "big")


def test_every_row_reads_back_and_nothing_is_written(any_prefix):
    publish(any_prefix, ROWS)
    before = listing(any_prefix)
    with ShardedReader(any_prefix) as reader:
        assert {key: reader.get(key) for key in ROWS} == ROWS
        assert reader.multi_get(ROWS) == ROWS
        assert reader.get(1_000_000) is None
        scanned = [list(reader.scan(db_id)) for db_id in range(4)]
        assert all(rows == sorted(rows) for rows in scanned)
        assert {pair for rows in scanned for pair in rows} == {(stored(k), v) for k, v in ROWS.items()}
        assert all((stored(k), v) in scanned[reader.route_key(k)] for k, v in ROWS.items())
        assert not reader.refresh()
    assert listing(any_prefix) == before


def test_multi_get_keeps_spelling_and_order_and_collapses_duplicates(prefix):
    publish(prefix, {"a": b"1", "b": b"", "é": b"3"}, encoding=KeyEncoding.UTF8)
    with ShardedReader(prefix) as reader:
        found = reader.multi_get(["zz", "é", b"a", "a", "b", "zz", "a"])
        assert list(found.items()) == [("zz", None), ("é", b"3"), (b"a", b"1"), ("a", b"1"), ("b", b"")]
        assert reader.multi_get([]) == {}
        assert reader.multi_get(key for key in ("a",)) == {"a": b"1"}


@pytest.mark.parametrize("key", ["7", None, 7.0, -1, 2**63, b"\0" * 7])
def test_a_key_of_the_wrong_kind_is_refused(prefix, key):
    publish(prefix, ROWS)
    with ShardedReader(prefix) as reader:
        for lookup in (reader.get, reader.route_key, reader.shard_for_key, lambda k: reader.multi_get([1, k])):
            with pytest.raises(ConfigValidationError):
                lookup(key)


def test_empty_shards_read_as_absent(prefix):
    """Omitted from the manifest, or recorded without a URL: both are empty."""
    manifest = build(prefix, {1: b"one"}, num_dbs=64)
    (filled,) = manifest.shards
    ghost = replace(filled, db_id=(filled.db_id + 1) % 64, db_url=None)
    commit(prefix, replace(manifest, shards=tuple(sorted((filled, ghost), key=lambda s: s.db_id))))
    with ShardedReader(prefix) as reader:
        assert reader.multi_get(range(100)) == {key: b"one" if key == 1 else None for key in range(100)}
        assert [len(list(reader.scan(i))) for i in range(64)] == [int(i == filled.db_id) for i in range(64)]
        details = reader.shard_details()
        assert [d.db_id for d in details] == list(range(64))
        assert details[ghost.db_id] == ShardDetails(db_id=ghost.db_id)
        assert details[filled.db_id].db_url == filled.db_url
        assert reader.shard_for_key(1) == details[filled.db_id]
        info = reader.snapshot_info()
        assert (info.rows, info.shards, info.num_dbs) == (1, 1, 64)


def test_an_empty_snapshot_reads_as_empty(prefix):
    publish(prefix, {})
    with ShardedReader(prefix) as reader:
        assert reader.get(1) is None
        assert reader.multi_get([1, 2]) == {1: None, 2: None}
        assert reader.shard_for_key(1).row_count == reader.snapshot_info().rows == 0


@pytest.mark.parametrize("db_id", [-1, 4, "0", None, True, pytest.param(10**5000, id="huge")])
def test_scan_of_a_shard_that_is_not_there_names_num_dbs(prefix, db_id):
    publish(prefix, ROWS)
    with ShardedReader(prefix) as reader, pytest.raises(ConfigValidationError, match="num_dbs=4"):
        reader.scan(db_id)


def test_snapshot_info_says_what_is_served(prefix):
    ref = publish(prefix, ROWS, run_id="nightly")
    with ShardedReader(prefix) as reader:
        info = reader.snapshot_info()
        assert (info.run_id, info.seq, info.manifest_ref, info.published_at) == (
            "nightly",
            1,
            ref.ref,
            ref.published_at,
        )
        assert (info.rows, info.num_dbs, info.backend, info.sharding, info.key_encoding) == (
            40,
            4,
            "sqlite",
            "hash",
            KeyEncoding.U64BE,
        )
        assert info.db_bytes == sum(shard.db_bytes for shard in reader.shard_details()) > 0
        assert "run 'nightly', commit 1" in repr(info)
        assert "40 rows in 4 of 4 shards" in repr(info)
        assert "nightly" in repr(reader)


def test_a_missing_shard_is_an_error_and_never_an_absent_key(any_prefix):
    manifest = build(any_prefix, ROWS)
    commit(any_prefix, manifest)
    store = open_store(StoreAddress.parse(any_prefix))
    with ShardedReader(any_prefix) as reader:
        lost = reader.shard_for_key(7)
        store.delete([info.name for info in store.list() if f"db={lost.db_id:05d}" in info.name])
        for _ in range(2):
            with pytest.raises(ShardUnavailableError):
                reader.get(7)
        with pytest.raises(ShardUnavailableError):
            reader.multi_get(ROWS)
        intact = {key: value for key, value in ROWS.items() if reader.route_key(key) != lost.db_id}
        assert intact
        assert reader.multi_get(intact) == intact


@pytest.mark.parametrize("damage", [lambda body: body[:700], lambda body: b"", lambda body: b"not a database" * 99])
def test_a_torn_manifest(prefix, damage):
    manifest = build(prefix, {1: b"1"})
    commit(prefix, manifest, body=damage(encode_manifest(manifest)))
    with pytest.raises(ManifestParseError):
        ShardedReader(prefix)


# -- backends ----------------------------------------------------------------------------------------------------------


def test_a_factory_of_the_other_backend_is_refused_by_name(prefix):
    publish(prefix, ROWS)
    with pytest.raises(ConfigValidationError, match=r"sqlite.*SlateDbReaderFactory.*slatedb"):
        ShardedReader(prefix, reader_factory=SlateDbReaderFactory())
    with ShardedReader(prefix, reader_factory=SqliteReaderFactory()) as reader:
        assert reader.get(3) == ROWS[3]


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (SlateDbFactory(), "SlateDbFactory"),
        (LocalSlateDbFactory(), "LocalSlateDbFactory"),
        (SqliteFactory(), "SqliteFactory"),
        (SqliteReaderFactory, "the class SqliteReaderFactory"),
        ("sqlite", "str"),
    ],
)
def test_what_cannot_open_shards_for_reading_is_no_reader_factory(prefix, factory, name):
    """A writer's factory would open a writer on a published shard."""
    publish(prefix, ROWS)
    with pytest.raises(ConfigValidationError, match=rf"{name}.*SqliteReaderFactory\(\.\.\.\)"):
        ShardedReader(prefix, reader_factory=factory)


def test_a_manifest_that_records_no_backend_is_looked_at(prefix):
    manifest = build(prefix, ROWS)
    commit(prefix, replace(manifest, custom={}, shards=tuple(replace(s, backend=None) for s in manifest.shards)))
    with ShardedReader(prefix) as reader:
        assert reader.snapshot_info().backend == "sqlite"
        assert reader.multi_get(ROWS) == ROWS


# -- external shards ---------------------------------------------------------------------------------------------------


def test_a_shard_elsewhere_is_read_only_when_opted_in(prefix, tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    manifest, other = build(prefix, ROWS), build(elsewhere, ROWS, run_id="other")
    commit(prefix, relocate(manifest, 2, other.shards[2].db_url))
    with pytest.raises(ReaderStateError, match=r"elsewhere.*allow_external_shards=True"):
        ShardedReader(prefix)
    with ShardedReader(prefix, allow_external_shards=True) as reader:
        assert reader.multi_get(ROWS) == ROWS
        assert reader.shard_details()[2].db_url == other.shards[2].db_url


# -- refresh -----------------------------------------------------------------------------------------------------------


def test_a_failed_refresh_keeps_the_old_snapshot(prefix):
    publish(prefix, ROWS)
    with ShardedReader(prefix) as reader:
        assert reader.get(1) == ROWS[1]
        torn = build(prefix, {}, run_id="run-2")
        commit(prefix, torn, body=b"torn")
        for _ in range(2):
            with pytest.raises(ManifestParseError):
                reader.refresh()
            assert reader.multi_get(ROWS) == ROWS, "also shards that were not open yet"
            assert reader.snapshot_info().seq == 1
        publish(prefix, {1: b"repaired"}, run_id="run-3")
        assert reader.refresh()
        assert reader.get(1) == b"repaired"


def test_a_lagging_pointer_fools_neither_opening_nor_refresh(prefix):
    publish(prefix, {1: b"first"})
    store = open_store(StoreAddress.parse(prefix))
    lagging = store.get(CURRENT).body
    publish(prefix, {1: b"second"}, run_id="run-2")
    store.put(CURRENT, lagging, content_type=JSON_TYPE)
    with ShardedReader(prefix) as reader:
        assert reader.get(1) == b"second"
        commit(prefix, build(prefix, {1: b"third"}, run_id="run-3"), advance=False)
        assert reader.refresh()
        assert reader.get(1) == b"third"
        store.delete([CURRENT])
        assert not reader.refresh()
    with ShardedReader(prefix) as reader:
        assert reader.get(1) == b"third"


def test_a_commit_that_serves_the_same_manifest_is_no_newer_snapshot(prefix):
    ref = publish(prefix, ROWS)
    with ShardedReader(prefix) as reader:
        scan = reader.scan(reader.route_key(5))
        first = next(scan)
        log = CommitLog(open_store(StoreAddress.parse(prefix)))
        head = log.state().head
        again = replace(head, seq=2, parent=(1, head.write_id), kind="rollback", write_id="w2")
        open_store(StoreAddress.parse(prefix)).create(
            "commits/00000000000000000002.json", again.encode(), content_type=JSON_TYPE
        )
        assert reader.refresh() is False
        assert reader.snapshot_info().seq == 2
        assert reader.snapshot_info().manifest_ref == ref.ref
        assert first not in list(scan), "open scans go on"


# -- lifetime ----------------------------------------------------------------------------------------------------------


def test_a_closed_reader_says_so(prefix):
    publish(prefix, ROWS)
    reader = ShardedReader(prefix)
    assert reader.get(1) == ROWS[1]
    scan = reader.scan(reader.route_key(1))
    reader.close()
    reader.close()
    calls = [
        lambda: reader.get(1),
        lambda: reader.multi_get([1]),
        lambda: reader.scan(0),
        lambda: reader.route_key(1),
        lambda: reader.shard_for_key(1),
        lambda: reader.refresh(),
        lambda: reader.snapshot_info(),
        lambda: reader.shard_details(),
        lambda: reader.__enter__(),
        lambda: list(scan),
    ]
    for call in calls:
        with pytest.raises(ReaderStateError, match="closed"):
            call()
    assert "closed" in repr(reader)


class CountingFactory:
    """SQLite readers that count how often they are opened and closed, and fail to open on demand."""

    backend = "sqlite"

    def __init__(self):
        self.opened, self.closed, self.fail = [], [], False

    def open_reader(self, source):
        if self.fail:
            raise ShardUnavailableError("on demand", db_id=source.db_id)
        reader = SqliteReaderFactory().open_reader(source)
        self.opened.append(source)
        close = reader.close

        def count_and_close():
            self.closed.append(source)
            close()

        reader.close = count_and_close
        return reader


def test_shards_open_at_first_use_and_close_exactly_once(prefix):
    publish(prefix, ROWS)
    factory = CountingFactory()
    with ShardedReader(prefix, reader_factory=factory) as reader:
        assert factory.opened == []
        reader.get(1)
        reader.get(1)
        assert [source.db_id for source in factory.opened] == [reader.route_key(1)]
        factory.fail = True
        with pytest.raises(ShardUnavailableError):
            reader.multi_get(ROWS)
        factory.fail = False
        assert reader.multi_get(ROWS) == ROWS
        assert len(factory.opened) == 4
        assert factory.closed == []
        publish(prefix, ROWS, run_id="run-2")
        assert reader.refresh()
        assert len(factory.closed) == 4
        reader.get(1)
    assert sorted(map(id, factory.closed)) == sorted(map(id, factory.opened))
    assert len({source.identity for source in factory.opened}) == 5, "same rows, other attempts: other identities"


# -- local files -------------------------------------------------------------------------------------------------------


def files_in(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


def test_the_private_directory_is_made_when_needed_and_removed(s3_prefix, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    publish(s3_prefix, ROWS)
    reader = ShardedReader(s3_prefix)
    assert list(tmp_path.iterdir()) == []
    reader.multi_get(ROWS)
    assert files_in(tmp_path)
    reader.close()
    assert list(tmp_path.iterdir()) == []
    ShardedReader(s3_prefix).get(1)  # never closed: collected
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_in_place_needs_no_directory(prefix, tmp_path, monkeypatch):
    publish(prefix, ROWS)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not-there"))
    with ShardedReader(prefix) as reader:
        assert reader.multi_get(ROWS) == ROWS


def test_a_local_root_of_any_bytes_is_used(s3_prefix, tmp_path):
    publish(s3_prefix, ROWS)
    with ShardedReader(s3_prefix, tmp_path / os.fsdecode(b"\xff %?#")) as reader:
        assert reader.multi_get(ROWS) == ROWS


@pytest.mark.parametrize("local_root", ["a\0b", 7, b"bytes", "~no-such-user-here/x"])
def test_a_local_root_that_is_no_path_is_refused(prefix, local_root):
    with pytest.raises(ConfigValidationError, match="local_root"):
        ShardedReader(prefix, local_root)


def test_a_given_directory_is_kept_and_used_again(s3_prefix, tmp_path):
    publish(s3_prefix, ROWS)
    for _ in range(2):
        with ShardedReader(s3_prefix, tmp_path / "cache") as reader:
            assert reader.multi_get(ROWS) == ROWS
    store = open_store(StoreAddress.parse(s3_prefix))
    store.delete([info.name for info in store.list("shards/")])
    with ShardedReader(s3_prefix, tmp_path / "cache") as reader:
        assert reader.multi_get(ROWS) == ROWS, "the cached files are enough"


def test_refresh_removes_what_only_the_old_snapshot_needed(s3_prefix, tmp_path):
    cache = tmp_path / "cache"
    kept = build(s3_prefix, ROWS)
    commit(s3_prefix, kept)
    with ShardedReader(s3_prefix, cache) as reader:
        reader.multi_get(ROWS)
        before = files_in(cache)
        newer = {key: value + b"!" for key, value in ROWS.items()}
        fresh = build(s3_prefix, newer, run_id="run-2")
        # Shard 0 is carried over, the others are new.
        commit(s3_prefix, replace(fresh, shards=(kept.shards[0], *fresh.shards[1:])))
        assert reader.refresh()
        survivors = files_in(cache)
        assert survivors < before
        assert len(survivors) == 1
        carried_over = {key for key in ROWS if reader.route_key(key) == 0}
        assert reader.multi_get(ROWS) == {key: (ROWS if key in carried_over else newer)[key] for key in ROWS}
        assert survivors < files_in(cache)
        assert len(files_in(cache)) == len(before)


def test_an_unusable_local_root_says_so(s3_prefix, tmp_path):
    publish(s3_prefix, ROWS)
    (tmp_path / "file").write_text("in the way")
    with (
        ShardedReader(s3_prefix, tmp_path / "file") as reader,
        pytest.raises(ReaderStateError, match="pass a writable local_root"),
    ):
        reader.get(1)


def test_reading_needs_no_permission_to_list(prefix, monkeypatch):
    publish(prefix, ROWS)

    def denied(store, prefix=""):
        raise StoreAccessError("no ListBucket", name=prefix)

    monkeypatch.setattr(LocalStore, "list", denied)
    with ShardedReader(prefix) as reader:
        assert reader.multi_get(ROWS) == ROWS
        assert not reader.refresh()
