"""`ShardedReader`: lookups on the snapshot served from a prefix. What a lookup decides is in `router.py`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from shardyfusion.credentials import CredentialProvider
from shardyfusion.errors import ConfigValidationError, ReaderStateError
from shardyfusion.layout import CURRENT, check_segment
from shardyfusion.reader.details import ShardDetails, SnapshotInfo
from shardyfusion.reader.generation import Generation, SnapshotSource
from shardyfusion.reader.local_root import LocalRoot
from shardyfusion.serde.keys import shown
from shardyfusion.shard_contract import ShardReaderFactory
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.type_defs import KeyInput, RoutingContext, S3ConnectionOptions, require, require_type


class ShardedReader:
    """Reads the snapshot that is served from `s3_prefix`: an S3 or `memory://` URL, or a local directory.

    Opening reads the pointer, the commit log and the manifest; each shard is opened at its first use. The reader keeps
    serving that snapshot until `refresh()`, and never writes to the store. A key that does not exist is None; a shard
    that cannot be read is `ShardUnavailableError`, never None.

    Use one reader from one thread at a time, and open readers after a fork, not before.

    Args:
        local_root: A directory for downloads, kept for the next reader. Default: a private one, removed by `close()`.
        reader_factory: `SqliteReaderFactory(...)` or `SlateDbReaderFactory(...)`. Default: what the snapshot needs.
        allow_external_shards: Also read shards that the manifest places outside its own prefix and outside this one.
        current_pointer_key: Name of the pointer object below the prefix.
        max_fallbacks: How many older snapshots to try, when opening, if the newest manifest is missing or damaged. What
            was rolled back or cleaned up is not tried, and a store that does not answer is an error. 0: never.

    Raises:
        SnapshotNotFoundError: Nothing is published at the prefix.
        ManifestParseError: What is published cannot be read.
    """

    def __init__(
        self,
        s3_prefix: str | os.PathLike[str],
        local_root: str | os.PathLike[str] | None = None,
        reader_factory: ShardReaderFactory | None = None,
        *,
        credential_provider: CredentialProvider | None = None,
        s3_connection_options: S3ConnectionOptions | None = None,
        allow_external_shards: bool = False,
        current_pointer_key: str = CURRENT,
        max_fallbacks: int = 3,
    ) -> None:
        require_type(max_fallbacks, int, "max_fallbacks")
        require(max_fallbacks >= 0, f"max_fallbacks {max_fallbacks!r} must not be negative")
        address = StoreAddress.parse(s3_prefix, credential_provider=credential_provider, options=s3_connection_options)
        self._prefix = address.url
        self._source = SnapshotSource(
            address=address,
            store=open_store(address),
            local_root=LocalRoot(local_root),
            reader_factory=reader_factory,
            allow_external_shards=allow_external_shards,
            pointer_name=check_segment(current_pointer_key, "current_pointer_key"),
        )
        self._generation: Generation | None
        self._ref, self._generation, self._fallback_from = self._source.open(max_fallbacks)

    # -- lookups ---------------------------------------------------------------------------------------------------

    def get(self, key: KeyInput, routing_context: RoutingContext | None = None) -> bytes | None:
        """The value of a key, or None if the snapshot does not hold it.

        `routing_context` has the values of the columns that a CEL snapshot is sharded by, unless the key is enough.
        """
        generation = self._serving()
        where = generation.placer.find(key, routing_context)
        shard = None if where is None else generation.shard(where.db_id)
        return None if where is None or shard is None else shard.get(where.stored)

    def multi_get(
        self, keys: Iterable[KeyInput], routing_context: RoutingContext | None = None
    ) -> dict[KeyInput, bytes | None]:
        """The values of many keys, one request per shard; absent keys are None.

        The result holds every distinct key once, as the caller spelled it, in the order given. The context is for all.
        """
        generation = self._serving()
        plan = generation.placer.plan(keys, routing_context)
        found = {
            db_id: shard.get_many(stored)
            for db_id, stored in plan.by_shard.items()
            if (shard := generation.shard(db_id)) is not None
        }
        return {
            key: found[where.db_id].get(where.stored) if where is not None and where.db_id in found else None
            for key, where in plan.placed.items()
        }

    def scan(self, db_id: int) -> Iterator[tuple[bytes, bytes]]:
        """All rows of one shard, (stored key bytes, value), in ascending key order. Ends with the next `refresh()`
        that finds another snapshot."""
        generation = self._serving()
        num_dbs = generation.manifest.num_dbs
        if type(db_id) is not int or not 0 <= db_id < num_dbs:
            raise ConfigValidationError(
                f"there is no shard {shown(db_id)}: this snapshot has num_dbs={num_dbs}, from 0"
            )
        shard = generation.shard(db_id)
        return iter(()) if shard is None else shard.scan()

    def route_key(self, key: KeyInput, routing_context: RoutingContext | None = None) -> int:
        """The number of the shard that holds the key, if any does.

        Raises:
            UnknownRoutingTokenError: no shard of a CEL snapshot is for such a row.
        """
        return self._serving().placer.place(key, routing_context).db_id

    def shard_for_key(self, key: KeyInput, routing_context: RoutingContext | None = None) -> ShardDetails:
        """The shard that holds the key, if any does; it may be an empty one. Raises as `route_key` does."""
        generation = self._serving()
        return generation.describe_shard(generation.placer.place(key, routing_context).db_id)

    # -- the snapshot ----------------------------------------------------------------------------------------------

    def snapshot_info(self) -> SnapshotInfo:
        """What is served: run, commit, rows, sizes."""
        return self._serving().describe(self._ref, fallback_from=self._fallback_from)

    def shard_details(self) -> list[ShardDetails]:
        """Every shard in order, the empty ones too."""
        generation = self._serving()
        return [generation.describe_shard(db_id) for db_id in range(generation.manifest.num_dbs)]

    def refresh(self) -> bool:
        """Serve what is published now; True if that is another snapshot than before.

        The new manifest is read before the old shards are closed: if that fails, the error is raised and the old
        snapshot is served on.
        """
        old = self._serving()
        ref = self._source.served(after=self._ref)
        digests = {ref.sha256, self._ref.sha256} - {None}  # another writer's pointer carries none
        if ref.ref == self._ref.ref and len(digests) < 2:
            self._ref, self._fallback_from = ref, None
            return False
        new = self._source.load(ref)
        self._ref, self._generation, self._fallback_from = ref, new, None
        old.close()
        self._source.local_root.discard(old.cached_names() - new.cached_names())
        return True

    # -- lifetime --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every shard and remove the private directory, if there is one. May be called again."""
        generation, self._generation = self._generation, None
        try:
            if generation is not None:
                generation.close()
        finally:
            self._source.local_root.close()

    def __enter__(self) -> Self:
        self._serving()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._generation is None else f"run {self._ref.run_id!r}, commit {self._ref.seq}"
        return f"ShardedReader({self._prefix!r}, {state})"

    def _serving(self) -> Generation:
        if self._generation is None:
            raise ReaderStateError(f"the reader of {self._prefix} is closed; open a new one")
        return self._generation
