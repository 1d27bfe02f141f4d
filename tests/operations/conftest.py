from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardyfusion.storage import wrapping_stores
from tests.operations.prefixes import Prefix


@pytest.fixture
def prefix() -> Iterator[Prefix]:
    prefix = Prefix()
    with wrapping_stores(lambda store: prefix.store if store.url == prefix.url else store):
        yield prefix
