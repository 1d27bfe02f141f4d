"""What a build must survive, as tools for your own tests: faults injected into a store."""

from __future__ import annotations

from shardyfusion.storage import wrapping_stores
from shardyfusion.testing.faults import FaultStore, StoreCall

__all__ = ["FaultStore", "StoreCall", "wrapping_stores"]
