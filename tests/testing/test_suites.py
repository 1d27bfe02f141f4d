"""The shipped suites for commit logs and readers, run on our own; those for stores and backends are run beside them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from shardyfusion import ShardedReader
from shardyfusion.storage import ObjectStore, StoreAddress, open_store
from shardyfusion.testing.suites import CommitLogTests, ReaderTests
from shardyfusion.testing.suites.readers import Reader, Rows
from tests.reader import snapshots


class TestCommitLogs(CommitLogTests):
    @pytest.fixture
    def store(self, any_prefix: str) -> ObjectStore:
        return open_store(StoreAddress.parse(any_prefix))


class TestReaders(ReaderTests):
    @pytest.fixture
    def publish(self, any_prefix: str) -> Callable[[Rows], None]:
        numbers = count(1)
        return lambda rows: snapshots.publish(any_prefix, rows, run_id=f"run-{next(numbers)}")

    @pytest.fixture
    def open_reader(self, any_prefix: str) -> Callable[[], Reader]:
        return lambda: ShardedReader(any_prefix)


def test_only_the_suites_need_pytest_and_hypothesis() -> None:
    code = "import sys, shardyfusion.testing; print(*{'pytest', 'hypothesis', 'dask', 'pyarrow'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert shown.stdout.split() == []
