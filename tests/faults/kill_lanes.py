"""Sweeps in processes of their own, several at once: `python -m tests.faults.kill_lanes` is a lane.

A lane has imported everything, has no threads of its own and never uses SlateDB itself. A child of it does what each
order says, a part of a sweep; and what that sweep kills are further children of the lane, not of the sweep, which reads
what is left through SlateDB.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

import slatedb.uniffi  # noqa: F401 (so that children need not)
from botocore.loaders import JSONFileLoader

from shardyfusion.storage import StoreAddress, open_store
from tests.faults.kill_deaths import Victim, death_of
from tests.faults.kill_jobs import BuildJob
from tests.faults.kill_sweep import Report, Sweep


@dataclass(frozen=True)
class Order:
    """Which part of which sweep."""

    prefix: str
    engine: str
    scratch: str
    death: str
    everywhere: bool
    part: int
    parts: int

    def carry_out(self, die: Callable[[Victim], None]) -> Report:
        with death_of(self.death, die) as death:
            sweep = Sweep(self.prefix, self.engine, Path(self.scratch), death, everywhere=self.everywhere)
            return sweep.run(self.part, self.parts)


class Lane:
    """A lane as its user sees it: one order at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.kill_lanes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # a group that can be ended as a whole
        )

    def start(self, order: Order) -> None:
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()

    def report(self) -> Report | str:
        """Wait for the order to be carried out: what came of it, or a text that says what went wrong."""
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"failed": "the lane has ended; see its output"}
        return Report(**answer["report"]) if "report" in answer else answer["failed"]

    def close(self) -> None:
        """End it, at once if it is still at work."""
        self._process.stdin.close()
        try:
            assert self._process.wait(timeout=5) == 0
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise
        finally:
            self._process.stdout.close()


def main() -> None:
    _warm_up()
    for line in sys.stdin:
        print(json.dumps(_answer(Order(**json.loads(line)))), flush=True)


def _warm_up() -> None:
    with tempfile.TemporaryDirectory() as directory:
        BuildJob(f"{directory}/snap", "sqlite", "v", "v", directory)()
    # Every child makes its own S3 client, and most of that time would go into the same files of botocore.
    load = cache(JSONFileLoader().load_file)
    JSONFileLoader.load_file = lambda self, file_path: load(file_path)
    open_store(StoreAddress.parse("s3://any-bucket/snap"))
    gc.freeze()  # what children do not look at need not be copied for them


def _answer(order: Order) -> dict[str, Any]:
    """Have a child carry it out, and kill meanwhile what that asks for."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        with theirs.makefile("rw", encoding="utf-8") as talk:
            _carry_out(order, talk)
    theirs.close()
    answer: dict[str, Any] = {}
    with ours, ours.makefile("rw", encoding="utf-8") as talk:
        for line in talk:
            if "victim" not in (answer := json.loads(line)):
                break
            try:
                Victim.from_json(answer["victim"]).die_in_child()
                said = ""
            except Exception as exc:
                said = repr(exc)
            print(json.dumps(said), file=talk, flush=True)
    status = os.waitpid(child, 0)[1]
    return answer if status == 0 else {"failed": f"the sweep's process ended with status {status}; see its output"}


def _carry_out(order: Order, talk: IO[str]) -> NoReturn:
    ignored: list[str] = []  # by the interpreter, in finalizers and threads
    sys.unraisablehook = lambda found: ignored.append(f"{found.exc_value!r} in {found.object!r}")
    threading.excepthook = lambda found: ignored.append(f"{found.exc_value!r} in {found.thread!r}")
    warnings.simplefilter("error")

    def die(victim: Victim) -> None:
        print(json.dumps({"victim": victim.to_json()}), file=talk, flush=True)
        said = json.loads(talk.readline())
        assert not said, said

    try:
        answer: dict[str, Any] = {"report": asdict(order.carry_out(die))}
        gc.collect()
        if ignored:
            answer = {"failed": "\n".join(ignored)}
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    print(json.dumps(answer), file=talk, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
