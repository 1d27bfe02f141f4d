"""What SlateDB is told: where a database lives, how its store is reached, and how it writes and reads in bulk.

No call here waits for anything; those that do are in `writer.py` and `reader.py`.
"""

from __future__ import annotations

import atexit
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from shardyfusion.storage import StoreAddress
from shardyfusion.storage.s3 import ResolvedS3, resolve_s3
from shardyfusion.type_defs import require

if TYPE_CHECKING:
    from slatedb.uniffi import DbCache, ObjectStore, ReaderOptions, ScanOptions, Settings

MAX_KEY_BYTES = 65_535


_REWRITTEN = re.compile(r"[^\x20-\x7e]|[\\{}^%`\[\]\"<>~#|*?]")
"""Characters of an S3 key that SlateDB's store would percent-encode: it would write somewhere else than we look."""

_DAY_MS = 24 * 60 * 60 * 1000
_REPLAY_BYTES = 64 * 1024 * 1024
_READ_AHEAD_BYTES = 4 * 1024 * 1024
_FETCHES = 4


@dataclass(frozen=True, kw_only=True)
class Place:
    """A database as SlateDB addresses it: a path in one of its object stores."""

    store: ObjectStore
    path: str
    retries: int
    endpoint: str | None = None
    """Where its store is asked, if that is not the usual place."""


def check_deadline(seconds: object) -> None:
    require(
        isinstance(seconds, (int, float)) and 0 < seconds < threading.TIMEOUT_MAX,
        f"deadline_seconds {seconds!r} must be a positive and finite number",
    )


def reached(address: StoreAddress) -> ResolvedS3 | None:
    """How S3 is reached, settled once for every database that is opened: a provider may be slow. None elsewhere."""
    return resolve_s3(address) if address.kind == "s3" else None


def refusal(address: StoreAddress, s3: ResolvedS3 | None) -> str | None:
    """Why SlateDB itself cannot reach this store as we do; None if it can. `s3` is of `reached`."""
    match address.kind:
        case "memory":
            return "it lives in another library's memory"
        case "file":
            return None
        case "s3":
            odd = _REWRITTEN.search(address.key_prefix)
            if odd:
                return f"SlateDB would rewrite the character {odd.group()!r} of the prefix"
            if s3 and s3.verify_ssl is not True and not (s3.endpoint_url or "").startswith("http://"):
                given = "from an option, AWS_CA_BUNDLE or the profile's ca_bundle"
                return f"SlateDB takes only verify_ssl=True, not {s3.verify_ssl!r} {given}"
            return None


def place_of(address: StoreAddress, directory: str, s3: ResolvedS3 | None) -> Place:
    """Where a shard's directory is, for a store that `refusal` has nothing against. A local one must exist."""
    if s3 is None:
        return local_place(address.path / directory)
    prefix = f"{address.key_prefix}/{directory}" if address.key_prefix else directory
    store = _s3_store(address.bucket, s3)
    return Place(store=store, path=prefix, retries=s3.max_attempts - 1, endpoint=s3.endpoint_url)


def local_place(root: Path) -> Place:
    """A database in a local directory, which must exist."""
    from slatedb.uniffi import ObjectStoreBuilder, ObjectStoreType

    # Rooted at the directory itself: a path inside a store would be percent-encoded where it has odd characters.
    builder = ObjectStoreBuilder(ObjectStoreType.LOCAL)
    builder.with_config("local_path", str(root))
    return Place(store=builder.build(), path="", retries=0)


@lru_cache(maxsize=16)
def _s3_store(bucket: str, resolved: ResolvedS3) -> ObjectStore:
    """One store, with its connections, for all databases of a bucket. Nothing comes from the environment."""
    from slatedb.uniffi import ObjectStoreBuilder

    config = {
        "aws_access_key_id": resolved.access_key_id,
        "aws_secret_access_key": resolved.secret_access_key,
        "aws_session_token": resolved.session_token,
        "aws_region": resolved.region,
        "aws_endpoint_url": _endpoint(bucket, resolved),
        "aws_virtual_hosted_style_request": "true" if resolved.virtual_hosted else "false",
        "allow_http": "true" if (resolved.endpoint_url or "").startswith("http://") else "false",
        "connect_timeout": f"{resolved.connect_timeout * 1000:.0f}ms",
        "timeout": f"{resolved.read_timeout * 1000:.0f}ms",
    }
    builder = ObjectStoreBuilder.from_url(f"s3://{bucket}")
    for name, value in config.items():
        if value:
            builder.with_config(name, value)
    return builder.build()


def _endpoint(bucket: str, resolved: ResolvedS3) -> str | None:
    """SlateDB's store expects the bucket in an endpoint of one's own, if that is where it stands."""
    if resolved.endpoint_url and resolved.virtual_hosted:
        scheme, _, host = resolved.endpoint_url.partition("://")
        return f"{scheme}://{bucket}.{host}"
    return resolved.endpoint_url


def bulk_settings(*, sst_bytes: int, retries: int) -> Settings:
    """Every byte is stored once: no log, no compaction, no collection of garbage, and nothing waits for any of them."""
    from slatedb.uniffi import Settings

    settings = Settings.default()
    for name, value in {
        "wal_enabled": "false",
        "compactor_options": "null",
        "garbage_collector_options": "null",
        "l0_sst_size_bytes": str(sst_bytes),
        # Without a compactor, the default of 8 tables would stop the writer for good at the ninth.
        "l0_max_ssts": str(2**31 - 1),
        "l0_max_ssts_per_key": str(2**31 - 1),
        # What waits to be stored is bounded; a write then waits for room.
        "max_unflushed_bytes": str(4 * sst_bytes),
        "object_store_max_retries": str(retries),
    }.items():
        settings.set(name, value)
    return settings


def reader_options(retries: int) -> ReaderOptions:
    """Published shards do not change, so the reader hardly ever looks for news; other writers' logs are replayed."""
    from slatedb.uniffi import ReaderOptions

    return ReaderOptions(
        manifest_poll_interval_ms=_DAY_MS,
        checkpoint_lifetime_ms=3 * _DAY_MS,
        max_memtable_bytes=_REPLAY_BYTES,
        skip_wal_replay=False,
        object_store_max_retries=retries,
    )


def scan_options() -> ScanOptions:
    """Read far ahead: by default every block of 4 KiB is a request of its own. Scans do not fill the cache."""
    from slatedb.uniffi import DurabilityLevel, ScanOptions

    return ScanOptions(
        durability_filter=DurabilityLevel.REMOTE,
        dirty=False,
        read_ahead_bytes=_READ_AHEAD_BYTES,
        cache_blocks=False,
        max_fetch_tasks=_FETCHES,
    )


@lru_cache(maxsize=4)
def block_cache(cache_bytes: int) -> DbCache:
    """One cache for all shards that are read with this setting, so that many shards do not mean much memory."""
    from slatedb.uniffi import DbCache, MokaCacheOptions

    return DbCache.new_moka_cache(MokaCacheOptions(max_capacity=cache_bytes, time_to_live=None, time_to_idle=None))


# While the interpreter goes away, the binding could no longer free them, and would say so on stderr.
atexit.register(_s3_store.cache_clear)
atexit.register(block_cache.cache_clear)
