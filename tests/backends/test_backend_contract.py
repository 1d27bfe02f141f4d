"""The contract of shard engines, run on every engine and every kind of store it can write to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from shardyfusion.errors import ConfigValidationError
from shardyfusion.shard_contract import DbAdapterFactory, SealedShard, ShardReaderFactory
from shardyfusion.slatedb_adapter import LocalSlateDbFactory, SlateDbFactory, SlateDbReaderFactory
from shardyfusion.sqlite_adapter import SqliteFactory, SqliteReaderFactory
from shardyfusion.storage import StoreAddress
from shardyfusion.testing.suites import ShardBackendTests
from shardyfusion.testing.suites.shard_backends import Bench, read_all

_ENGINES: dict[str, tuple[DbAdapterFactory, ShardReaderFactory]] = {
    "sqlite": (SqliteFactory(), SqliteReaderFactory()),
    "slatedb": (SlateDbFactory(), SlateDbReaderFactory()),
    "local_slatedb": (LocalSlateDbFactory(), SlateDbReaderFactory()),
    "shipped_slatedb": (SlateDbFactory(binding="shipped"), SlateDbReaderFactory()),
    "shipped_local_slatedb": (LocalSlateDbFactory(binding="shipped"), SlateDbReaderFactory()),
}
_REFUSED = {("slatedb", "memory"), ("shipped_slatedb", "memory")}
_COMBINATIONS = [(e, s) for e in _ENGINES for s in ("file", "memory", "s3") if (e, s) not in _REFUSED]


class TestBackends(ShardBackendTests):
    @pytest.fixture(params=_COMBINATIONS, ids="-".join)
    def combination(self, request: pytest.FixtureRequest) -> tuple[str, str]:
        return request.param

    @pytest.fixture
    def writes(self, combination: tuple[str, str]) -> DbAdapterFactory:
        return _ENGINES[combination[0]][0]

    @pytest.fixture
    def reads(self, combination: tuple[str, str]) -> ShardReaderFactory:
        return _ENGINES[combination[0]][1]

    @pytest.fixture
    def prefix(self, request: pytest.FixtureRequest, combination: tuple[str, str], tmp_path: Path) -> str:
        match combination[1]:
            case "file":
                return str(tmp_path / "odd name ~é [x]" / "store")
            case "memory":
                return f"memory://{uuid4().hex}/snap"
            case _:
                return request.getfixturevalue("s3_prefix")

    def recorded_object(self, sealed: SealedShard) -> str:
        # What the engine itself checks is not enough: SlateDB's manifest carries no checksum.
        return max(found.path for found in sealed.objects if "manifest" in found.path or found.path == "shard.db")

    def test_only_what_downloads_asks_for_a_local_directory(self, bench: Bench) -> None:
        asked: list[Path] = []

        def cache() -> Path:
            asked.append(bench.local / "cache")
            return asked[-1]

        source = replace(bench.source(bench.build({b"k": b"v"})), cache=cache)
        assert read_all(bench.reads.open_reader(source)) == {b"k": b"v"}
        in_place = bench.address.kind == "file" or (bench.address.kind == "s3" and bench.reads.backend == "slatedb")
        assert bool(asked) != in_place
        assert [path.name for path in bench.local.glob("cache/**/*") if "slatedb" in path.name] == []


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
    yield "binding 'fast' must be 'auto' or 'shipped'", lambda: SlateDbFactory(binding="fast")
    yield "binding None", lambda: LocalSlateDbFactory(binding=None)


@pytest.mark.parametrize(("message", "call"), list(_refusals()))
def test_what_cannot_work_is_refused_by_name(s3: str, message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ConfigValidationError, match=message):
        call()
