"""Every scheduler that Dask has, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dask
import pytest
from distributed import Client


@contextmanager
def scheduler(name: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """`distributed` is the `cluster` of conftest.py; all others have two workers."""
    if name == "distributed":
        with Client(request.getfixturevalue("cluster")), dask.config.set(scheduler=None):
            yield
    else:
        with dask.config.set(scheduler=name, num_workers=2):
            yield
