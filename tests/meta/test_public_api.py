"""The public surface is a list, and changing it is a diff; importing the package loads nothing optional."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SURFACE = Path(__file__).with_name("public_api.txt")
MODULES = [
    "shardyfusion",
    "shardyfusion.commits",
    "shardyfusion.errors",
    "shardyfusion.operations",
    "shardyfusion.reader",
    "shardyfusion.serde",
    "shardyfusion.slatedb_adapter",
    "shardyfusion.sqlite_adapter",
    "shardyfusion.storage",
    "shardyfusion.testing",
    "shardyfusion.testing.suites",
    "shardyfusion.writer.dask",
]
OPTIONAL = [
    "dask",
    "distributed",
    "pandas",
    "numpy",
    "pyarrow",
    "slatedb",
    "boto3",
    "botocore",
    "apsw",
    "click",
    "yaml",
]


def names(module: str) -> list[str]:
    loaded = importlib.import_module(module)
    if module == "shardyfusion.errors":
        return [f"{module}.{name}" for name in sorted(vars(loaded)) if name.endswith("Error")]
    assert loaded.__all__ == sorted(loaded.__all__), f"{module}.__all__ is not sorted"
    return [f"{module}.{name}" for name in loaded.__all__]


def test_public_names_are_the_listed_ones() -> None:
    """To change the surface on purpose: python tests/meta/test_public_api.py"""
    assert [name for module in MODULES for name in names(module)] == SURFACE.read_text().split()


@pytest.mark.parametrize("name", SURFACE.read_text().split() if SURFACE.exists() else [])
def test_public_names_exist_and_are_documented(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    assert module == "shardyfusion.errors" or not isinstance(value, type) or value.__doc__


def test_import_loads_no_optional_package() -> None:
    code = "import sys, json, shardyfusion; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(OPTIONAL) & set(json.loads(output))


if __name__ == "__main__":
    SURFACE.write_text("".join(f"{name}\n" for module in MODULES for name in names(module)))
