"""No call waits for ever: a dead endpoint is an error within the configured time, and the error names the URL."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dask
import pytest

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    LocalSlateDbFactory,
    S3ConnectionOptions,
    ShardedReader,
    SlateDbFactory,
    SlateDbReaderFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.commits import Patience
from shardyfusion.errors import (
    PublishUnknownError,
    ShardUnavailableError,
    ShardWriteError,
    ShardyfusionError,
    StoreUnavailableError,
)
from shardyfusion.shard_contract import ShardTarget
from shardyfusion.storage import ObjectStore, PendingUpload, StoreAddress, open_store, s3, s3_deadline
from shardyfusion.writer.dask import pipeline, write_hash_sharded
from tests.faults.dead_endpoints import (
    Pace,
    Proxy,
    closed_port,
    dripping_body,
    dripping_head,
    dripping_server,
    proxied,
    silent_port,
)
from tests.protocol.tiny_writes import runs_of, served_version, write
from tests.writer.frames import make_rows, parquet_frame

SECONDS = 0.3
TEXT = "text/plain"
MIB = 1024 * 1024
ROWS = make_rows(4_000)
PAYLOAD = ColumnWriteInput("id", ValueSpec.binary_col("payload"))
DEAD = {
    "closed": closed_port,
    "silent": silent_port,
    "dripping-head": dripping_head,
    "dripping-body": dripping_body,
}


def options(endpoint: str, max_attempts: int = 1, seconds: float = SECONDS) -> S3ConnectionOptions:
    return S3ConnectionOptions(
        endpoint_url=endpoint, connect_timeout=seconds, read_timeout=seconds, max_attempts=max_attempts
    )


@contextmanager
def ends(
    within: float, error: type[ShardyfusionError], *said: str
) -> Iterator[pytest.ExceptionInfo[ShardyfusionError]]:
    """An error of ours that says all of it, and not after `within` seconds: far below a test's timeout, far above what
    a busy machine needs."""
    started = time.monotonic()
    with pytest.raises(error) as caught:
        yield caught
    assert all(text in str(caught.value) for text in said), f"{said} in {caught.value}"
    assert time.monotonic() - started < within, f"{error.__name__} came late: {caught.value}"


@pytest.fixture(params=DEAD)
def dead(request: pytest.FixtureRequest, s3: str) -> Iterator[str]:
    with DEAD[request.param]() as url:
        yield url


@pytest.fixture
def proxy(s3: str) -> Iterator[Proxy]:
    with proxied(s3) as proxy:
        yield proxy


def target(prefix: str, endpoint: str, scratch: Path) -> ShardTarget:
    address = StoreAddress.parse(prefix, options=options(endpoint))
    return ShardTarget(db_id=7, store=open_store(address), address=address, directory="shards/x", scratch=scratch)


def test_a_write_fails_before_the_input_is_read(dead: str, tmp_path: Path) -> None:
    def never(part: Any) -> Any:
        raise AssertionError("the input was read")

    frame = parquet_frame(ROWS, tmp_path / "in", 2)
    config = HashShardedWriteConfig(
        num_dbs=2, s3_prefix="s3://bucket/snap", adapter_factory=SqliteFactory(), s3_connection_options=options(dead)
    )
    with (
        dask.config.set(scheduler="synchronous"),
        ends(20, StoreUnavailableError, "s3://bucket/snap/runs/", dead),
    ):
        write_hash_sharded(frame.map_partitions(never, meta=frame._meta), config, PAYLOAD)


def test_a_reader_does_not_open(dead: str) -> None:
    with ends(20, StoreUnavailableError, "s3://bucket/snap/_CURRENT", dead):
        ShardedReader("s3://bucket/snap", s3_connection_options=options(dead))


def calls_of(store: ObjectStore, directory: Path, big: Path) -> dict[str, Callable[[], object]]:
    """Every call of a store that asks it something."""
    small = directory / "small"
    small.write_bytes(b"x" * 1_000)
    return {
        "get": lambda: store.get("a"),
        "head": lambda: store.head("a"),
        "put": lambda: store.put("a", b"x", content_type=TEXT),
        "create": lambda: store.create("a", b"x", content_type=TEXT),
        "replace": lambda: store.replace("a", b"x", etag='"e"', content_type=TEXT),
        "upload": lambda: store.upload("a", small, content_type=TEXT),
        "multipart upload": lambda: store.upload("a", big, content_type=TEXT),
        "download": lambda: store.download("a", directory / "copy"),
        "list": lambda: list(store.list()),
        "delete": lambda: store.delete(["a", "b"]),
        "pending_uploads": lambda: list(store.pending_uploads()),
        "abort_uploads": lambda: store.abort_uploads([PendingUpload("a", "id", datetime.now(UTC))]),
        "now": lambda: store.now(),
    }


def test_every_call_of_a_store_ends(
    dead: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says where; of what drips also how long it had."""
    monkeypatch.setattr(s3_deadline, "SLOWEST_BYTES_PER_SECOND", 8 * MIB)  # or the first MiB of a file has 16 seconds
    (tmp_path / "big").write_bytes(bytes(17 * MIB))
    store = open_store(StoreAddress.parse("s3://bucket/snap", options=options(dead, max_attempts=2)))
    calls = calls_of(store, tmp_path, tmp_path / "big")
    drips = "dripping" in request.node.callspec.id
    if "dripping-body" in request.node.callspec.id:
        del calls["head"]  # its answer has no body

    def check(name: str) -> None:
        with ends(20, StoreUnavailableError, "s3://bucket/snap", dead) as caught:
            calls[name]()
        limits = "connect_timeout=0.3, read_timeout=0.3 and max_attempts=2 allow"
        assert not drips or limits in str(caught.value), f"{name}: {caught.value}"

    with ThreadPoolExecutor(len(calls)) as threads:
        list(threads.map(check, calls))


