"""What a write gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shardyfusion.manifest import ManifestRef
from shardyfusion.writer.attempt import ShardAttempt


@dataclass(frozen=True, kw_only=True)
class WriteSeconds:
    """Where the time went. The first four are wall clock on the driver and add up to `total`.

    `encode_stages` and `shard_stages` break the tasks down, summed over all workers, and are empty when an earlier
    execution of the run id had done the work:

    * encoding: `keys` and `values` become bytes, `route` finds the shard of each, `digest` counts what must arrive,
      `split` brings the rows in order of shards;
    * a shard: `gather` puts its rows together, `sort` sorts them by key, `build` writes the database (with the order
      of values, and `rate_limit_waits`), `digest` counts what arrived, `seal` closes and counts it, `checksum` and
      `upload` are the sha256 of its objects and their way to the store.

    What `build` took beyond these is reading the input, moving rows between workers, and Dask's scheduling.
    """

    plan: float = 0.0
    build: float = 0.0
    publish: float = 0.0
    sweep: float = 0.0
    encode_stages: Mapping[str, float] = field(default_factory=dict[str, float])
    shard_stages: Mapping[str, float] = field(default_factory=dict[str, float])
    rate_limit_waits: float = 0.0

    @property
    def total(self) -> float:
        return self.plan + self.build + self.publish + self.sweep

    @property
    def encode_tasks(self) -> float:
        return sum(self.encode_stages.values())

    @property
    def shard_tasks(self) -> float:
        return sum(self.shard_stages.values())


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """A published snapshot.

    `rows` are those stored (`input_rows` less dropped duplicates), `payload_bytes` the key and value bytes, `db_bytes`
    the size of the shards as stored, `attempts` how often each shard was tried, by shard number. `routing` says how
    rows found their shard: `"hash"`, or by which path an expression was evaluated, `"cel, vectorised"` (columns at a
    time) or `"cel, memoised"` (once for each distinct tuple of its columns).
    """

    run_id: str
    manifest_ref: ManifestRef
    winners: tuple[ShardAttempt, ...]
    num_dbs: int
    routing: str
    input_rows: int
    seconds: WriteSeconds
    attempts: Mapping[int, int] = field(default_factory=dict[int, int])
    payload_bytes: int = 0
    reused: bool = False
    """True when another execution of this run id had decided what is published. If it was an earlier one, no input was
    read."""
    reused_shards: tuple[int, ...] = ()
    """Shards that another execution of this run id had built: all of them if `reused`, else those of the same rows."""

    @property
    def rows(self) -> int:
        return sum(winner.rows for winner in self.winners)

    @property
    def db_bytes(self) -> int:
        return sum(winner.db_bytes for winner in self.winners)

    def __repr__(self) -> str:
        pace = f", {self.rows / self.seconds.total:,.0f} rows/s"
        if self.reused:
            pace = ", built by another execution"
        elif self.reused_shards:
            pace += f", {len(self.reused_shards)} shards built by an earlier execution"
        return (
            f"BuildResult(run_id={self.run_id!r}, {self.rows:,} rows in {len(self.winners)} of {self.num_dbs} shards, "
            f"{_size(self.db_bytes)}, {self.seconds.total:.2f} s{pace})\n  {self.manifest_ref.ref}"
        )


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
