"""What only SlateDB shards have: forks, deadlines, many tables, other versions' readers, and no clean way to fail."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
import xxhash

from shardyfusion.credentials import S3Credentials, StaticCredentialProvider
from shardyfusion.errors import (
    ConfigValidationError,
    InputDataError,
    ShardTimeoutError,
    ShardUnavailableError,
    ShardWriteError,
)
from shardyfusion.manifest.models import ShardObject
from shardyfusion.shard_contract import SealedShard, ShardSource, ShardTarget
from shardyfusion.slatedb_adapter import LocalSlateDbFactory, SlateDbFactory, SlateDbReaderFactory
from shardyfusion.slatedb_adapter import bridge as bridge_module
from shardyfusion.slatedb_adapter import writer as writer_module
from shardyfusion.slatedb_adapter.bridge import Bridge
from shardyfusion.slatedb_adapter.reader import OpenDatabase
from shardyfusion.slatedb_adapter.settings import Place, local_place
from shardyfusion.sqlite_adapter import SqliteReaderFactory
from shardyfusion.storage import StoreAddress, open_store, s3_connection
from shardyfusion.storage.durable import sync_path

_FORK = """
import os, sys
from pathlib import Path
from shardyfusion.shard_contract import ShardSource, ShardTarget
from shardyfusion.slatedb_adapter import SlateDbFactory, SlateDbReaderFactory
from shardyfusion.storage import StoreAddress, open_store

root = Path(sys.argv[1])
address = StoreAddress.parse(root)
store = open_store(address)

def target(name):
    (root / f"scratch-{name}").mkdir()
    return ShardTarget(db_id=1, store=store, address=address, directory=name, scratch=root / f"scratch-{name}")

source = ShardSource(db_id=1, store=store, address=address, directory="a", objects=(), identity="", cache=lambda: root / "c")
SlateDbFactory().check(address)
if not os.fork():  # only imported so far: a child may use it
    with SlateDbFactory().open(target("child")) as writer:
        writer.write_batch([(b"k", b"v")])
        os._exit(0 if writer.seal().rows == 1 else 3)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
with SlateDbFactory().open(target("a")) as writer:
    writer.write_batch([(b"k", b"v")])
    writer.seal()
reader = SlateDbReaderFactory().open_reader(source)
unsealed = SlateDbFactory().open(target("b"))
if not os.fork():
    unsealed.close()
    reader.close()
    for attempt in (lambda: reader.get(b"k"), lambda: SlateDbReaderFactory().open_reader(source),
                    lambda: SlateDbFactory().open(target("d"))):
        try:
            attempt()
        except Exception as exc:
            print(type(exc).__name__, exc, flush=True)
    os._exit(0)
