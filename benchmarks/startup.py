"""What imports cost: fresh interpreters with and without them, in turns; prints a Markdown table."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

from arguments import add_run, parser
from report import machine, markdown, write_json

COMPARED = {
    "import shardyfusion": "pass",
    "from shardyfusion.writer.dask import write_hash_sharded": "import dask.dataframe, distributed",
}
"""What is measured, and what it is compared with."""


@dataclass(frozen=True, kw_only=True)
class Start:
    code: str
    seconds: float


def start(code: str) -> Start:
    """A fresh interpreter, from its start to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return Start(code=code, seconds=time.perf_counter() - started)


def results_table(runs: list[Start]) -> str:
    best: dict[str, float] = {}
    for one in runs:
        best[one.code] = min(one.seconds, best.get(one.code, one.seconds))
    lines = [["interpreter that runs", "against one that runs", "ms", "ms of the other", "more", "ratio"]]
    for code, other in COMPARED.items():
        mine, theirs = 1e3 * best[code], 1e3 * best[other]
        lines.append([f"`{code}`", f"`{other}`", f"{mine:.0f}", f"{theirs:.0f}"])
        lines[-1] += [f"{mine - theirs:+.0f}", f"{mine / theirs:.2f}"]
    return markdown(lines)


def main() -> None:
    arguments = parser(__doc__)
    add_run(arguments, repeat=10, schedulers=False)
    args = arguments.parse_args()
    where, codes = machine(), [code for pair in COMPARED.items() for code in pair]
    for code in codes:
        start(code)  # compiled and in the system's cache from now on
    runs = [start(code) for _ in range(args.repeat) for code in codes]
    write_json(args.json, runs)
    print(f"{where} From start to end of a process, best of {args.repeat}, in turns.\n\n{results_table(runs)}")


if __name__ == "__main__":
    main()
