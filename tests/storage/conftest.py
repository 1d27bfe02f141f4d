"""Fixtures of the stores' tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.storage.fake_s3 import FakeS3


@pytest.fixture
def fake() -> Iterator[FakeS3]:
    with FakeS3() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
