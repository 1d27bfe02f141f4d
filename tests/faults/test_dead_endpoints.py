"""No call waits for ever: a dead endpoint is an error within the configured time, and the error names the URL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from shardyfusion.errors import ShardUnavailableError, ShardWriteError, ShardyfusionError, StoreUnavailableError
from shardyfusion.shard_contract import ShardTarget
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.writer.dask import write_hash_sharded
from tests.faults.dead_endpoints import Proxy, closed_port, proxied, silent_port
from tests.writer.frames import make_rows, parquet_frame

SECONDS = 0.3
ROWS = make_rows(4_000)
PAYLOAD = ColumnWriteInput("id", ValueSpec.binary_col("payload"))
DEAD = {"closed": closed_port, "silent": silent_port}


def options(endpoint: str, max_attempts: int = 1) -> S3ConnectionOptions:
    return S3ConnectionOptions(
        endpoint_url=endpoint, connect_timeout=SECONDS, read_timeout=SECONDS, max_attempts=max_attempts
    )


@contextmanager
def ends(within: float, error: type[ShardyfusionError], *said: str) -> Iterator[None]:
    """An error of ours that says all of it, and not after `within` seconds: far below a test's timeout, far above what
    a busy machine needs."""
    started = time.monotonic()
    with pytest.raises(error) as caught:
        yield
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


def test_a_request_is_tried_as_often_as_configured(dead: str) -> None:
    store = open_store(StoreAddress.parse("s3://bucket/snap", options=options(dead, max_attempts=2)))
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.head("a"),
        lambda: store.put("a", b"", content_type="text/plain"),
        lambda: store.delete(["a"]),
        lambda: list(store.pending_uploads()),
        lambda: store.now(),
    )
    for call in calls:
        with ends(20, StoreUnavailableError, "s3://bucket/snap", dead):
            call()


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
