"""Fixtures of the protocol's tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import dask
import pytest

from shardyfusion.commits import Patience
from shardyfusion.writer.dask import pipeline


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def memory_prefix() -> str:
    return f"memory://{uuid4().hex}/snap"


@pytest.fixture
def local_prefix(tmp_path: Path) -> str:
    return f"file://{tmp_path}/snap"


@pytest.fixture
def allow_repeats(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the writer give up after so many repetitions of a request, instead of after a minute.

    Its patience has a clock that ticks at each look, so nothing here depends on real time.
    """

    def allow(repeats: int) -> None:
        def counted() -> Patience:
            return Patience(deadline_seconds=repeats + 1, pause_seconds=0, clock=itertools.count().__next__)

        monkeypatch.setattr(pipeline, "Patience", counted)

    return allow


@pytest.fixture
def one_try() -> Patience:
    return Patience(deadline_seconds=0, pause_seconds=0)
