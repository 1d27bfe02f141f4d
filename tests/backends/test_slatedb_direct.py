"""Rows cross into SlateDB by direct calls of its binding, or, where anything about it is amiss, as it was shipped."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import mmap
import re
import subprocess
import sys
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
from slatedb.uniffi import WriteBatch
from slatedb.uniffi._slatedb_uniffi import slatedb as binding

from shardyfusion import ColumnWriteInput, HashShardedWriteConfig, ValueSpec
from shardyfusion.errors import InputDataError, PublishManifestError, ShardUnavailableError, ShardWriteError
from shardyfusion.shard_contract import ShardSource, ShardTarget
from shardyfusion.slatedb_adapter import LocalSlateDbFactory, SlateDbFactory, SlateDbReaderFactory, direct_calls
from shardyfusion.slatedb_adapter.bridge import Bridge
from shardyfusion.slatedb_adapter.direct_calls import MAX_LOWERED_BYTES, DirectCalls
from shardyfusion.slatedb_adapter.reader import OpenDatabase
from shardyfusion.slatedb_adapter.settings import local_place
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.testing.suites.shard_backends import Rows, arrow, numbered
from shardyfusion.writer.dask import write_hash_sharded
from shardyfusion.writer.plan import request_fingerprint
from tests.writer.frames import contents, frame_of

_LEAKS = """
import gc, sys
import psutil
import pyarrow as pa
from slatedb.uniffi import Error, WriteBatch
from shardyfusion.slatedb_adapter.direct_calls import direct_calls

BATCHES, ROWS = 32, 16_384
calls, process = direct_calls(), psutil.Process()
keys = pa.array([b"%08d" % n for n in range(ROWS)], pa.large_binary())
values = pa.array([b"v" * 100] * ROWS, pa.large_binary())

def fill(batch):
    calls.put_rows(batch, keys, values)