def test_the_requests_behind_others_end(s3: str, tmp_path: Path) -> None:
    """The look for the bucket, after a 404, and deletions one by one, where many at once are not taken."""
    with dripping_server() as server:
        server.prompt = {"HEAD /bucket/snap/a": (404, ""), "GET /bucket/snap/a": (404, "")}
        for look in (lambda store: store.head("a"), lambda store: store.download("a", tmp_path / "copy")):
            with ends(20, StoreUnavailableError, "bucket of s3://bucket/snap", server.url, "did not end"):
                look(open_store(StoreAddress.parse("s3://bucket/snap", options=options(server.url))))
        server.prompt = {"POST /bucket?delete": (501, ""), "DELETE /bucket/snap/a": (204, "")}
        with ends(20, StoreUnavailableError, "delete from s3://bucket/snap", server.url, "did not end"):
            open_store(StoreAddress.parse("s3://bucket/snap", options=options(server.url))).delete(["a", "b"])
        assert server.requests[-1] == "DELETE /bucket/snap/b"


def test_the_second_page_and_the_second_batch_end(s3_prefix: str, proxy: Proxy) -> None:
    near = open_store(StoreAddress.parse(s3_prefix))
    for name in range(60):
        near.put(f"{name:02d}", b"", content_type=TEXT)
    store = open_store(StoreAddress.parse(s3_prefix, options=options(proxy.url, seconds=1)))
    names = store.list()
    assert next(names).name == "00"
    assert store.now()  # so that the connection to be used is there
    proxy.drip()
    with ends(20, StoreUnavailableError, "list", s3_prefix, proxy.url, "did not end"):
        list(names)

    def more() -> Iterator[str]:
        yield from (str(name) for name in range(1_000))
        proxy.drip()
        yield "last"

    with proxied(proxy.target) as proxy:
        store = open_store(StoreAddress.parse(s3_prefix, options=options(proxy.url, seconds=1)))
        with ends(20, StoreUnavailableError, "delete from", s3_prefix, proxy.url, "did not end"):
            store.delete(more())


