"""Conformance suites to subclass in your tests, with fixtures to provide. They need pytest and Hypothesis.

Each suite says in its docstring which fixtures it asks for.
"""

from __future__ import annotations

import pytest

# Before they are imported, so that a failing comparison shows both sides.
pytest.register_assert_rewrite(
    *(f"{__name__}.{module}" for module in ("object_stores", "shard_backends", "commit_logs", "readers"))
)

from shardyfusion.testing.suites.commit_logs import CommitLogTests  # noqa: E402
from shardyfusion.testing.suites.object_stores import ObjectStoreTests  # noqa: E402
from shardyfusion.testing.suites.readers import ReaderTests  # noqa: E402
from shardyfusion.testing.suites.shard_backends import ShardBackendTests  # noqa: E402

__all__ = ["CommitLogTests", "ObjectStoreTests", "ReaderTests", "ShardBackendTests"]
