"""Install every extra alone, and some together, each in an environment of its own, and do there what the extra promises.

Run with `make test-extras`. Not collected by pytest: it needs a package index and takes minutes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

# By extra, or by extras with commas between them.
CHECKS: dict[str, list[list[str]]] = {
    "": [["read.py", "{sqlite}"]],
    "writer-dask-sqlite": [["write.py", "sqlite", "{scratch}/mine"], ["read.py", "{scratch}/mine"]],
    "writer-dask-slatedb": [["write.py", "slatedb", "{scratch}/mine"], ["read.py", "{scratch}/mine"]],
    "writer-dask-sqlite,cel": [["write.py", "cel", "{scratch}/mine"], ["read.py", "{scratch}/mine"]],
    "read-sqlite": [["read.py", "{sqlite}"]],
    "read-sqlite,cel": [["read.py", "{cel}"]],
    "read-slatedb": [["read.py", "{slatedb}"]],
    "cel": [["read.py", "{cel}"]],
    "cli": [["shardy", "get", "{sqlite}", "41"]],
    "demo": [["{root}/examples/flights.py", "--out", "{scratch}/demo"]],
    "all": [
        ["write.py", "sqlite", "{scratch}/a"],
        ["write.py", "slatedb", "{scratch}/b"],
        ["write.py", "cel", "{scratch}/c"],
        ["shardy", "info", "{scratch}/b"],
    ],
}


def run(python: Path | str, arguments: Sequence[str]) -> None:
    """Run `shardy`, a script beside this one, or a script by its full path, in the environment of `python`."""
    first, *rest = arguments
    command = [Path(python).with_name("shardy")] if first == "shardy" else [python, HERE / first]
    subprocess.run([*map(str, command), *rest], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    checked = {extra for extras in CHECKS for extra in extras.split(",")} - {""}
    if declared != checked:
        sys.exit(f"extras without a check, or checks without an extra: {declared ^ checked}")
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        places = {"root": str(ROOT), "sqlite": f"{base}/sqlite", "slatedb": f"{base}/slatedb", "cel": f"{base}/cel"}
        for backend in ("sqlite", "slatedb", "cel"):
            run(sys.executable, ["write.py", backend, places[backend]])
        for extra, checks in CHECKS.items():
            home = base / f"venv-{extra}"
            venv.create(home, with_pip=True)
            python = home / "bin" / "python"
            target = f"{ROOT}[{extra}]" if extra else str(ROOT)
            subprocess.run(
                [
                    python,
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "--disable-pip-version-check",
                    "-c",
                    ROOT / "requirements.lock",
                    target,
                ],
                check=True,
            )
            for check in checks:
                run(python, [part.format(**places, scratch=base / extra) for part in check])
            print(f"extra {extra or '(none)'}: ok", flush=True)


if __name__ == "__main__":
    main()