def refuse(batch):
    for _ in range(ROWS // 32):
        try:
            calls.put_rows(batch, pa.array([b""], pa.large_binary()), pa.array([bytes(4096)], pa.large_binary()))
        except Error:
            continue
        raise AssertionError("an empty key was taken")

for work in (fill, refuse):
    for number in range(BATCHES + 8):
        if number == 8:
            gc.collect()
            before = process.memory_info().rss
        work(WriteBatch())
    gc.collect()
    print(work.__name__, process.memory_info().rss - before)
"""


class Altered:
    """An object in which some attributes are others, or missing where they are None."""

    def __init__(self, inner: object, **others: object) -> None:
        self._inner = inner
        self._others = others

    def __getattr__(self, name: str) -> Any:
        found = self._others.get(name, self)
        if found is None:
            raise AttributeError(f"no symbol {name}")
        return getattr(self._inner, name) if found is self else found


class _WideBytes(ctypes.Structure):
    _fields_ = [("len", ctypes.c_int64), ("data", ctypes.POINTER(ctypes.c_char))]


class _WideLengths(binding._UniffiFfiConverterBytes):
    @classmethod
    def lower(cls, value: bytes) -> Any:
        return super().lower(b"\0" * 4 + value)


Damage = Callable[[pytest.MonkeyPatch], None]


def _module(**others: object) -> Damage:
    """What is damaged is only what the probe looks at: the binding itself works as shipped."""
    return lambda patch: patch.setattr(direct_calls, "_generated", lambda: Altered(binding, **others))


def _library(**others: object) -> Damage:
    return _module(_UniffiLib=Altered(binding._UniffiLib, **others))


def _signature(name: str, *argtypes: object) -> Damage:
    return _library(**{name: Altered(getattr(binding._UniffiLib, name), argtypes=argtypes)})


def _version(number: str) -> Damage:
    return lambda patch: patch.setattr(direct_calls, "version", lambda name: number)


def _puts(change: Callable[[Any, list[bytes], list[bytes]], None]) -> Damage:
    """Rows are put in a wrong way by the calls that are checked, and by nothing else."""

    def put_rows(self: DirectCalls, batch: WriteBatch, keys: pa.Array, values: pa.Array) -> None:
        change(batch, keys.to_pylist(), values.to_pylist())

    return lambda patch: patch.setattr(DirectCalls, "put_rows", put_rows)


def _put_all(batch: WriteBatch, keys: list[bytes], values: list[bytes]) -> None:
    for key, value in zip(keys, values, strict=True):
        batch.put(key, value)


def _silently(batch: WriteBatch, keys: list[bytes], values: list[bytes]) -> None:
    try:
        _put_all(batch, keys, values)
    except binding.Error:
        return


async def _one_more(self: DirectCalls, rows: Any, most: int) -> int:
    return len(await rows.next_batch(most)) + 1


async def _for_ever(calls: DirectCalls) -> None:
    await asyncio.sleep(60)


def _hang(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(direct_calls, "_CHECK_SECONDS", 0.2)
    patch.setattr(direct_calls, "_round_trip", _for_ever)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "newer": (_version("0.18.0"), r"slatedb 0\.18\.0 is not of a tested version \(0\.17\.\*\)"),
    "older": (_version("0.16.9"), r"slatedb 0\.16\.9 is not"),
    "contract": (_library(ffi_slatedb_uniffi_uniffi_contract_version=lambda: 31), "contract of its binding is 31"),
    "no structure": (_module(_UniffiForeignBytes=None), "no symbol _UniffiForeignBytes"),
    "no function": (
        _library(ffi_slatedb_uniffi_rustbuffer_from_bytes=None),
        "no symbol ffi_slatedb_uniffi_rustbuffer_from_bytes",
    ),
    "no counting": (
        _library(ffi_slatedb_uniffi_rust_future_complete_rust_buffer=None),
        "no symbol ffi_slatedb_uniffi_rust_future_complete_rust_buffer",
    ),
    "fields": (
        _module(_UniffiForeignBytes=_WideBytes),
        "structure _WideBytes has other fields",
    ),
    "signature": (
        _signature("uniffi_slatedb_uniffi_fn_clone_writebatch", ctypes.c_uint32),
        "uniffi_slatedb_uniffi_fn_clone_writebatch has another signature",
    ),
    "lowering": (
        _module(_UniffiFfiConverterBytes=_WideLengths),
        "byte strings cross in another form",
    ),
    "values exchanged": (
        _puts(lambda batch, keys, values: _put_all(batch, keys, values[::-1])),
        "did not come back as they were",
    ),
    "row lost": (_puts(lambda batch, keys, values: _put_all(batch, keys[1:], values[1:])), "did not come back"),
    "cut short": (
        _puts(lambda batch, keys, values: _put_all(batch, keys, [value[:65_536] for value in values])),
        "did not come back",
    ),
    "errors swallowed": (_puts(_silently), "an error of SlateDB did not arrive"),
    "wrong count": (lambda patch: patch.setattr(DirectCalls, "next_count", _one_more), "counted wrongly"),
    "hangs": (_hang, r"ShardWriteError: cannot check memory:///: SlateDB gave no answer in 0\.2 seconds"),
}


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has written nothing yet."""
    monkeypatch.setattr(direct_calls, "_settled", None)


@pytest.fixture
def calls() -> DirectCalls:
    found = direct_calls.direct_calls()
    assert found is not None, "the other tests would test the shipped way"
    return found


@pytest.fixture
def address(tmp_path: Path) -> StoreAddress:
    return StoreAddress.parse(tmp_path / "store")


def _target(address: StoreAddress, directory: str = "db") -> ShardTarget:
    scratch = address.path.parent / f"scratch-{uuid4().hex}"
    scratch.mkdir(parents=True)
    return ShardTarget(db_id=7, store=open_store(address), address=address, directory=directory, scratch=scratch)


def _read(address: StoreAddress, directory: str = "db") -> Rows:
    source = ShardSource(
        db_id=7,
        store=open_store(address),
        address=address,
        directory=directory,
        objects=(),
        identity="",
        cache=lambda: address.path.parent / "cache",
    )
    reader = SlateDbReaderFactory().open_reader(source)
    try:
        return dict(reader.scan())
    finally:
        reader.close()


def _build(address: StoreAddress, rows: Rows, directory: str = "db", binding: Any = "auto") -> int:
    with SlateDbFactory(binding=binding).open(_target(address, directory)) as writer:
        writer.write_arrow(arrow(rows))
        return writer.seal().rows


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def _counting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """A list that grows with every call of a function."""
    calls: list[int] = []
    function = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


# -- which way is taken ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unsettled")
@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_amiss_the_shipped_way_is_taken_and_the_log_says_why_once(
    damage: str, address: StoreAddress, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = numbered(200)
    apply, reason = DAMAGES[damage]
    apply(monkeypatch)
    shipped = _counting(monkeypatch, WriteBatch, "put")
    assert _build(address, rows, "one") == _build(address, rows, "two") == len(rows)
    assert len(shipped) >= 2 * len(rows)
    (warning,) = _warnings(caplog)
    assert caplog.records[-1].name.startswith("shardyfusion.")
    assert warning.startswith("SlateDB shards are written by the slatedb package's own put")
    assert re.search(reason, warning), warning
    assert _read(address, "one") == _read(address, "two") == rows


@pytest.mark.usefixtures("unsettled")
@pytest.mark.parametrize("factory", [SlateDbFactory, LocalSlateDbFactory])
def test_rows_are_put_and_counted_directly_unless_told_otherwise(
    factory: Any, address: StoreAddress, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checks = _counting(monkeypatch, direct_calls, "_round_trip")
    put, batches = _counting(monkeypatch, WriteBatch, "put"), _counting(monkeypatch, OpenDatabase, "batches")
    put_rows, count = _counting(monkeypatch, DirectCalls, "put_rows"), _counting(monkeypatch, OpenDatabase, "count")
    for way, shipped in (("shipped", True), ("auto", False), ("auto", False)):
        for seen in (put, batches, put_rows, count):
            seen.clear()
        name = uuid4().hex
        with factory(binding=way).open(_target(address, name)) as writer:
            writer.write_batch([(b"a", b"1"), (b"b", b"2")])
            writer.write_arrow(arrow({b"c": b"3"}))
            assert writer.seal().rows == 3
        assert (len(put), len(batches), len(count)) == ((3, 1, 0) if shipped else (0, 0, 1))
        assert (not put_rows) == shipped
        assert _read(address, name) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert len(checks) == 1, "once per process, and not for those who chose the shipped way"
    assert _warnings(caplog) == []


@pytest.mark.usefixtures("unsettled")
def test_shards_that_begin_together_in_threads_wait_for_one_check(
    address: StoreAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = _counting(monkeypatch, direct_calls, "_round_trip")
    shards = [{b"%d-%05d" % (shard, n): b"%d" % n * (n % 97) for n in range(20_000)} for shard in range(3)]
    with ThreadPoolExecutor(len(shards)) as pool:
        counts = list(pool.map(lambda n: _build(address, shards[n], f"db-{n}"), range(len(shards))))
    assert counts == [20_000] * 3
    assert [_read(address, f"db-{n}") for n in range(3)] == shards
    assert len(checks) == 1


@pytest.mark.usefixtures("unsettled")
def test_nothing_of_the_binding_is_touched_before_a_shard_is_opened() -> None:
    code = "import sys, shardyfusion.slatedb_adapter; print([name for name in sys.modules if 'slatedb.uniffi' in name])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"
    SlateDbFactory()
    assert direct_calls._settled is None


# -- the calls ---------------------------------------------------------------------------------------------------------


def _columns(*pairs: tuple[bytes, bytes]) -> tuple[pa.LargeBinaryArray, pa.LargeBinaryArray]:
    batch = arrow(list(pairs))
    return batch.column("key"), batch.column("value")


def _consumed() -> WriteBatch:
    """A batch that was written already, so that SlateDB refuses every row."""
    from slatedb.uniffi import DbBuilder, ObjectStore

    batch = WriteBatch()
    batch.put(b"k", b"v")

    async def write() -> None:
        database = await DbBuilder("db", ObjectStore.resolve("memory:///")).build()
        await database.write(batch)
        await database.shutdown()

    Bridge(url="test", db_id=7, deadline_seconds=20, failure=ShardWriteError).run("test", write)
    return batch


@pytest.mark.parametrize("key", [b"k", b""], ids=["consumed", "empty key"])
def test_an_error_of_slatedb_is_the_one_that_the_shipped_put_raises(calls: DirectCalls, key: bytes) -> None:
    batch = _consumed() if key else WriteBatch()
    with pytest.raises(binding.Error) as shipped:
        batch.put(key, b"v")
    with pytest.raises(binding.Error) as direct:
        calls.put_rows(batch, *_columns((key, b"v")))
    assert (type(direct.value), str(direct.value)) == (type(shipped.value), str(shipped.value))
    assert type(direct.value) is binding.Error.Invalid


def test_a_panic_of_slatedb_arrives_and_the_process_goes_on(
    calls: DirectCalls, address: StoreAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths that say more than there is, which is what would happen if the form were another."""
    with SlateDbFactory().open(_target(address)) as writer, monkeypatch.context() as patch:
        patch.setattr(direct_calls, "_prefixed", lambda column: _columns((b"", b"\0\0\1\0ab"))[1])
        with pytest.raises(binding.InternalError):
            calls.put_rows(WriteBatch(), *_columns((b"k", b"v")))
        with pytest.raises(ShardWriteError, match=r"cannot write .*db: SlateDB says: "):
            writer.write_batch([(b"k", b"v")])
    assert _build(address, numbered(100), "next") == 100


def test_an_error_in_a_batch_is_one_of_the_shard(address: StoreAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = _consumed()
    with SlateDbFactory().open(_target(address)) as writer, monkeypatch.context() as patch:
        patch.setattr("slatedb.uniffi.WriteBatch", lambda: batch)
        with pytest.raises(ShardWriteError, match=r"SlateDB says: .*already been consumed.*\[db_id=7\]"):
            writer.write_batch([(b"k", b"v")])


def test_columns_of_another_shape_are_refused_before_an_address_is_taken(calls: DirectCalls) -> None:
    good, batch = _columns((b"k", b"v"))[0], WriteBatch()
    for bad in (pa.array([b"v"], pa.binary()), pa.array([None], pa.large_binary()), pa.array(["v"])):
        for columns in ((good, bad), (bad, good)):
            with pytest.raises(TypeError, match="large_binary"):
                calls.put_rows(batch, *columns)
    with pytest.raises(ValueError, match="zip"):
        calls.put_rows(batch, good, good[:0])


@pytest.mark.parametrize("way", ["auto", "shipped"])
def test_pairs_that_are_no_bytes_are_refused(way: Any, address: StoreAddress) -> None:
    with SlateDbFactory(binding=way).open(_target(address)) as writer:
        for bad in ("text", None):
            for pair in ((b"k", bad), (bad, b"v")):
                with pytest.raises(TypeError):
                    writer.write_batch([pair])
        writer.write_batch([(bytearray(b"k"), memoryview(b"v"))])
        assert writer.seal().rows == 1


@pytest.mark.parametrize("way", ["auto", "shipped"])
def test_a_value_that_cannot_cross_is_refused_with_its_length(way: Any, address: StoreAddress) -> None:
    """Memory that is never touched, so that it is not really there: only lengths are looked at."""
    keys, size = _columns((b"k", b""))[0], MAX_LOWERED_BYTES + 1
    buffers = [None, pa.py_buffer(array("q", [0, size])), pa.py_buffer(mmap.mmap(-1, size))]
    values = pa.Array.from_buffers(pa.large_binary(), 1, buffers)
    with SlateDbFactory(binding=way).open(_target(address)) as writer:
        with pytest.raises(InputDataError, match=f"a value of {size} bytes cannot be stored in .*db: {size - 1} is"):
            writer.write_arrow(pa.record_batch([keys, values], names=["key", "value"]))
        writer.write_batch([(b"k", b"v")])
        assert writer.seal().rows == 1
    with pytest.raises(ValueError, match=str(size)):
        direct_calls._prefixed(values)


def test_large_rows_are_counted_a_few_at_a_time(
    calls: DirectCalls, address: StoreAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    next_count = DirectCalls.next_count

    async def noted(self: DirectCalls, rows: Any, most: int) -> int:
        asked.append(most)
        return await next_count(self, rows, most)

    monkeypatch.setattr(DirectCalls, "next_count", noted)
    rows = {b"%03d" % n: bytes(1_500_000 if n == 5 else 10) for n in range(9)}
    assert _build(address, rows) == 9
    assert asked == [2, 2, 2, 2, 2]
    asked.clear()
    assert _build(address, {b"k": b"v"}, "small") == 1
    assert asked == [8192]


def test_a_damaged_table_is_not_counted(calls: DirectCalls, address: StoreAddress) -> None:
    assert _build(address, numbered(20_000)) == 20_000
    (table,) = (address.path / "db/compacted").iterdir()
    whole = table.read_bytes()
    bridge = Bridge(url="u", db_id=1, deadline_seconds=20, failure=ShardUnavailableError)
    for at in range(100, len(whole) // 2, len(whole) // 20):
        table.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        database = OpenDatabase(bridge, local_place(address.path / "db"), cache_bytes=1024)
        with pytest.raises(ShardUnavailableError, match="SlateDB says"):
            database.count(calls, row_bytes=100)
        database.close()
    table.write_bytes(whole)
    database = OpenDatabase(bridge, local_place(address.path / "db"), cache_bytes=1024)
    assert [database.count(calls, row_bytes=size) for size in (1, 100, 10**9)] == [20_000] * 3
    database.close()


def test_nothing_is_kept_of_rows_that_were_put_or_refused() -> None:
    """Half a million rows: if their keys stayed it would be 16 MB, and more for values, batches, or rows refused."""
    ran = subprocess.run([sys.executable, "-c", _LEAKS], capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    grown = {name: int(size) for name, size in (line.split() for line in ran.stdout.splitlines())}
    assert set(grown) == {"fill", "refuse"}
    assert max(grown.values()) < 8 * 2**20, grown


def test_nothing_is_kept_of_rows_that_were_counted(calls: DirectCalls, address: StoreAddress) -> None:
    import psutil

    _build(address, {b"%06d" % n: bytes(1000) for n in range(10_000)})
    bridge = Bridge(url="u", db_id=1, deadline_seconds=20, failure=ShardUnavailableError)
    database = OpenDatabase(bridge, local_place(address.path / "db"), cache_bytes=1024)
    sizes: list[int] = []
    for _ in range(12):
        assert database.count(calls, row_bytes=1100) == 10_000
        sizes.append(psutil.Process().memory_info().rss)
    database.close()
    assert sizes[-1] - sizes[3] < 30 * 2**20, "8 times 10 MB were read"


# -- the option --------------------------------------------------------------------------------------------------------


def _config(prefix: Path, factory: Any) -> HashShardedWriteConfig:
    return HashShardedWriteConfig(s3_prefix=prefix, num_dbs=2, run_id="nightly", adapter_factory=factory)


def test_a_run_that_began_one_way_is_finished_the_other_way(tmp_path: Path) -> None:
    ddf, columns = (
        frame_of(key=[1, 2, 3, 4], v=["a", "b", "c", "d"]),
        ColumnWriteInput("key", ValueSpec.binary_col("v")),
    )
    (tmp_path / "manifests").write_text("in the way")
    with pytest.raises(PublishManifestError):
        write_hash_sharded(ddf, _config(tmp_path, SlateDbFactory(binding="shipped")), columns)
    (tmp_path / "manifests").unlink()
    result = write_hash_sharded(ddf, _config(tmp_path, SlateDbFactory()), columns)
    assert result.reused
    assert contents(tmp_path) == {n.to_bytes(8, "big"): b" abcd"[n : n + 1] for n in range(1, 5)}


@pytest.mark.parametrize("factory", [SlateDbFactory, LocalSlateDbFactory])
def test_the_way_is_no_part_of_the_request(tmp_path: Path, factory: Any) -> None:
    columns = ColumnWriteInput("key", ValueSpec.binary_col("v"))

    def request(**settings: Any) -> str:
        return request_fingerprint(_config(tmp_path, factory(**settings)), columns, {"key": "int64", "v": "string"})

    assert request(binding="shipped") == request(binding="auto") == request()
    assert request(sst_bytes=2**20) != request()
