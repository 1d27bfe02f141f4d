"""The store with faults: without any it is a store like others, and each request can be prevented or left unanswered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from shardyfusion.errors import StoreUnavailableError
from shardyfusion.storage import MemoryStore, ObjectStore, PendingUpload, StoreAddress, open_store, wrapping_stores
from shardyfusion.testing import FaultStore, StoreCall
from shardyfusion.testing.suites import ObjectStoreTests

TEXT = "text/plain"


class TestFaultStore(ObjectStoreTests):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return FaultStore(MemoryStore(f"memory://{uuid4().hex}"))


def requests(store: ObjectStore, directory: Path) -> list[Callable[[], object]]:
    """One of every kind, in an order in which all succeed."""
    file = directory / "file"
    file.write_bytes(b"x")
    return [
        lambda: store.put("a", b"", content_type=TEXT),
        lambda: store.create("b", b"", content_type=TEXT),
        lambda: store.replace("b", b"x", etag=store.head("b").etag, content_type=TEXT),
        lambda: store.upload("c", file, content_type=TEXT),
        lambda: store.download("c", directory / "copy"),
        lambda: store.get("c"),
        lambda: list(store.list("x")),
        lambda: store.now(),
        lambda: list(store.pending_uploads("x")),
        lambda: store.abort_uploads([PendingUpload("u", "1", store.now())]),
        lambda: store.delete(["c", "b"]),
    ]


def test_every_request_is_told_before_and_after(tmp_path: Path) -> None:
    before: list[str] = []
    after: list[str] = []
    store = FaultStore(
        MemoryStore(f"memory://{uuid4().hex}"),
        before=lambda call: before.append(str(call)),
        after=lambda call: after.append(str(call)),
    )
    for request in requests(store, tmp_path):
        request()
    store.delete([])
    store.abort_uploads([])
    assert before == after
    assert before == [
        "#1 put a",
        "#2 create b",
        "#3 head b",
        "#4 replace b",
        "#5 upload c",
        "#6 download c",
        "#7 get c",
        "#8 list x",
        "#9 now ",
        "#10 pending_uploads x",
        "#11 now ",
        "#12 abort_uploads u",
        "#13 delete c",
    ]


def test_a_fault_before_prevents_and_a_fault_after_only_hides() -> None:
    def fail(call: StoreCall) -> None:
        raise StoreUnavailableError(f"no answer to {call}")

    inner = MemoryStore(f"memory://{uuid4().hex}")
    for faulty, expected in ((FaultStore(inner, before=fail), []), (FaultStore(inner, after=fail), ["a"])):
        with pytest.raises(StoreUnavailableError, match="no answer to #1 create a"):
            faulty.create("a", b"", content_type=TEXT)
        assert [info.name for info in inner.list()] == expected


def test_a_request_can_be_kept_and_sent_late() -> None:
    kept: list[StoreCall] = []

    def keep(call: StoreCall) -> None:
        kept.append(call)
        raise StoreUnavailableError("timed out")

    inner = MemoryStore(f"memory://{uuid4().hex}")
    with pytest.raises(StoreUnavailableError):
        FaultStore(inner, before=keep).put("a", b"late", content_type=TEXT)
    assert inner.head("a") is None
    kept[0].perform()
    assert inner.get("a").body == b"late"


def test_stores_are_wrapped_inside_the_block_only() -> None:
    address = StoreAddress.parse(f"memory://{uuid4().hex}")
    with wrapping_stores(FaultStore):
        assert isinstance(open_store(address), FaultStore)
    assert isinstance(open_store(address), MemoryStore)
