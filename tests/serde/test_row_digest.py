"""Row digests: the vectors in the documentation, and the vectorised code against the definition."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.serde import row_digest
from shardyfusion.serde.row_digest import digest_by_shard, digest_total, format_digest, row_hash, row_hashes

ROWS = st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=40)), max_size=40)
Row = tuple[bytes, bytes]


def columns(rows: list[Row]) -> tuple[pa.LargeBinaryArray, pa.LargeBinaryArray]:
    kind = pa.large_binary()
    return pa.array([key for key, _ in rows], kind), pa.array([value for _, value in rows], kind)


def digest(rows: list[Row]) -> int:
    return digest_total(row_hashes(*columns(rows)))


def test_documented_vectors() -> None:
    """The table in docs/row-digest.md; `2 x 61` is two bytes 61."""
    text = (Path(__file__).parents[2] / "docs" / "row-digest.md").read_text()
    found = re.findall(r"^\| `([^`]*)` \| `([^`]*)` \| `([0-9a-f]{16})` \|$", text, re.MULTILINE)
    assert len(found) >= 8

    def read(cell: str) -> bytes:
        count, times, unit = cell.partition(" x ")
        return bytes.fromhex(unit) * int(count) if times else bytes.fromhex(cell.replace("empty", ""))

    rows = [(read(key), read(value)) for key, value, _ in found]
    expected = [int(shown, 16) for _, _, shown in found]
    assert [row_hash(*row) for row in rows] == expected
    assert row_hashes(*columns(rows)).tolist() == expected
    total = re.search(r"sfmix64-1:[0-9a-f]{16}", text)
    assert total is not None
    assert total[0] == format_digest(sum(expected))


@given(ROWS)
def test_vectorised_agrees_with_the_definition(rows: list[Row]) -> None:
    assert row_hashes(*columns(rows)).tolist() == [row_hash(*row) for row in rows]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20), st.randoms(use_true_random=False))
def test_equal_lengths_agree_with_the_definition(key: int, value: int, count: int, random: object) -> None:
    rows = [(random.randbytes(key), random.randbytes(value)) for _ in range(count)]
    assert row_hashes(*columns(rows)).tolist() == [row_hash(*row) for row in rows]


@given(ROWS, st.integers(0, 40), st.integers(0, 40))
def test_slices_have_the_hashes_of_their_rows(rows: list[Row], start: int, length: int) -> None:
    keys, values = columns(rows)
    expected = [row_hash(*row) for row in rows][start : start + length]
    assert row_hashes(keys.slice(start, length), values.slice(start, length)).tolist() == expected


@pytest.mark.parametrize("seed", [1, 2])
def test_chunk_and_block_borders_do_not_matter(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """With chunks of a few rows, and blocks of a few words, of which long values take many."""
    monkeypatch.setattr(row_digest, "_CHUNK_ROWS", 3)
    monkeypatch.setattr(row_digest, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(row_digest, "_BLOCK_WORDS", 4)
    rng = np.random.default_rng(seed)
    short = [(rng.bytes(8), rng.bytes(int(size))) for size in rng.integers(0, 70, 60)]
    rows = [*short, (b"long", rng.bytes(1_001)), (b"long2", rng.bytes(200)), *short[:7]]
    assert row_hashes(*columns(rows)).tolist() == [row_hash(*row) for row in rows]
    same = [(rng.bytes(9), rng.bytes(333)) for _ in range(10)]
    assert row_hashes(*columns(same)).tolist() == [row_hash(*row) for row in same]


def test_a_long_row_among_short_ones() -> None:
    rng = np.random.default_rng(3)
    rows = [(b"a", b"x"), (b"b", rng.bytes(3_000_001)), (b"c", b""), (b"", b"")]
    keys, values = columns(rows)
    hashes = row_hashes(keys, values)
    assert [hashes[i] for i in (0, 2, 3)] == [row_hash(*rows[i]) for i in (0, 2, 3)]
    assert hashes[1] == row_hashes(keys[1:2], values[1:2])[0] != row_hash(b"b", rows[1][1][:-1])


@given(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=20)), min_size=2, max_size=12), st.data())
def test_any_single_change_of_rows_changes_the_digest(rows: list[Row], data: st.DataObject) -> None:
    """Loss, doubling, exchange of two values, replacement by another row; but not another order."""
    whole = digest(rows)
    assert digest(data.draw(st.permutations(rows))) == whole
    i, j = data.draw(st.permutations(range(len(rows))))[:2]
    assert digest(rows[:i] + rows[i + 1 :]) != whole
    assert digest([*rows, rows[i]]) != whole
    (key, value), (other_key, other_value) = rows[i], rows[j]
    if key != other_key and value != other_value:
        swapped = list(rows)
        swapped[i], swapped[j] = (key, other_value), (other_key, value)
        assert digest(swapped) != whole
    if rows[i] != rows[j]:
        assert digest([rows[i] if row == rows[j] else row for row in rows]) != whole


def test_where_the_key_ends_matters() -> None:
    hashes = [row_hash(b"ab", b"c"), row_hash(b"a", b"bc"), row_hash(b"abc", b""), row_hash(b"", b"abc")]
    hashes += [row_hash(b"ab\0", b"c"), row_hash(b"ab", b"c\0"), row_hash(b"c", b"ab"), row_hash(b"", b"")]
    assert len(set(hashes)) == 8
    assert 0 not in hashes


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 4)), max_size=50))
def test_digest_by_shard_is_a_sum_modulo_two_to_the_64(rows: list[tuple[int, int]]) -> None:
    hashes = np.array([h for h, _ in rows], dtype=np.uint64)
    shards = np.array([shard for _, shard in rows], dtype=np.int64)
    expected = [sum(h for h, shard in rows if shard == i) % 2**64 for i in range(6)]
    assert digest_by_shard(hashes, shards, 6).tolist() == expected
    assert digest_total(hashes) == sum(expected) % 2**64


def test_digest_by_shard_is_exact_over_many_rows() -> None:
    count = (1 << 20) + 5
    hashes = np.full(count, 2**64 - 1, dtype=np.uint64)
    totals = digest_by_shard(hashes, np.zeros(count, dtype=np.int64), 2)
    assert totals.tolist() == [(2**64 - 1) * count % 2**64, 0]