os.wait()
assert reader.get(b"k") == b"v"
unsealed.write_batch([(b"k", b"v")])
assert unsealed.seal().rows == 1
# Left open on purpose: the interpreter must end all the same.
"""


class Rotating:
    """New credentials every time."""

    asked = 0

    def resolve(self) -> S3Credentials:
        self.asked += 1
        return S3Credentials(access_key_id=f"key{self.asked}", secret_access_key="secret")


class _Sleeper:
    def __init__(self) -> None:
        self.woken = threading.Event()

    async def block(self) -> None:
        self.woken.wait(30)


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that accepts connections and never answers."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    for connection in held:
        connection.close()


def _target(address: StoreAddress, root: Path, directory: str = "db") -> ShardTarget:
    scratch = root / f"scratch-{uuid4().hex}"
    scratch.mkdir(parents=True)
    return ShardTarget(db_id=7, store=open_store(address), address=address, directory=directory, scratch=scratch)


def _source(address: StoreAddress, root: Path, sealed: SealedShard | None = None, directory: str = "db") -> ShardSource:
    return ShardSource(
        db_id=7,
        store=open_store(address),
        address=address,
        directory=directory,
        objects=sealed.objects if sealed else (),
        identity="",
        cache=lambda: root / "cache",
    )


@pytest.fixture(params=["auto", "shipped"])
def way(request: pytest.FixtureRequest) -> Any:
    """How rows go through the binding."""
    return request.param


def _build(address: StoreAddress, root: Path, rows: int = 100) -> SealedShard:
    with SlateDbFactory().open(_target(address, root)) as writer:
        writer.write_batch((b"%06d" % n, b"v" * n) for n in range(rows))
        return writer.seal()


def _run(call) -> object:
    bridge = Bridge(url="test", db_id=7, deadline_seconds=20, failure=ShardUnavailableError)
    return bridge.run("test", call)


def _visit_as_other_readers_do(place: Place) -> None:
    """The default mode keeps a checkpoint in a new manifest while it is open, and another one when it closes."""
    from slatedb.uniffi import DbReaderBuilder

    async def visit() -> None:
        reader = await DbReaderBuilder(place.path, place.store).build()
        await reader.shutdown()

    _run(visit)


def test_a_forked_child_gets_a_clear_error_and_a_fresh_one_works(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FORK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "ReaderStateError",
        "ForkedProcessError",
        "ForkedProcessError",
    ]
    assert all("fork" in line and "spawn" in line for line in lines[1:])


def test_an_endpoint_that_never_answers_costs_the_deadline_and_no_more(silent: str, tmp_path: Path) -> None:
    address = StoreAddress.parse(
        "s3://bucket/snap",
        credential_provider=StaticCredentialProvider("key", "secret"),
        options={"endpoint_url": silent},
    )
    reads, writes = SlateDbReaderFactory(deadline_seconds=0.3), SlateDbFactory(deadline_seconds=0.3)
    with pytest.raises(
        ShardTimeoutError, match=r"s3://bucket/snap/db at http://127.*: SlateDB gave no answer in 0.3 seconds"
    ):
        reads.open_reader(_source(address, tmp_path))
    with pytest.raises(ShardWriteError, match=r"create s3://bucket/snap/db at http://127.*: SlateDB gave no answer"):
        writes.open(_target(address, tmp_path))
    local = StoreAddress.parse(tmp_path / "store")
    assert _build(local, tmp_path).rows == 100, "the loop still works"


def test_a_loop_that_is_stuck_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "_ANSWER_SECONDS", 0.05)
    bridge = Bridge(url="u", db_id=1, deadline_seconds=0.1, failure=ShardUnavailableError)
    sleeper = _Sleeper()
    with pytest.raises(ShardTimeoutError, match="no answer"):
        bridge.run("read", sleeper.block)

    async def answer() -> int:
        return 42

    assert bridge.run("read", answer, deadline_seconds=5) == 42
    sleeper.woken.set()


def test_a_read_that_is_cancelled_at_exit_is_an_error_of_ours() -> None:
    bridge = Bridge(url="u", db_id=1, deadline_seconds=5, failure=ShardUnavailableError)

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(ShardUnavailableError, match="cannot read u: the interpreter is shutting down"):
        bridge.run("read", cancelled)


def test_a_store_that_does_not_answer_for_now_is_worth_another_try(tmp_path: Path) -> None:
    address = StoreAddress.parse(
        "s3://bucket/snap",
        credential_provider=Rotating(),
        options={"endpoint_url": "http://127.0.0.1:9", "max_attempts": 1, "connect_timeout": 0.5},
    )
    recorded = ShardObject(path="manifest/1.manifest", size=1, sha256="")
    source = replace(_source(address, tmp_path), objects=(recorded,))
    with pytest.raises(ShardTimeoutError, match="shard 7 cannot be read from s3://bucket/snap/db") as caught:
        SlateDbReaderFactory().open_reader(source)
    assert caught.value.retryable


def test_a_provider_is_asked_once_per_shard_and_no_client_is_made_for_it(s3_prefix: str, tmp_path: Path) -> None:
    address = StoreAddress.parse(s3_prefix)
    sealed = _build(address, tmp_path)
    source = _source(address, tmp_path, sealed)
    provider = Rotating()
    rotating = replace(source, address=replace(address, credential_provider=provider))
    clients = len(s3_connection._clients)
    for _ in range(3):
        SlateDbReaderFactory().open_reader(rotating).close()
    assert provider.asked == 3
    with SlateDbFactory().open(replace(_target(address, tmp_path, "other"), address=rotating.address)) as writer:
        writer.write_batch([(b"k", b"v")])
    assert provider.asked == 4
    assert len(s3_connection._clients) == clients


def test_a_ca_bundle_of_the_environment_is_refused_where_it_matters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SlateDB would not trust what boto3 trusts. Without TLS there is nothing to trust."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path))
    for scheme in ("https", "http"):
        address = StoreAddress.parse(
            "s3://bucket/snap",
            credential_provider=StaticCredentialProvider("key", "secret"),
            options={"endpoint_url": f"{scheme}://127.0.0.1:9"},
        )
        if scheme == "http":
            SlateDbFactory().check(address)
        else:
            with pytest.raises(ConfigValidationError, match=f"verify_ssl.*{tmp_path}.*AWS_CA_BUNDLE"):
                SlateDbFactory().check(address)


@pytest.mark.parametrize("seconds", [0, float("inf"), float("nan"), 1e300, "5", None])
def test_deadlines_that_cannot_be_waited_for_are_refused(seconds: float) -> None:
    for factory in (SlateDbReaderFactory, SlateDbFactory, LocalSlateDbFactory):
        with pytest.raises(ConfigValidationError, match="deadline_seconds"):
            factory(deadline_seconds=seconds)


def test_batches_are_small_where_rows_are_large(tmp_path: Path, way: Any) -> None:
    address = StoreAddress.parse(tmp_path / "store")
    sizes = [3_000_000] * 8 + [10] * 99
    with SlateDbFactory(deadline_seconds=60, binding=way).open(_target(address, tmp_path)) as writer:
        writer.write_batch((b"%06d" % n, bytes(size)) for n, size in enumerate(sizes))
        assert writer.seal().rows == len(sizes)
    bridge = Bridge(url="u", db_id=1, deadline_seconds=60, failure=ShardUnavailableError)
    database = OpenDatabase(bridge, local_place(tmp_path / "store/db"), cache_bytes=1024)
    counts = [len(batch) for batch in database.batches()]
    database.close()
    assert counts[:5] == [4, 1, 1, 1, 1]
    assert sum(counts) == len(sizes)


def test_more_tables_than_slatedb_takes_by_default(tmp_path: Path, way: Any) -> None:
    address = StoreAddress.parse(tmp_path / "store")
    value = bytes(250_000)
    with SlateDbFactory(sst_bytes=1024 * 1024, deadline_seconds=60, binding=way).open(
        _target(address, tmp_path)
    ) as writer:
        for n in range(12):
            writer.write_batch((b"%02d-%02d" % (n, i), value) for i in range(8))
        sealed = writer.seal()
    assert sealed.rows == 96
    assert sum(found.path.startswith("compacted/") for found in sealed.objects) > 8
    assert sum(found.path.startswith("wal/") and found.size > 0 for found in sealed.objects) == 0
    reader = SlateDbReaderFactory().open_reader(_source(address, tmp_path, sealed))
    assert reader.get(b"00-00") == value
    assert sum(1 for _ in reader.scan()) == 96
    reader.close()


def test_manifests_that_other_readers_leave_behind_are_fine_and_changes_are_not(tmp_path: Path) -> None:
    from slatedb.uniffi import DbBuilder

    address = StoreAddress.parse(tmp_path / "store")
    sealed = _build(address, tmp_path)
    source = _source(address, tmp_path, sealed)
    before = sum(1 for _ in source.store.list("db/manifest/"))
    _visit_as_other_readers_do(local_place(address.path / "db"))
    assert sum(1 for _ in source.store.list("db/manifest/")) > before
    reader = SlateDbReaderFactory().open_reader(source)
    assert reader.get(b"000007") == b"v" * 7
    reader.close()

    async def change() -> None:
        place = local_place(address.path / "db")
        database = await DbBuilder(place.path, place.store).build()
        await database.delete(b"000007")
        await database.shutdown()

    _run(change)
    with pytest.raises(ShardUnavailableError, match="changed after it was published"):
        SlateDbReaderFactory().open_reader(source)


def test_a_sealed_shard_in_a_directory_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[Path, int] = {}

    def sync(path: Path) -> None:
        synced[path] = path.stat().st_size if path.is_file() else -1
        sync_path(path)

    monkeypatch.setattr(writer_module, "sync_path", sync)
    address = StoreAddress.parse(tmp_path / "store")
    sealed = _build(address, tmp_path)
    files = {tmp_path / "store/db" / found.path: found.size for found in sealed.objects}
    assert len(files) >= 3
    assert {path: size for path, size in synced.items() if size >= 0} == files, "each as large as it stayed"
    assert {tmp_path / "store/db", *(path.parent for path in files)} <= set(synced)


def test_a_shard_that_the_disk_does_not_take_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(path: Path) -> None:
        if path.suffix == ".sst" and path.stat().st_size:
            raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(writer_module, "sync_path", sync)
    address = StoreAddress.parse(tmp_path / "store")
    with SlateDbFactory().open(_target(address, tmp_path)) as writer:
        writer.write_batch([(b"k", b"v")])
        with pytest.raises(OSError, match="the disk is broken"):
            writer.seal()
    assert list(open_store(address).list()) == []


def test_a_database_that_is_not_there_is_unavailable_at_once(tmp_path: Path, s3_prefix: str) -> None:
    reads = SlateDbReaderFactory()
    for prefix in (str(tmp_path / "nothing"), s3_prefix, f"memory://{uuid4().hex}"):
        address = StoreAddress.parse(prefix)
        with pytest.raises(ShardUnavailableError, match=r"/db(: | at http://127)"):
            reads.open_reader(_source(address, tmp_path))


def test_a_record_without_a_manifest_of_slatedb_is_unavailable(tmp_path: Path) -> None:
    address = StoreAddress.parse(tmp_path / "store")
    sealed = _build(address, tmp_path)
    tables = tuple(found for found in sealed.objects if not found.path.startswith("manifest/"))
    with pytest.raises(ShardUnavailableError, match="without a manifest"):
        SlateDbReaderFactory().open_reader(_source(address, tmp_path, replace(sealed, objects=tables)))


def test_a_damaged_table_never_gives_a_wrong_value(tmp_path: Path) -> None:
    address = StoreAddress.parse(tmp_path / "store")
    sealed = _build(address, tmp_path)
    table = next(found for found in sealed.objects if found.path.startswith("compacted/"))
    path = tmp_path / "store/db" / table.path
    whole = path.read_bytes()
    raised = 0
    for at in (*range(5, len(whole), len(whole) // 12), len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            reader = SlateDbReaderFactory(deadline_seconds=5).open_reader(_source(address, tmp_path, sealed))
            try:
                assert list(reader.scan()) == [(b"%06d" % n, b"v" * n) for n in range(100)]
            finally:
                reader.close()
        except ShardUnavailableError:
            raised += 1
    assert raised >= 10, "all but flips in the table's statistics"


def test_s3_options_that_slatedb_cannot_take_still_read_through_a_copy(s3_prefix: str, tmp_path: Path) -> None:
    odd = StoreAddress.parse(f"{s3_prefix}/~odd")
    with LocalSlateDbFactory().open(_target(odd, tmp_path)) as writer:
        writer.write_batch([(b"k", b"v")])
        sealed = writer.seal()
    source = _source(odd, tmp_path, sealed)
    before = list(source.store.list())
    reader = SlateDbReaderFactory().open_reader(source)
    assert reader.get(b"k") == b"v"
    assert len(list(source.cache().iterdir())) == 1
    reader.close()
    assert list(source.cache().iterdir()) == []
    assert list(source.store.list()) == before
    dropped = SlateDbReaderFactory().open_reader(source)
    assert len(list(source.cache().iterdir())) == 1
    del dropped
    gc.collect()
    assert list(source.cache().iterdir()) == []
    damaged = [replace(found, sha256="0" * 64) if "compacted" in found.path else found for found in sealed.objects]
    with pytest.raises(ShardUnavailableError, match="damaged"):
        SlateDbReaderFactory().open_reader(replace(source, objects=tuple(damaged)))
    assert list(source.cache().iterdir()) == []


def test_keys_that_slatedb_would_lose_are_refused(tmp_path: Path, way: Any) -> None:
    address = StoreAddress.parse(tmp_path / "store")
    with SlateDbFactory(binding=way).open(_target(address, tmp_path)) as writer:
        for bad in (b"", b"x" * 65_536):
            arrow = pa.record_batch([pa.array([bad], pa.large_binary())] * 2, names=["key", "value"])
            for write in (
                lambda bad=bad: writer.write_batch([(bad, b"v")]),
                lambda arrow=arrow: writer.write_arrow(arrow),
            ):
                with pytest.raises(InputDataError, match=f"a key of {len(bad)} bytes .*store/db"):
                    write()
        writer.write_batch([(b"k", b"v")])
        assert writer.seal().rows == 1


def test_errors_of_slatedb_are_translated_with_the_shard_they_are_about(tmp_path: Path) -> None:
    bridge = Bridge(url="file:///x/db", db_id=7, deadline_seconds=20, failure=ShardWriteError)
    with (
        pytest.raises(ShardWriteError, match=r"cannot open file:///x/db: SlateDB says.*\[db_id=7\]"),
        bridge.calling("open"),
    ):
        local_place(tmp_path / "absent")


def test_a_shard_that_the_reference_wrote_reads_with_its_log_and_stays_as_it_is(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "golden" / "upstream-0.1.0.tar.gz") as archive:
        wanted = [m for m in archive.getmembers() if "_int/shards" in m.name and "db=00000" in m.name]
        archive.extractall(tmp_path, members=wanted, filter="data")
        expected = json.loads(archive.extractfile("./expected.json").read())

    def shard_of(key: int) -> int:
        return xxhash.xxh3_64_intdigest(key.to_bytes(8, "little")) % 5

    for name, factory in (("hash_slatedb_int", SlateDbReaderFactory()), ("hash_sqlite_int", SqliteReaderFactory())):
        root = tmp_path / "bucket" / name
        address = StoreAddress.parse(root)
        (directory,) = [path.relative_to(root).as_posix() for path in root.glob("shards/*/*/attempt=00")]
        before = list(open_store(address).list())
        reader = factory.open_reader(_source(address, tmp_path, directory=directory))
        rows = dict(reader.scan())
        reader.close()
        ours = {
            int(row[0]).to_bytes(8, "big"): row[3].encode() for row in expected[name]["rows"] if shard_of(row[0]) == 0
        }
        assert rows == ours != {}
        assert list(open_store(address).list()) == before
