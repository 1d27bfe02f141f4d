"""The pages that we write ourselves: SQLite must find in them, and may do with them, what it would with its own."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import apsw
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from shardyfusion.errors import InputDataError, ShardCoverageError, ShardWriteError
from shardyfusion.shard_contract import DbAdapter, DbAdapterFactory, ShardReaderFactory, ShardTarget
from shardyfusion.sqlite_adapter import SqliteFactory, SqliteReaderFactory, pages, read_back, writer
from shardyfusion.sqlite_adapter.page_file import LOCK_BYTE, PageFile
from shardyfusion.sqlite_adapter.pages import PageWriter
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.testing.suites import ShardBackendTests
from tests.faults.small_disks import small_disk

Pairs = list[tuple[bytes, bytes]]
PAGE_SIZES = [4096, 8192, 16_384, 32_768, 65_536]


def make_batch(pairs: Pairs) -> pa.RecordBatch:
    columns = [pa.array([pair[i] for pair in pairs], pa.large_binary()) for i in (0, 1)]
    return pa.record_batch(columns, names=["key", "value"])


def write_pages(path: Path, pairs: Pairs, *, page_size: int = 4096, cuts: list[int] = ()) -> int:
    """Write sorted rows in batches that are cut anywhere. Returns the number of levels of the tree."""
    assert PageWriter.can_continue(writer._create(path, page_size), page_size)
    page_writer, batch = PageWriter(path, page_size), make_batch(pairs)
    for start, stop in itertools.pairwise([0, *sorted(cuts), len(pairs)]):
        assert page_writer.append(batch.slice(start, max(0, stop - start)))
    page_writer.finish()
    return levels(path, page_size)


def levels(path: Path, page_size: int) -> int:
    with path.open("rb") as file:
        number, count = 2, 1
        while True:
            file.seek((number - 1) * page_size)
            page = file.read(page_size)
            if page[0] == 0x0A:
                return count
            first_cell = int.from_bytes(page[12:14], "big")
            number, count = int.from_bytes(page[first_cell : first_cell + 4], "big"), count + 1


def check_sound(path: Path, pairs: Pairs, *, ours: bool = True) -> None:
    """SQLite finds no fault, and exactly these rows in this order; in a file of ours every page is used."""
    size = path.stat().st_size
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ((page_count,), (page_size,)) = (connection.execute(f"PRAGMA {x}").fetchone() for x in ("page_count", "page_size"))
    assert page_count * page_size == size
    header = path.read_bytes()[:100]
    assert int.from_bytes(header[28:32], "big") == page_count
    assert header[24:28] == header[92:96], "the page count in the header is said to be out of date"
    if ours:  # copying rows, SQLite splits pages, and may leave some empty
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
    assert connection.execute("SELECT k, v FROM kv").fetchall() == pairs
    assert connection.execute("SELECT count(*) FROM kv").fetchone() == (len(pairs),)
    connection.close()


def check_lookups(path: Path, pairs: Pairs) -> None:
    """Every key is found, and the nearest keys that are absent are not; ranges and the reverse order work."""
    keys = {key for key, _ in pairs}
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.pragma("integrity_check") == "ok"
    for key, value in pairs:
        assert connection.execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchall() == [(value,)]
        for other in (key + b"\0", key[:-1], key[:-1] + bytes([max(0, key[-1] - 1)]) if key else b"\0"):
            if other not in keys:
                assert connection.execute("SELECT v FROM kv WHERE k = ?", (other,)).fetchall() == []
    assert connection.execute("SELECT k, v FROM kv ORDER BY k DESC").fetchall() == pairs[::-1]
    if pairs:
        middle = pairs[len(pairs) // 2][0]
        above = connection.execute("SELECT k, v FROM kv WHERE k > ?", (middle,)).fetchall()
        assert above == [pair for pair in pairs if pair[0] > middle]
    connection.close()


def check_changes(path: Path, pairs: Pairs, rng: random.Random) -> None:
    """SQLite can copy the file, and delete, insert and change rows in it."""
    copy = path.with_name(f"{uuid4().hex}.db")
    connection = sqlite3.connect(path)
    connection.execute("VACUUM INTO ?", (str(copy),))
    connection.close()
    check_sound(copy, pairs, ours=False)
    copy.unlink()

    shutil.copy(path, copy)
    rows = dict(pairs)
    gone = rng.sample(list(rows), len(rows) // 2)
    new = {key + b"\0": rng.randbytes(rng.choice([0, 10, 500, 5000])) for key in rng.sample(list(rows), len(rows) // 3)}
    connection = sqlite3.connect(copy)
    connection.executemany("DELETE FROM kv WHERE k = ?", [(key,) for key in gone])
    connection.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", new.items())
    connection.commit()
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    for key in gone:
        del rows[key]
    assert connection.execute("SELECT k, v FROM kv").fetchall() == sorted((rows | new).items())
    connection.close()
    copy.unlink()


def check_all(path: Path, pairs: Pairs, rng: random.Random) -> None:
    check_sound(path, pairs)
    check_lookups(path, pairs)
    check_changes(path, pairs, rng)


def edges(page_size: int) -> list[int]:
    """Lengths of records about which something changes: varints, overflow, and full overflow pages."""
    most_local, least_local = ((page_size - 12) * part // 255 - 23 for part in (64, 32))
    more = page_size - 4
    marks = [58, 128, 16_384, most_local, least_local + more, most_local + more, page_size, least_local + 2 * more]
    return sorted({mark + change for mark in marks for change in range(-3, 4)})


# -- any rows -----------------------------------------------------------------------------------------------------------


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, Pairs, list[int]]:
    """A page size, a seed, sorted rows, and where batches are cut.

    Lengths come in runs from a few ranges, so that pages, chunks and batches of equal and of different lengths meet.
    """
    page_size = draw(st.sampled_from(PAGE_SIZES))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = random.Random(seed)
    small = st.tuples(st.integers(0, 40), st.integers(0, 200))
    spans = st.one_of(small, st.tuples(st.integers(0, 1200), st.integers(0, 1200)), st.tuples(st.just(0), st.just(0)))
    exact = st.sampled_from(edges(page_size)).map(lambda length: (length, length))
    pairs: dict[bytes, bytes] = {}
    for _ in range(draw(st.integers(0, 4))):
        rows = draw(st.one_of(st.integers(0, 40), st.integers(0, 900)))
        key_span = draw(st.one_of(st.just((8, 8)), st.tuples(st.integers(0, 4), st.integers(4, 30)), spans))
        value_span = draw(st.one_of(spans, exact))
        largest = max(*key_span, *value_span)
        for _ in range(min(rows, 3_000_000 // (largest + 1))):
            key = rng.randbytes(rng.randint(*sorted(key_span)))
            pairs[key] = rng.randbytes(rng.randint(*sorted(value_span)))
    cuts = draw(st.lists(st.integers(0, len(pairs)), max_size=5))
    return page_size, seed, sorted(pairs.items()), cuts


def check_shape(shape: tuple[int, int, Pairs, list[int]], chunk_bytes: int) -> None:
    page_size, seed, pairs, cuts = shape
    note(f"seed {seed}, {len(pairs)} rows, pages of {page_size}, cuts {cuts}")
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "_CHUNK_BYTES", chunk_bytes)
        path = Path(root) / "shard.db"
        write_pages(path, pairs, page_size=page_size, cuts=cuts)
        check_all(path, pairs, random.Random(seed))


CHUNKS = st.sampled_from([1, 5_000, 100_000, 4 << 20])
"""Small ones, so that a few hundred rows are many chunks on every level."""


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(shape=shapes(), chunk_bytes=CHUNKS)
def test_any_sorted_rows(shape: tuple[int, int, Pairs, list[int]], chunk_bytes: int) -> None:
    check_shape(shape, chunk_bytes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=1_000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(shape=shapes(), chunk_bytes=CHUNKS)
def test_any_sorted_rows_for_long(shape: tuple[int, int, Pairs, list[int]], chunk_bytes: int) -> None:
    check_shape(shape, chunk_bytes)


# -- all of some shapes -------------------------------------------------------------------------------------------------


def numbered(rows: int, lengths: list[int]) -> Pairs:
    """Keys of four bytes, values of these lengths in turns."""
    return [(n.to_bytes(4, "big"), n.to_bytes(4, "little") * (lengths[n % len(lengths)] // 4)) for n in range(rows)]


@pytest.mark.parametrize(
    ("lengths", "counts"),
    [
        pytest.param([980], [*range(60), 123, 124, 125, 126, 623, 624, 625, 626], id="equal"),
        pytest.param([980, 960, 992], [*range(60), 124, 125, 624, 625], id="different"),
        pytest.param([4, 980, 4, 4, 980], [*range(40), 100, 200, 300], id="very different"),
        pytest.param([980, 4000], [*range(40), 124, 125], id="some overflow"),
    ],
)
def test_every_number_of_rows(tmp_path: Path, lengths: list[int], counts: list[int]) -> None:
    """Four cells fill a page, so that these are trees of one to five levels, with every kind of last page."""
    found = set()
    for rows in counts:
        path = tmp_path / f"{rows}.db"
        pairs = numbered(rows, lengths)
        found.add(write_pages(path, pairs, cuts=[rows // 3]))
        check_sound(path, pairs)
        check_lookups(path, pairs)
    assert found >= {1, 2, 3}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lengths", [[980], [980, 960, 992], [40, 980, 40, 40, 980], [980, 4000]])
def test_every_number_of_rows_up_to_trees_of_six_levels(tmp_path: Path, lengths: list[int]) -> None:
    for rows in [*range(700), *range(3100, 3150), *range(15_600, 15_640)]:
        path = tmp_path / f"{rows}.db"
        pairs = numbered(rows, lengths)
        write_pages(path, pairs, cuts=[rows // 2])
        check_sound(path, pairs)
        path.unlink()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_length_about_which_something_changes(tmp_path: Path, page_size: int) -> None:
    rng = random.Random(page_size)
    lengths = edges(page_size)
    sharing = [rng.randbytes(length) for length in lengths]
    for name, make in {
        "value": lambda i, n: (i.to_bytes(2, "big"), rng.randbytes(max(0, n - 5))),
        "key": lambda i, n: (i.to_bytes(2, "big") + sharing[i][2:], b""),
        "both": lambda i, n: (i.to_bytes(2, "big") + sharing[i][: n // 2], rng.randbytes(n - n // 2)),
    }.items():
        pairs = [make(i, length) for i, length in enumerate(lengths)]
        path = tmp_path / f"{name}.db"
        write_pages(path, pairs, page_size=page_size)
        check_all(path, pairs, rng)
    for length in lengths:
        pairs = [(i.to_bytes(4, "big"), rng.randbytes(length - 7)) for i in range(6)]
        path = tmp_path / f"{length}.db"
        write_pages(path, pairs, page_size=page_size)
        check_sound(path, pairs)


@given(
    sizes=st.one_of(
        st.lists(st.sampled_from([20, 1000]), min_size=1, max_size=60),
        st.lists(st.integers(6, 1020), min_size=1, max_size=60),
        st.tuples(st.integers(6, 1020), st.integers(1, 700)).map(lambda few: [few[0]] * few[1]),
        st.tuples(st.integers(6, 12), st.integers(1, 700)).map(lambda few: [few[0]] * few[1] + [few[0] + 1]),
    )
)
def test_pages_are_cut_when_the_next_cell_does_not_fit(sizes: list[int]) -> None:
    room = 4088
    expected, start = [], 0
    while start < len(sizes):
        stop = start
        while stop < len(sizes) and sum(sizes[start : stop + 1]) <= room:
            stop += 1
        if stop > len(sizes) - 2:
            break
        expected.append((start, stop))
        start = stop + 1
    filled = np.concatenate([[0], np.cumsum(sizes)])
    assert list(zip(*(x.tolist() for x in pages._cut(filled, room)), strict=True)) == expected
    everything = list(zip(*(x.tolist() for x in pages._cut_all(filled, room)), strict=True))
    assert everything[: len(expected)] == expected
    rest = everything[len(expected) :]
    assert 1 <= len(rest) <= 2
    assert (rest[0][0], rest[-1][1]) == (start, len(sizes))
    assert len(rest) == 1 or rest[0][1] + 1 == rest[1][0]
    assert all(0 < filled[b] - filled[a] <= room for a, b in rest)


def test_keys_that_differ_only_on_overflow_pages(tmp_path: Path) -> None:
    """Then SQLite reads the chains of interior pages, too, to find its way."""
    pairs = [(b"x" * 6000 + n.to_bytes(2, "big"), b"v" * n) for n in range(400)]
    assert write_pages(tmp_path / "a.db", pairs, cuts=[7]) == 3
    check_all(tmp_path / "a.db", pairs, random.Random(1))


def test_the_smallest_cells(tmp_path: Path) -> None:
    """As many cells in a page as there can be: keys of one or two bytes, and no values."""
    keys = sorted(
        {b"", *(bytes([n]) for n in range(256)), *((n * 3).to_bytes(2, "big") for n in range(21_000)), b"\xff" * 3}
    )
    pairs = [(key, b"") for key in keys]
    for page_size in PAGE_SIZES:
        path = tmp_path / f"{page_size}.db"
        write_pages(path, pairs, page_size=page_size, cuts=[1, 10_000])
        check_sound(path, pairs)
    check_lookups(path, pairs)


def test_pages_are_full(tmp_path: Path) -> None:
    """No larger than what SQLite makes of the same rows."""
    pairs = [(n.to_bytes(8, "big"), bytes(100)) for n in range(20_000)]
    sizes = []
    for name, first in (("pages", None), ("inserts", [])):
        target = make_target(tmp_path, name)
        with SqliteFactory().open(target) as adapter:
            if first is not None:
                adapter.write_batch(first)
            adapter.write_arrow(make_batch(pairs))
            sizes.append(adapter.seal().db_bytes)
    assert sizes[0] < sizes[1]


# -- files past the lock byte -------------------------------------------------------------------------------------------


@given(before=st.integers(0, 8), counts=st.lists(st.integers(0, 5), max_size=8))
def test_page_numbers_skip_the_lock_byte(before: int, counts: list[int]) -> None:
    locked = LOCK_BYTE // 4096 + 1
    with tempfile.NamedTemporaryFile() as file:
        page_file = PageFile(Path(file.name), 4096, locked - before)
        numbers = itertools.filterfalse(locked.__eq__, itertools.count(locked - before))
        for count in counts:
            expected = list(itertools.islice(numbers, count))
            assert page_file.take(count).tolist() == expected
            assert not expected or page_file.page_count == expected[-1]
        page_file.close()


@pytest.mark.parametrize("kind", ["leaves", "overflow", "last page", "first page behind"])
def test_the_page_of_the_lock_byte_is_left_out(tmp_path: Path, kind: str) -> None:
    """Pages are numbered as if those before it were in use, which costs nothing in a sparse file."""
    page_size, path = 65_536, tmp_path / "a.db"
    locked = LOCK_BYTE // page_size + 1
    length = 200_000 if kind == "overflow" else 10_000
    rows, first = {"last page": (14, locked - 3), "first page behind": (14, locked)}.get(kind, (400, locked - 6))
    pairs = numbered(rows, [length])
    writer._create(path, page_size)
    page_writer = PageWriter(path, page_size)
    page_writer._file._given = first - 1
    page_writer.append(make_batch(pairs))
    page_writer.finish()
    assert page_writer.page_count == path.stat().st_size // page_size
    assert (page_writer.page_count == locked - 1) == (kind == "last page")
    with path.open("rb") as file:
        file.seek(LOCK_BYTE)
        assert not any(file.read(page_size))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT k, v FROM kv").fetchall() == pairs
    # The pages that we left out are in no tree; nothing else is wrong. The page of the lock byte is not one of them.
    told = "\n".join(line for (line,) in connection.execute("PRAGMA integrity_check(100000)"))
    faults = [line for line in told.splitlines() if "***" not in line]
    assert [fault for fault in faults if "never used" not in fault] == []
    assert len(faults) == first - 3
    connection.close()
    check_lookups_only(path, pairs)


def check_lookups_only(path: Path, pairs: Pairs) -> None:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    for key, value in pairs:
        assert connection.execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchall() == [(value,)]
    connection.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("page_size", "length"), [(4096, 100), (4096, 900), (4096, 20_000), (65_536, 1000)])
def test_a_file_of_more_than_one_gibibyte(tmp_path: Path, page_size: int, length: int) -> None:
    path, rows = tmp_path / "a.db", int(1.15 * LOCK_BYTE) // (length + 16)
    writer._create(path, page_size)
    page_writer = PageWriter(path, page_size)
    for first in range(0, rows, 100_000):
        page_writer.append(counted(first, min(rows, first + 100_000), length))
    page_writer.finish()
    assert path.stat().st_size > LOCK_BYTE + page_size
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*), sum(length(v)) FROM kv").fetchone() == (rows, rows * length)
    chooser = random.Random(length)
    for n in [0, rows - 1, *(chooser.randrange(rows) for _ in range(5000))]:
        expected = counted(n, n + 1, length)["value"][0].as_py()
        assert connection.execute("SELECT v FROM kv WHERE k = ?", (n.to_bytes(8, "big"),)).fetchone() == (expected,)
    connection.close()


def counted(first: int, stop: int, length: int) -> pa.RecordBatch:
    """Rows whose values say which they are."""
    numbers = np.arange(first, stop, dtype=np.uint64)
    values = np.zeros((stop - first, length), np.uint8)
    values[:, :8] = values[:, -8:] = numbers.view(np.uint8).reshape(-1, 8)
    columns = [
        pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            stop - first,
            [None, pa.py_buffer(np.arange(stop - first + 1) * size), pa.py_buffer(data)],
        )
        for size, data in ((8, numbers.astype(">u8")), (length, values))
    ]
    return pa.record_batch(columns, names=["key", "value"])


# -- who writes, and what is checked ------------------------------------------------------------------------------------


def make_target(root: Path, name: str = "db") -> ShardTarget:
    scratch = root / f"scratch-{name}"
    scratch.mkdir(parents=True)
    address = StoreAddress.parse(root)
    return ShardTarget(db_id=7, store=open_store(address), address=address, directory=name, scratch=scratch)


def seal_and_check(adapter: DbAdapter, root: Path, rows: dict[bytes, bytes]) -> None:
    assert adapter.seal().rows == len(rows)
    check_all(root / "db/shard.db", sorted(rows.items()), random.Random(len(rows)))


MANY = {n.to_bytes(4, "big"): bytes([n % 251]) * (n % 300) for n in range(0, 40_000, 4)}


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[DbAdapter]:
    with SqliteFactory().open(make_target(tmp_path)) as adapter:
        yield adapter


def by_pages(adapter: DbAdapter) -> bool:
    return adapter._pages is not None and adapter._inserts is None


def test_ascending_batches_are_pages_to_the_end(adapter: DbAdapter, tmp_path: Path) -> None:
    batch = make_batch(sorted(MANY.items()))
    for start in range(0, len(batch), 999):
        adapter.write_arrow(batch.slice(start, 999))
        assert by_pages(adapter)
    seal_and_check(adapter, tmp_path, MANY)


@pytest.mark.parametrize(
    "late",
    [
        pytest.param({b"\0\0\0\1": b"between"}, id="before the last"),
        pytest.param({max(MANY): b"again"}, id="the last again"),
        pytest.param({b"\xff": b"1", b"\xfe": b"2"}, id="descending inside"),
        pytest.param({min(MANY): b"first again", b"\xff\xff": b"x" * 9000}, id="the first again"),
    ],
)
def test_sqlite_takes_over_rows_that_do_not_ascend(
    adapter: DbAdapter, tmp_path: Path, late: dict[bytes, bytes]
) -> None:
    adapter.write_arrow(make_batch(sorted(MANY.items())))
    adapter.write_arrow(make_batch(list(late.items())))
    assert not by_pages(adapter)
    assert adapter.db_bytes() > 1_000_000
    adapter.write_arrow(make_batch([(b"\xff\xff\xff", b"end")]))
    seal_and_check(adapter, tmp_path, MANY | late | {b"\xff\xff\xff": b"end"})


def test_a_key_twice_in_one_batch_is_left_to_sqlite(adapter: DbAdapter, tmp_path: Path) -> None:
    adapter.write_arrow(make_batch([(b"a", b"1"), (b"a", b"2"), (b"b", b"3")]))
    seal_and_check(adapter, tmp_path, {b"a": b"2", b"b": b"3"})


def test_pairs_in_any_order_before_and_after_pages(adapter: DbAdapter, tmp_path: Path) -> None:
    adapter.write_arrow(make_batch(sorted(MANY.items())))
    changes = dict.fromkeys(list(MANY)[::7], b"changed") | {key + b"\0": b"new" for key in list(MANY)[::5]}
    adapter.write_batch(random.Random(3).sample(list(changes.items()), len(changes)))
    adapter.write_arrow(make_batch([(b"\xff", b"end")]))
    seal_and_check(adapter, tmp_path, MANY | changes | {b"\xff": b"end"})


def test_empty_batches_are_nothing(adapter: DbAdapter, tmp_path: Path) -> None:
    adapter.write_arrow(make_batch([]))
    adapter.write_arrow(make_batch([(b"", b"")]))
    adapter.write_arrow(make_batch([]))
    assert by_pages(adapter)
    seal_and_check(adapter, tmp_path, {b"": b""})


def test_the_empty_row_alone_is_inserted_by_sqlite(adapter: DbAdapter, tmp_path: Path) -> None:
    adapter.write_batch([])
    adapter.write_arrow(make_batch([(b"", b"")]))
    seal_and_check(adapter, tmp_path, {b"": b""})


def test_pages_that_sqlite_would_lay_out_otherwise_are_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "UNSAFE_PRAGMAS", (*writer.UNSAFE_PRAGMAS, "auto_vacuum=FULL"))
    monkeypatch.setattr(writer, "_empty", {})  # as in a process that begins like that
    with SqliteFactory().open(make_target(tmp_path)) as adapter:
        assert not by_pages(adapter)
        adapter.write_arrow(make_batch(sorted(MANY.items())))
        seal_and_check(adapter, tmp_path, MANY)


def test_reserved_bytes_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    empty = writer._create(path, 4096)
    assert empty == path.read_bytes()
    assert PageWriter.can_continue(empty, 4096)
    assert not PageWriter.can_continue(empty, 8192)
    for change in ({20: 8}, {18: 2}, {55: 1}, {39: 1}, {0: 0}, {4096 + 4: 1}, {4096: 13}):
        content = bytearray(empty)
        for place, byte in change.items():
            content[place] = byte
        assert not PageWriter.can_continue(bytes(content), 4096), change
    assert not PageWriter.can_continue(empty + bytes(4096), 4096)


def _flip_a_value(numbers: np.ndarray, image: pa.Buffer) -> bytes:
    return bytes(image).replace(b"\x07" * 7, b"\x08" * 7)


def _lose_a_page(numbers: np.ndarray, image: pa.Buffer) -> bytes:
    return bytes(image)[4096:] + bytes(image)[:4096]


@pytest.mark.parametrize("damage", [_flip_a_value, _lose_a_page])
def test_what_sqlite_does_not_find_again_is_not_uploaded(
    damage: Callable[[np.ndarray, pa.Buffer], bytes],
    adapter: DbAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = PageFile.write
    monkeypatch.setattr(PageFile, "write", lambda file, numbers, image: write(file, numbers, damage(numbers, image)))
    adapter.write_arrow(make_batch([(n.to_bytes(4, "big"), b"\x07" * 50) for n in range(1000)]))
    with pytest.raises(ShardCoverageError, match=r"does not hold the row of the key [0-9a-f]{8} ") as caught:
        adapter.seal()
    assert caught.value.facts == {"db_id": 7}
    assert list(open_store(StoreAddress.parse(tmp_path)).list("db")) == []
    with pytest.raises(ShardWriteError, match="closed"):
        adapter.write_batch([])


def test_a_sample_is_small_and_spread_over_all_rows() -> None:
    sample = read_back.RowSample()
    batch = make_batch([(n.to_bytes(4, "big"), b"") for n in range(50_000)])
    for start in range(20_000):
        sample.offer(batch.slice(start, 1))
    for start in range(20_000, 50_000, 5_000):
        sample.offer(batch.slice(start, 5_000))
    assert 500 < len(sample) <= 2_048
    numbers = [int.from_bytes(key, "big") for key, _ in sample._rows]
    assert numbers[0] == 0
    assert max(after - before for before, after in itertools.pairwise([*numbers, 50_000])) <= 5_000


@pytest.mark.parametrize(
    ("stored", "missing"),
    [
        pytest.param([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")], None, id="all"),
        pytest.param([(b"a", b"1"), (b"c", b"3")], b"b", id="a row is missing"),
        pytest.param([(b"a", b"1"), (b"b", b"2"), (b"b", b"2"), (b"c", b"3")], b"b", id="a row is there twice"),
        pytest.param([(b"a", b"1"), (b"b", b"2"), (b"c", b"2")], b"c", id="another value"),
        pytest.param([], b"a", id="nothing"),
    ],
)
def test_the_sample_tells_which_row_is_not_there_as_it_was(stored: Pairs, missing: bytes | None) -> None:
    """In a table without a primary key, which can hold what a damaged one does."""
    sample = read_back.RowSample()
    sample.offer(make_batch([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]))
    database = apsw.Connection(":memory:")
    database.execute("CREATE TABLE kv (k BLOB, v BLOB)")
    database.executemany("INSERT INTO kv VALUES (?, ?)", stored)
    assert sample.not_in(database) == missing


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_row_longer_than_sqlite_takes_is_refused_before_it_is_copied(adapter: DbAdapter, tmp_path: Path) -> None:
    with (tmp_path / "zeros").open("w+b") as file:
        file.truncate(1_000_000_000)
        zeros = pa.py_buffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    value = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, 1_000_000_000])), zeros]
    )
    allocated = pa.total_allocated_bytes()
    with pytest.raises(InputDataError, match=r"db/shard\.db is larger than SQLite's limit of 1,000,000,000 bytes"):
        adapter.write_arrow(pa.record_batch([pa.array([b"k"], pa.large_binary()), value], names=["key", "value"]))
    assert pa.total_allocated_bytes() - allocated < 1_000_000
    with pytest.raises(ShardWriteError, match="closed"):
        adapter.seal()


def test_a_write_in_small_parts_is_completed(
    adapter: DbAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: pwrite(fd, data[:1000], place))
    adapter.write_arrow(make_batch(sorted(MANY.items())))
    seal_and_check(adapter, tmp_path, MANY)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_is_a_retryable_error_that_says_what_to_do(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk, SqliteFactory().open(make_target(disk)) as adapter:
        batch = make_batch([(n.to_bytes(4, "big"), bytes(1000)) for n in range(10_000)])
        with pytest.raises(ShardWriteError, match=rf"{disk}/scratch-db/shard\.db.*disk is full.*local_root") as caught:
            adapter.write_arrow(batch)
        assert caught.value.retryable
        with pytest.raises(ShardWriteError, match="closed"):
            adapter.seal()
        assert adapter.db_bytes() == 0


def test_an_error_of_the_disk_is_retryable_and_the_file_is_given_up(
    adapter: DbAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, data: memoryview, place: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    adapter.write_arrow(make_batch(sorted(MANY.items())))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", broken)
        with pytest.raises(ShardWriteError, match=r"cannot commit .*shard\.db.*Input/output error") as caught:
            adapter.seal()
    assert caught.value.retryable
    assert list(open_store(StoreAddress.parse(tmp_path)).list("db")) == []
    with pytest.raises(ShardWriteError, match="closed"):
        adapter.seal()


def test_an_error_of_the_callers_own_pairs_is_theirs(adapter: DbAdapter) -> None:
    def pairs() -> Iterator[tuple[bytes, bytes]]:
        yield b"a", b"1"
        raise FileNotFoundError("the caller's")

    with pytest.raises(FileNotFoundError, match="the caller's"):
        adapter.write_batch(pairs())


def test_files_are_closed_whatever_happens(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0
    for number, end in enumerate((lambda a: a.close(), lambda a: a.seal(), lambda a: a.write_batch([]))):
        with SqliteFactory().open(make_target(tmp_path, f"db{number}")) as adapter:
            adapter.write_arrow(make_batch(sorted(MANY.items())))
            end(adapter)
    if sys.platform == "linux":
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Only what is not yet in pages is held, on each level."""
    path = tmp_path / "a.db"
    writer._create(path, 4096)
    page_writer, most = PageWriter(path, 4096), 0
    before = pa.total_allocated_bytes()
    for first in range(0, 3_000_000, 100_000):
        page_writer.append(counted(first, first + 100_000, 100))
        most = max(most, pa.total_allocated_bytes() - before)
    assert path.stat().st_size > 300_000_000
    assert most < 30_000_000
    page_writer.finish()


class TestInserts(ShardBackendTests):
    """The contract of engines where SQLite writes everything. (`test_backend_contract.py` has our pages.)"""

    @pytest.fixture(autouse=True)
    def no_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PageWriter, "can_continue", lambda content, page_size: False)

    @pytest.fixture
    def writes(self) -> DbAdapterFactory:
        return SqliteFactory()

    @pytest.fixture
    def reads(self) -> ShardReaderFactory:
        return SqliteReaderFactory()

    @pytest.fixture
    def prefix(self, tmp_path: Path) -> str:
        return str(tmp_path / "store")
