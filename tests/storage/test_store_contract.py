"""The contract of object stores, run on memory, a local directory and S3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shardyfusion.storage import ObjectStore, StoreAddress, open_store
from shardyfusion.testing.suites import ObjectStoreTests

TEXT = "text/plain"


class TestObjectStores(ObjectStoreTests):
    @pytest.fixture
    def store(self, any_prefix: str) -> ObjectStore:
        return open_store(StoreAddress.parse(any_prefix))

    @pytest.fixture
    def leave_upload(self, request: pytest.FixtureRequest, any_prefix: str) -> Callable[[str], None] | None:
        kind, _, path = any_prefix.partition("://")
        if kind == "memory":
            return None
        if kind == "file":

            def leave(name: str) -> None:
                directory = Path(path, name).parent
                directory.mkdir(parents=True)
                (directory / ".shardyfusion-0123").write_bytes(b"half")

            return leave
        bucket, _, prefix = path.partition("/")
        client = request.getfixturevalue("s3_client")
        return lambda name: client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{name}")


def test_a_store_has_the_url_of_its_address(any_prefix: str) -> None:
    assert open_store(StoreAddress.parse(any_prefix)).url == any_prefix


def test_siblings_do_not_see_each_other(any_prefix: str) -> None:
    ours, sibling = (open_store(StoreAddress.parse(any_prefix + tail)) for tail in ("", "2"))
    inner = open_store(StoreAddress.parse(f"{any_prefix}/runs"))
    ours.put("runs/a", b"ours", content_type=TEXT)
    sibling.put("runs/a", b"sibling", content_type=TEXT)
    for store in (ours, sibling):
        assert [info.name for info in store.list()] == ["runs/a"]
    assert [info.name for info in inner.list()] == ["a"]
    assert inner.get("a").body == b"ours"
    assert inner.get("a").info == inner.head("a")
    sibling.delete(["runs/a"])
    assert ours.get("runs/a").body == b"ours"
