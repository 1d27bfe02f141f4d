"""What a storage engine for shards must do, on the writing and on the reading side.

Implementations: `sqlite_adapter/` and `slatedb_adapter/`. Routing and manifests are no concern of an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from shardyfusion.manifest.models import ShardObject
from shardyfusion.stage_clock import StageClock
from shardyfusion.storage import ObjectStore, StoreAddress
from shardyfusion.type_defs import BackendName

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ShardTarget:
    """Where one attempt of one shard goes.

    `directory` is relative to `store` and belongs to this attempt alone; `scratch` is an empty local directory that
    the caller made for this attempt and removes afterwards. `clock` is told what `seal()` spends its time on, as far
    as the engine knows it. `waiting` is entered around what waits for the store rather than computes.
    """

    db_id: int
    store: ObjectStore
    address: StoreAddress
    directory: str
    scratch: Path
    clock: StageClock = field(default_factory=StageClock, compare=False)
    waiting: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, compare=False)

    @contextmanager
    def uploading(self) -> Generator[None]:
        """Around the way of finished objects to the store."""
        with self.clock.stage("upload"), self.waiting():
            yield

    def checksumming(self) -> AbstractContextManager[None]:
        """Around reading finished objects for their digests."""
        return self.clock.stage("checksum")


@dataclass(frozen=True, kw_only=True)
class SealedShard:
    """What `seal()` made durable: rows counted in the closed database, its size, and its objects."""

    rows: int
    db_bytes: int
    objects: tuple[ShardObject, ...]


class DbAdapter(Protocol):
    """One shard being written.

    Rows arrive in ascending key order, each key once, unless the caller uses `write_batch` on its own account; then
    the last write of a key wins. Nothing is visible at the target before `seal()` returns.
    """

    def write_arrow(self, batch: pa.RecordBatch) -> None:
        """Add rows in bulk: columns `key` and `value`, both `large_binary` without nulls, keys ascending."""
        ...

    def write_batch(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Add (key, value) pairs in any order."""
        ...

    def seal(self) -> SealedShard:
        """Make the shard complete and durable at its target. Called once, last."""
        ...

    def db_bytes(self) -> int:
        """Bytes of the database so far (after `seal()`: as stored)."""
        ...

    def close(self) -> None:
        """Release everything. Never publishes; never raises over an exception in flight; may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class DbAdapterFactory(Protocol):
    """Opens adapters on workers; a small picklable value."""

    @property
    def backend(self) -> BackendName: ...

    @property
    def max_key_bytes(self) -> int | None:
        """Longest key the engine takes; None for no limit. `min_key_bytes` likewise."""
        ...

    @property
    def min_key_bytes(self) -> int: ...

    def check(self, address: StoreAddress) -> None:
        """Raise before any work if the engine is not installed or cannot write to this kind of store."""
        ...

    def open(self, target: ShardTarget) -> DbAdapter: ...


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """Where one published shard is read from.

    `objects` and `identity` come from the manifest (both may be missing in snapshots of other writers): the first
    lists digests to check a download against, the second changes whenever the shard's bytes may have changed.
    `cache` gives a local directory for downloads, and is called only by an engine that downloads.
    """

    db_id: int
    store: ObjectStore
    address: StoreAddress
    directory: str
    objects: tuple[ShardObject, ...]
    identity: str
    cache: Callable[[], Path]


class ShardReader(Protocol):
    """One open shard. Raises `ShardUnavailableError` for what is not there, `ReaderStateError` after `close()`."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """The keys that exist, with their values."""
        ...

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows in ascending key order."""
        ...

    def close(self) -> None: ...


class ShardReaderFactory(Protocol):
    @property
    def backend(self) -> BackendName: ...

    def open_reader(self, source: ShardSource) -> ShardReader: ...