def test_a_transfer_that_begins_to_drip_ends(
    s3_prefix: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as any other: the seconds that so many bytes may take are not saved up for it."""
    monkeypatch.setattr(s3_deadline, "SLOWEST_BYTES_PER_SECOND", MIB)
    (tmp_path / "big").write_bytes(bytes(32 * MIB))
    store = open_store(StoreAddress.parse(s3_prefix, options=options(proxy.url, seconds=1)))
    proxy.drip_from(b"PUT ")
    with ends(20, StoreUnavailableError, "upload", f"{s3_prefix}/a", proxy.url, "did not end"):
        store.upload("a", tmp_path / "big", content_type=TEXT)
    open_store(StoreAddress.parse(s3_prefix)).upload("a", tmp_path / "big", content_type=TEXT)
    with proxied(proxy.target) as proxy:
        proxy.drip_from(f"bytes={s3.MULTIPART_BYTES}-".encode())  # the second part
        store = open_store(StoreAddress.parse(s3_prefix, options=options(proxy.url, seconds=1)))
        with ends(20, StoreUnavailableError, "download", f"{s3_prefix}/a", proxy.url, "did not end"):
            store.download("a", tmp_path / "copy")


@pytest.fixture
def slow_options(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], S3ConnectionOptions]:
    """Of calls that may last for 5 s, at a slowest rate of 1 MiB/s. Files have one more second in advance.

    The connect timeout also bounds how long the kernel may take no more of a request.
    """
    monkeypatch.setattr(s3_deadline, "SLOWEST_BYTES_PER_SECOND", MIB)
    return lambda endpoint: S3ConnectionOptions(
        endpoint_url=endpoint, connect_timeout=2, read_timeout=3, max_attempts=1
    )


@pytest.mark.parametrize("verb", ["download", "get", "put"])
def test_what_is_slow_and_moves_is_not_given_up(
    verb: str, s3_prefix: str, proxy: Proxy, tmp_path: Path, slow_options: Callable[[str], S3ConnectionOptions]
) -> None:
    body = bytes(range(256)) * (24 * MIB // 256)
    near = open_store(StoreAddress.parse(s3_prefix))
    near.put("a", body, content_type=TEXT)
    store = open_store(StoreAddress.parse(s3_prefix, options=slow_options(proxy.url)))
    proxy.throttle(3 * MIB)
    started = time.monotonic()
    match verb:
        case "download":
            store.download("a", tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == body
        case "get":
            assert store.get("a").body == body
        case _:
            store.put("b", body, content_type=TEXT)
            assert near.get("b").body == body
    assert time.monotonic() - started > 5 + 1, "it was not slow"


def test_an_upload_that_is_slow_and_moves_is_not_given_up(
    s3: str, tmp_path: Path, slow_options: Callable[[str], S3ConnectionOptions]
) -> None:
    """To a server of our own: moto takes one body after the other, and the kernel takes megabytes before it does."""
    (tmp_path / "big").write_bytes(bytes(70 * MIB))
    begun = "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>"
    with dripping_server() as server:
        server.pace = Pace(10 * MIB)  # four parts share it, and what the kernel holds of one must not take 3 seconds
        server.prompt = {"POST /bucket/snap/a?uploads": (200, begun), "": (200, "<CompleteMultipartUploadResult/>")}
        started = time.monotonic()
        store = open_store(StoreAddress.parse("s3://bucket/snap", options=slow_options(server.url)))
        store.upload("a", tmp_path / "big", content_type=TEXT)
        assert time.monotonic() - started > 5 + 1, "it was not slow"
        assert sorted(request.split()[0] for request in server.requests) == ["POST"] * 2 + ["PUT"] * 5


def test_a_commit_whose_answer_drips_is_unknown(s3_prefix: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither published nor failed, for the writer: here it has landed, and the same run says so."""
    ticks = itertools.count()
    monkeypatch.setattr(
        pipeline, "Patience", lambda: Patience(deadline_seconds=2, pause_seconds=0, clock=ticks.__next__)
    )
    proxy.drip_from(f"PUT /{s3_prefix.removeprefix('s3://')}/commits/".encode())
    with dask.config.set(scheduler="synchronous"):
        with ends(60, PublishUnknownError, s3_prefix) as caught:
            write(s3_prefix, "run", s3_connection_options=options(proxy.url, seconds=1))
        assert isinstance(caught.value.__cause__, StoreUnavailableError)
        assert "did not end" in str(caught.value.__cause__)
        assert runs_of(s3_prefix) == ["run"]
        assert write(s3_prefix, "run").reused
        assert (runs_of(s3_prefix), served_version(s3_prefix)) == (["run"], "run")


def test_slatedb_does_not_create(dead: str, tmp_path: Path) -> None:
    factory = SlateDbFactory(deadline_seconds=SECONDS)
    with ends(30, ShardWriteError, f"s3://bucket/snap/shards/x at {dead}"):
        factory.open(target("s3://bucket/snap", dead, tmp_path))


@pytest.mark.parametrize("after", ["opening", "writing"])
def test_an_endpoint_that_dies_under_a_slatedb_writer(after: str, s3_prefix: str, proxy: Proxy, tmp_path: Path) -> None:
    factory = SlateDbFactory(deadline_seconds=2, sst_bytes=1024 * 1024)
    with factory.open(target(s3_prefix, proxy.url, tmp_path)) as adapter:
        if after == "opening":
            proxy.silence()
        adapter.write_batch((b"%08d" % n, b"v" * 100) for n in range(100))
        proxy.silence()
        with ends(30, ShardWriteError, f"{s3_prefix}/shards/x at {proxy.url}"):
            adapter.seal()


@pytest.mark.parametrize(
    "factory", [SqliteFactory(), SlateDbFactory(), LocalSlateDbFactory()], ids=["sqlite", "slatedb", "slatedb-local"]
)
def test_an_endpoint_that_dies_under_a_reader(factory: Any, s3_prefix: str, proxy: Proxy, tmp_path: Path) -> None:
    """What was open and cached goes on; a shard that has to be asked for is unavailable, not absent."""
    config = HashShardedWriteConfig(num_dbs=2, s3_prefix=s3_prefix, adapter_factory=factory)
    with dask.config.set(scheduler="synchronous"):
        write_hash_sharded(parquet_frame(ROWS, tmp_path / "in", 2), config, PAYLOAD)
    readers = None if factory.backend == "sqlite" else SlateDbReaderFactory(deadline_seconds=2)
    with ShardedReader(s3_prefix, reader_factory=readers, s3_connection_options=options(proxy.url)) as reader:
        by_shard = {reader.route_key(key): key for key in ROWS}
        assert set(by_shard) == {0, 1}
        assert reader.get(by_shard[0]) == ROWS[by_shard[0]]
        proxy.silence()
        assert reader.get(by_shard[0]) == ROWS[by_shard[0]]
        with ends(30, ShardUnavailableError, "shard 1", s3_prefix, proxy.url):
            reader.get(by_shard[1])
        with ends(30, StoreUnavailableError, f"{s3_prefix}/_CURRENT", proxy.url):
            reader.refresh()
        assert reader.get(by_shard[0]) == ROWS[by_shard[0]]
