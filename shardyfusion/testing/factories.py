"""An adapter factory over another one, to put faults around what it opens."""

from __future__ import annotations

from dataclasses import dataclass

from shardyfusion.shard_contract import DbAdapter, DbAdapterFactory, ShardTarget
from shardyfusion.storage import StoreAddress
from shardyfusion.type_defs import BackendName


@dataclass(frozen=True)
class FactoryOver:
    """Does what `inner` does. Subclass it, as a frozen dataclass that can be pickled, and override `open`."""

    inner: DbAdapterFactory

    @property
    def backend(self) -> BackendName:
        return self.inner.backend

    @property
    def max_key_bytes(self) -> int | None:
        return self.inner.max_key_bytes

    @property
    def min_key_bytes(self) -> int:
        return self.inner.min_key_bytes

    def check(self, address: StoreAddress) -> None:
        self.inner.check(address)

    def open(self, target: ShardTarget) -> DbAdapter:
        return self.inner.open(target)
