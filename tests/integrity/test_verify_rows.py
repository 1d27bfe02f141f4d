"""`verify` on rows: what is stored soundly, but is not what the manifest says, or reads in two ways."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest

from shardyfusion import SqliteFactory, SqliteReaderFactory
from shardyfusion.errors import (
    ShardTimeoutError,
    ShardUnavailableError,
)
from shardyfusion.manifest import Manifest, ShardRecord
from shardyfusion.operations import verify
from shardyfusion.operations.verify_rows import RowScan
from shardyfusion.routing.cel.program import compile_program
from shardyfusion.routing.cel.router import CelRouter
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.routing.hashing import HashRouter
from shardyfusion.serde.keys import KeyEncoding
from shardyfusion.serde.row_digest import format_digest, row_hash
from tests.integrity.published import write
from tests.reader.snapshots import build, commit


@pytest.fixture
def prefix() -> str:
    return f"memory://{uuid4().hex}/snap"


def of_the_key(expression: str, kind: CelType) -> CelRouter:
    return CelRouter(compile_program(expression, {"key": kind}), 5)


def published(prefix: str, wrong: Any) -> None:
    """A snapshot whose manifest or shards are wrong, but whose digests of objects are right."""
    manifest = build(prefix, {key: b"%d" % key for key in range(40)}, num_dbs=2)
    commit(prefix, wrong(manifest))


def with_first(manifest: Manifest, **fields: Any) -> Manifest:
    return replace(manifest, shards=(replace(manifest.shards[0], **fields), *manifest.shards[1:]))


def exchanged(manifest: Manifest) -> Manifest:
    first, second = manifest.shards
    return replace(manifest, shards=(replace(second, db_id=0), replace(first, db_id=1)))


@pytest.mark.parametrize(
    ("wrong", "modes", "says"),
    [
        (exchanged, ["sample", "full"], "belongs to shard"),
        (lambda m: with_first(m, key_bytes_min=b"\0" * 8 + b"x"), ["sample", "full"], "first key"),
        (lambda m: with_first(m, key_bytes_max=b"\xff" * 8), ["sample", "full"], "last key"),
        (lambda m: with_first(m, row_digest="sfmix64-1:0000000000000001"), ["full"], "digest of its rows"),
        (lambda m: with_first(m, row_count=1), ["full"], "rows instead of 1"),
        (lambda m: with_first(m, row_count=99, row_digest="sfmix64-1:0"), ["sample", "full"], "instead of 99"),
        (lambda m: replace(m, key_encoding=KeyEncoding.U32BE), ["sample", "full"], "no integer of 4 bytes"),
    ],
)  # fmt: skip
def test_rows_that_are_not_the_recorded_ones(prefix, wrong, modes, says):
    published(prefix, wrong)
    assert verify(prefix).ok, "objects are as recorded"
    for mode in modes:
        report = verify(prefix, mode)
        assert report.damaged
        assert all(says in (shard.problem or "") for shard in report.damaged), report.damaged


@pytest.mark.parametrize(
    ("total", "says"),
    [
        ({"input_rows": 39, "row_digest": "sfmix64-1:0"}, "only 39 were read"),
        ({"input_rows": 40, "row_digest": "sfmix64-1:0"}, "add up to"),
    ],
)
def test_totals(prefix, total, says):
    published(prefix, lambda m: replace(m, custom={"shardyfusion": {"backend": "sqlite", **total}}))
    assert says in verify(prefix).problems[0]


def test_dropped_duplicates_leave_the_total_open(prefix):
    published(
        prefix,
        lambda m: replace(m, custom={"shardyfusion": {"input_rows": 42, "row_digest": "sfmix64-1:0"}}),
    )
    report = verify(prefix)
    assert report.ok
    assert "2 were dropped" in report.unchecked[0]


@dataclass(frozen=True)
class Lying(SqliteReaderFactory):
    """Opens shards whose answers are changed on the way."""

    lie: str = ""

    def open_reader(self, source: Any) -> Any:
        return Liar(super().open_reader(source), self.lie)


class Liar:
    def __init__(self, real: Any, lie: str) -> None:
        self.real, self.lie = real, lie

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        rows = list(self.real.scan())
        if self.lie == "order":
            rows[3], rows[4] = rows[4], rows[3]
        return iter(rows[:-1] if self.lie == "end" else rows)

    def get(self, key: bytes) -> bytes | None:
        if self.lie == "timeout":
            raise ShardTimeoutError("no answer")
        return None if self.lie == "absent" else self.real.get(key)

    def get_many(self, keys: list[bytes]) -> dict[bytes, bytes]:
        return dict.fromkeys(keys, b"?") if self.lie == "present" else self.real.get_many(keys)

    def close(self) -> None:
        self.real.close()


@pytest.mark.parametrize(
    ("lie", "mode", "says"),
    [
        ("order", "sample", "comes after"),
        ("order", "full", "comes after"),
        ("end", "full", "rows instead of"),
        ("absent", "sample", "is not there"),
        ("present", "sample", "reads otherwise"),
    ],
)
def test_answers_that_contradict_each_other(prefix, lie, mode, says):
    write(prefix, SqliteFactory())
    damaged = verify(prefix, mode, reader_factory=Lying(lie=lie)).damaged
    assert len(damaged) == 3
    assert all(says in (shard.problem or "") for shard in damaged), damaged


@pytest.mark.parametrize(
    ("encoding", "router"),
    [
        (KeyEncoding.U64BE, HashRouter(5)),
        (KeyEncoding.U32BE, HashRouter(5)),
        (KeyEncoding.UTF8, HashRouter(5)),
        (KeyEncoding.U64BE, of_the_key("key % 5", CelType.INT)),
        (KeyEncoding.U32BE, of_the_key("[key % 5u][0]", CelType.UINT)),
        (KeyEncoding.UTF8, of_the_key("shard_hash(key) % 5u", CelType.STRING)),
        (KeyEncoding.UTF8, of_the_key("shard_hash(key + b'x') % 5u", CelType.BYTES)),
    ],
)
def test_with_and_without_columns_the_answer_is_the_same(encoding, router):
    """An installation for readers has neither numpy nor pyarrow."""
    rng = random.Random(11)
    spelled: list[int | str] = [rng.randrange(2**32) for _ in range(500)]
    if encoding is KeyEncoding.UTF8:
        spelled = [f"é{key}" for key in spelled]
    rows = sorted((encoding.encode(key), rng.randbytes(rng.randrange(30))) for key in spelled if router.route(key) == 3)
    digest = format_digest(sum(row_hash(key, value) for key, value in rows))
    stray = next(encoding.encode(key) for key in spelled if router.route(key) == 1)
    record = ShardRecord(
        db_id=3, db_url="u", attempt=0, row_count=len(rows), db_bytes=0, row_digest=digest, key_bytes_min=rows[0][0]
    )
    for vectorised in (True, False):
        scan = RowScan(record, router=router, encoding=encoding, damaged=ShardUnavailableError, vectorised=vectorised)
        for start in range(0, len(rows), 7):
            scan.add(rows[start : start + 7])
        assert scan.compare_with_record() == []
        misplaced = RowScan(
            record, router=router, encoding=encoding, damaged=ShardUnavailableError, vectorised=vectorised
        )
        with pytest.raises(ShardUnavailableError, match="belongs to shard 1"):
            misplaced.add(sorted([*rows[:5], (stray, b"")]))


@pytest.mark.parametrize(
    "router", [HashRouter(1), of_the_key("key / 5u", CelType.UINT), of_the_key("key", CelType.INT)]
)
def test_a_key_that_cannot_be_routed_is_damage(router):
    record = ShardRecord(db_id=0, db_url="u", attempt=0, row_count=1, db_bytes=0)
    for vectorised in (True, False):
        scan = RowScan(
            record,
            router=router,
            encoding=KeyEncoding.U64BE,
            damaged=ShardUnavailableError,
            vectorised=vectorised,
        )
        with pytest.raises(ShardUnavailableError, match="cannot be routed"):
            scan.add([(b"\xff" * 8, b"")])


def test_a_deadline_is_not_damage(prefix):
    write(prefix, SqliteFactory())
    sample = Lying(lie="timeout")
    with pytest.raises(ShardTimeoutError):
        verify(prefix, "sample", reader_factory=sample)
