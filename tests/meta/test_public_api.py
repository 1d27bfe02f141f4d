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
    "celpy",
    "lark",
    "re2",
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


def loaded_by(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(json.loads(output))


def test_import_loads_no_optional_package() -> None:
    assert not set(OPTIONAL) & loaded_by("from shardyfusion import *")


def test_the_package_loads_none_of_its_modules_before_a_name_is_used() -> None:
    assert not {name for name in loaded_by("import shardyfusion") if name.startswith("shardyfusion.")}
    assert "shardyfusion.errors" in loaded_by("import shardyfusion; shardyfusion.errors.ShardyfusionError")
    with pytest.raises(AttributeError, match="'shardyfusion' has no attribute 'Reader'"):
        importlib.import_module("shardyfusion").Reader  # noqa: B018


if __name__ == "__main__":
    SURFACE.write_text("".join(f"{name}\n" for module in MODULES for name in names(module)))
