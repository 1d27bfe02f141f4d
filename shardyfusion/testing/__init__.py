"""What a build must survive, as tools for your own tests: faults injected into a store, and jobs stopped anywhere.

The conformance suites, which need pytest and Hypothesis, are in `shardyfusion.testing.suites`.
"""

from __future__ import annotations

from shardyfusion.storage import wrapping_stores
from shardyfusion.testing.factories import FactoryOver
from shardyfusion.testing.faults import FaultStore, Killed, StoreCall
from shardyfusion.testing.kill_points import (
    EXIT_STATUS,
    KillPoint,
    WatchedFactory,
    count_kill_points,
    exit_at,
    kill_at,
    kill_child_at,
)
from shardyfusion.testing.turns import Job, Turns

__all__ = [
    "EXIT_STATUS",
    "FactoryOver",
    "FaultStore",
    "Job",
    "KillPoint",
    "Killed",
    "StoreCall",
    "Turns",
    "WatchedFactory",
    "count_kill_points",
    "exit_at",
    "kill_at",
    "kill_child_at",
    "wrapping_stores",
]
