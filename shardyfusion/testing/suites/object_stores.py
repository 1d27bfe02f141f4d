"""What every object store promises."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyfusion.errors import ObjectExistsError, ObjectNotFoundError, StorageError
from shardyfusion.storage import ObjectStore, PendingUpload

TEXT = "text/plain"
SEED = 20_11
RACERS = 8


def names(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.name for info in store.list(prefix)]


class ObjectStoreTests:
    """Provide `store`, an empty one for each test. If uploads to it can be left unfinished, also `leave_upload`."""

    @pytest.fixture
    def store(self) -> ObjectStore:
        raise NotImplementedError("a fixture `store` returns the store to be tested, empty")

    @pytest.fixture
    def leave_upload(self) -> Callable[[str], None] | None:
        """Begins an upload of an object behind the store's back and never ends it. None if there are none."""
        return None

    # -- reading what was written --------------------------------------------------------------------------------------

    def test_what_was_put_is_read_back_with_one_etag_everywhere(self, store: ObjectStore) -> None:
        etag = store.put("runs/a.txt", b"one", content_type=TEXT)
        found = store.get("runs/a.txt")
        assert (found.body, found.info.size, found.info.etag) == (b"one", 3, etag)
        assert store.head("runs/a.txt") == found.info == next(store.list())
        assert store.put("runs/a.txt", b"two", content_type=TEXT) != etag
        assert store.get("runs/a.txt").body == b"two"

    def test_the_url_says_where_it_is(self, store: ObjectStore) -> None:
        assert "://" in store.url
        assert not store.url.endswith("/")

    def test_the_empty_object_is_an_object(self, store: ObjectStore, tmp_path: Path) -> None:
        store.create("empty", b"", content_type=TEXT)
        store.download("empty", tmp_path / "copy")
        assert store.get("empty").body == b"" == (tmp_path / "copy").read_bytes()
        assert names(store) == ["empty"]

    def test_what_is_not_there(self, store: ObjectStore, tmp_path: Path) -> None:
        assert store.head("no/thing") is None
        with pytest.raises(ObjectNotFoundError, match="no/thing"):
            store.get("no/thing")
        with pytest.raises(ObjectNotFoundError, match="no/thing"):
            store.download("no/thing", tmp_path / "copy")
        with pytest.raises(StorageError, match="no-such-file"):
            store.upload("a", tmp_path / "no-such-file", content_type=TEXT)
        store.put("a", b"", content_type=TEXT)
        assert store.head("a/b") is None
        assert names(store) == ["a"]

    def test_twenty_mebibytes_stream_up_and_down(self, store: ObjectStore, tmp_path: Path) -> None:
        body = random.Random(SEED).randbytes(20 * 1024 * 1024 + 3)
        (tmp_path / "big").write_bytes(body)
        store.upload("shards/big", tmp_path / "big", content_type="application/x-sqlite3")
        store.download("shards/big", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == body
        info = store.head("shards/big")
        assert info is not None
        assert info.size == len(body)
        assert [info] == list(store.list())

    def test_an_upload_replaces_as_a_whole(self, store: ObjectStore, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"new")
        store.put("a", b"old", content_type=TEXT)
        store.upload("a", tmp_path / "file", content_type=TEXT)
        assert store.get("a").body == b"new"

    # -- conditions ----------------------------------------------------------------------------------------------------

    def test_create_happens_once(self, store: ObjectStore) -> None:
        etag = store.create("commits/1.json", b"first", content_type=TEXT)
        with pytest.raises(ObjectExistsError, match=r"commits/1\.json"):
            store.create("commits/1.json", b"second", content_type=TEXT)
        assert store.get("commits/1.json").body == b"first"
        assert store.get("commits/1.json").info.etag == etag

    def test_one_of_many_racing_creators_wins(self, store: ObjectStore) -> None:
        for turn in range(5):
            name = f"commits/{turn}"
            bodies = [f"{turn}-{writer}".encode() for writer in range(RACERS)]
            results = _race([partial(store.create, name, body, content_type=TEXT) for body in bodies])
            winners = [body for body, result in zip(bodies, results, strict=True) if isinstance(result, str)]
            assert winners == [store.get(name).body]
            assert sum(isinstance(result, ObjectExistsError) for result in results) == RACERS - 1

    def test_replace_needs_the_etag_of_what_is_there(self, store: ObjectStore) -> None:
        first = store.create("_CURRENT", b"1", content_type=TEXT)
        second = store.replace("_CURRENT", b"2", etag=first, content_type=TEXT)
        with pytest.raises(ObjectExistsError, match="_CURRENT"):
            store.replace("_CURRENT", b"3", etag=first, content_type=TEXT)
        assert store.get("_CURRENT").body == b"2"
        assert store.get("_CURRENT").info.etag == second
        assert store.replace("_CURRENT", b"4", etag=second, content_type=TEXT) != second

    def test_replace_does_not_create(self, store: ObjectStore) -> None:
        with pytest.raises(ObjectNotFoundError, match="away/_CURRENT"):
            store.replace("away/_CURRENT", b"x", etag='"0"', content_type=TEXT)
        assert names(store) == []

    def test_one_of_many_racing_replacers_wins(self, store: ObjectStore) -> None:
        etag = store.create("_CURRENT", b"start", content_type=TEXT)
        for turn in range(5):
            bodies = [f"{turn}-{writer}".encode() for writer in range(RACERS)]
            results = _race([partial(store.replace, "_CURRENT", body, etag=etag, content_type=TEXT) for body in bodies])
            winners = [body for body, result in zip(bodies, results, strict=True) if isinstance(result, str)]
            assert winners == [store.get("_CURRENT").body]
            etag = store.get("_CURRENT").info.etag

    # -- names ---------------------------------------------------------------------------------------------------------

    def test_list_is_in_name_order_and_filters_by_any_prefix(self, store: ObjectStore) -> None:
        written = ["a.txt", "a/x", "a/y/z", "a0", "ab", "b/1", f"commits/{2:020d}.json", "_CURRENT", "Z", "é"]
        for name in written:
            store.put(name, b"", content_type=TEXT)
        assert names(store) == sorted(written)
        for prefix in ("a", "a/", "a/y", "a/y/", "b/1", "commits/000", "c", "nothing", "a/nothing/", "é"):
            assert names(store, prefix) == sorted(name for name in written if name.startswith(prefix)), prefix
        assert [name for prefix in ("../", "a/../", "./", "/") for name in names(store, prefix)] == []

    def test_names_are_literal(self, store: ObjectStore) -> None:
        written = sorted(
            ["shards/run_id=r/db=00000/attempt=00-0a/shard.db", "m/2026-11-20T09:37:33.8Z_run_id=é x", "%41", "a+b"]
        )
        for name in written:
            store.put(name, name.encode(), content_type=TEXT)
        assert names(store) == written
        assert [store.get(name).body.decode() for name in written] == written

    @pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a/./b", "..", "a\nb", "a\0b"])
    def test_names_outside_of_the_root_are_refused(self, store: ObjectStore, tmp_path: Path, name: str) -> None:
        file = tmp_path / "file"
        file.write_bytes(b"x")
        actions: Sequence[Callable[[], object]] = (
            lambda: store.get(name),
            lambda: store.head(name),
            lambda: store.put(name, b"", content_type=TEXT),
            lambda: store.create(name, b"", content_type=TEXT),
            lambda: store.upload(name, file, content_type=TEXT),
            lambda: store.delete([name]),
        )
        for action in actions:
            with pytest.raises(StorageError, match="name"):
                action()

    # -- deletion ------------------------------------------------------------------------------------------------------

    def test_delete_takes_many_names_and_none_that_is_missing(self, store: ObjectStore) -> None:
        many = [f"shards/{i % 7}/{i}" for i in range(60)]
        for name in many:
            store.put(name, b"", content_type=TEXT)
        store.delete(iter([*many[1:], "shards/no", "no/where"]))
        assert names(store) == [many[0]]
        store.delete([])
        store.delete(many)
        store.delete([*many, *(f"more/{i}" for i in range(1_050))])
        assert names(store) == []
        store.create(many[0], b"again", content_type=TEXT)
        assert store.get(many[0]).body == b"again"

    def test_an_unfinished_upload_is_listed_apart_and_can_be_given_up(
        self, store: ObjectStore, leave_upload: Callable[[str], None] | None
    ) -> None:
        assert list(store.pending_uploads()) == []
        store.abort_uploads([])
        if leave_upload is None:
            store.abort_uploads([PendingUpload("shards/a/x", "none", store.now())])
            return
        leave_upload("shards/a/x")
        assert names(store) == []
        (left,) = store.pending_uploads("shards/a/")
        assert list(store.pending_uploads()) == [left]
        assert list(store.pending_uploads("runs/")) == []
        assert left.started <= store.now()
        store.abort_uploads([left])
        store.abort_uploads([left])
        assert list(store.pending_uploads()) == []

    # -- time ----------------------------------------------------------------------------------------------------------

    def test_now_and_modified_are_of_one_clock_in_utc(self, store: ObjectStore) -> None:
        before = store.now()
        store.put("a", b"x", content_type=TEXT)  # Linux stamps a file into which nothing is written a few ms early
        info, after = store.head("a"), store.now()
        assert info is not None
        assert before <= info.modified <= after
        assert {moment.utcoffset() for moment in (before, info.modified, after)} == {timedelta(0)}
        assert abs(datetime.now(UTC) - after) < timedelta(minutes=5)
        assert names(store) == ["a"]

    # -- everything at once --------------------------------------------------------------------------------------------

    def test_any_sequence_of_writes_does_what_a_dictionary_does(self, store: ObjectStore) -> None:
        verb, name = st.sampled_from(["put", "create", "replace", "delete"]), st.sampled_from(["a", "b", "d/a", "d/e"])

        @given(st.lists(st.tuples(verb, name), max_size=12))
        @settings(max_examples=15, deadline=None)
        def check(steps: list[tuple[str, str]]) -> None:
            store.delete(names(store))
            expected: dict[str, tuple[bytes, str]] = {}
            for number, (verb, name) in enumerate(steps):
                _write_to_both(store, expected, verb, name, str(number).encode())
            assert {info.name: (store.get(info.name).body, info.etag) for info in store.list()} == expected

        check()


def _write_to_both(
    store: ObjectStore, expected: dict[str, tuple[bytes, str]], verb: str, name: str, body: bytes
) -> None:
    there = name in expected
    match verb:
        case "put":
            expected[name] = (body, store.put(name, body, content_type=TEXT))
        case "create":
            with pytest.raises(ObjectExistsError) if there else nullcontext():
                expected[name] = (body, store.create(name, body, content_type=TEXT))
        case "replace":
            _, etag = expected.get(name, (b"", '"0"'))
            with nullcontext() if there else pytest.raises(ObjectNotFoundError):
                expected[name] = (body, store.replace(name, body, etag=etag, content_type=TEXT))
        case _:
            store.delete([name])
            expected.pop(name, None)


def _race(tasks: Sequence[Callable[[], object]]) -> list[object]:
    """Run all tasks at the same moment; their results or errors, in order."""
    start = Barrier(len(tasks))

    def run(task: Callable[[], object]) -> object:
        start.wait()
        try:
            return task()
        except StorageError as exc:
            return exc

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))
