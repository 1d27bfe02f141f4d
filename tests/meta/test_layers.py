"""The layers of docs/architecture.md, enforced on the imports of every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "shardyfusion"

LAYERS = [  # lower never imports higher; siblings in the upper rows never import each other
    {"errors", "masking", "type_defs", "layout", "stage_clock", "_optional"},
    {"serde", "routing", "manifest"},
    {
        "storage",
        "credentials",
        "retry",
        "limits",
        "local_cache",
        "shard_contract",
        "commits",
        "run_registry",
        "shard_places",
    },
    {"sqlite_adapter", "slatedb_adapter"},
    {"config"},
    {"writer", "reader", "operations"},
    {"cli", "testing"},
]
FREE = {0, 1, 2}
HEIGHT = {name: i for i, row in enumerate(LAYERS) for name in row}
DASK = {"dask", "distributed"}
MAY_IMPORT_DASK = ("writer/dask/",)

MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, int]]:
    """Every imported module of a file, with its line; relative imports are banned by the linter."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, node.lineno))
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
    return found


def violations(path: Path) -> list[str]:
    relative = path.relative_to(PACKAGE)
    me = relative.parts[0].removesuffix(".py")
    if me == "__init__":
        return []
    wrong: list[str] = []
    for module, line in imports(path):
        top, _, rest = module.partition(".")
        if top in DASK and not relative.as_posix().startswith(MAY_IMPORT_DASK):
            wrong.append(f"{relative}:{line} imports {module}; only {MAY_IMPORT_DASK} may")
        if top != "shardyfusion" or not rest:
            continue
        other = rest.partition(".")[0]
        sibling_ok = HEIGHT[other] == HEIGHT[me] and (other == me or HEIGHT[me] in FREE)
        if not (HEIGHT[other] < HEIGHT[me] or sibling_ok):
            wrong.append(f"{relative}:{line}: {me} must not import {other}")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    assert not violations(path)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_first_party_imports_stand_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.ImportFrom)]
    assert not [n.lineno for n in inner if (n.module or "").startswith("shardyfusion")]


def test_the_check_sees_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot fail proves nothing."""
    bad = tmp_path / "writer" / "publish.py"
    bad.parent.mkdir()
    bad.write_text("import dask\nfrom shardyfusion.reader import ShardedReader\n")
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert len(violations(bad)) == 2
