"""Rows of one shard against its record: order, routing, count, digest, first and last key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise

from shardyfusion.errors import ConfigValidationError, ShardUnavailableError, UnknownRoutingTokenError
from shardyfusion.manifest import ShardRecord
from shardyfusion.routing import Router
from shardyfusion.serde.keys import KeyEncoding, shown
from shardyfusion.serde.row_digest import MASK, NAME, digest_total, format_digest, row_hash, row_hashes


class RowScan:
    """Takes the rows of a shard as they are scanned.

    `add` raises what `damaged` makes of the first row that is out of order or in the wrong shard;
    `compare_with_record`, once all rows were added, of what differs from the record.
    """

    def __init__(
        self,
        record: ShardRecord,
        *,
        router: Router | None,
        encoding: KeyEncoding,
        damaged: Callable[[str], ShardUnavailableError],
        vectorised: bool | None = None,
    ) -> None:
        self.rows = 0
        self._digest = 0
        self._first: bytes | None = None
        self._last: bytes | None = None
        self._record = record
        self._router = router
        self._width = encoding.integer_width
        self._damaged = damaged
        # An installation for readers has no columns; it takes ten times as long.
        self._vectorised = vectorised if vectorised is not None else bool(find_spec("numpy") and find_spec("pyarrow"))

    def add(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        if not rows:
            return
        keys = [key for key, _ in rows]
        before = [] if self._last is None else [self._last]
        for left, right in pairwise([*before, *keys]):
            if left >= right:
                raise self._damaged(f"key {shown(right)} comes after {shown(left)}")
        self._check_routing(keys)
        self._digest += self._digest_of(keys, [value for _, value in rows])
        self.rows += len(rows)
        self._first = keys[0] if self._first is None else self._first
        self._last = keys[-1]

    def compare_with_record(self) -> list[str]:
        """Raise if all rows together are not what was recorded; returns what could not be compared."""
        record, unchecked = self._record, list[str]()
        ours = (record.row_digest or "").startswith(f"{NAME}:")
        if self.rows > record.row_count or (self.rows < record.row_count and ours):
            raise self._damaged(f"it has {self.rows} rows instead of {record.row_count}")
        if self.rows < record.row_count:
            unchecked.append(f"{record.row_count} rows are recorded, {self.rows} are there: duplicates may be counted")
        if not ours:
            unchecked.append("the digest of its rows: none is recorded")
        elif record.row_digest != format_digest(self._digest):
            raise self._damaged(f"the digest of its rows is {format_digest(self._digest)}, not {record.row_digest}")
        for what, found, recorded in (
            ("first", self._first, record.key_bytes_min),
            ("last", self._last, record.key_bytes_max),
        ):
            if recorded is not None and found != recorded:
                raise self._damaged(f"its {what} key is {shown(found)}, not {shown(recorded)}")
        return unchecked

    def _check_routing(self, keys: Sequence[bytes]) -> None:
        for key in keys if self._width else ():
            if len(key) != self._width:
                raise self._damaged(f"key {shown(key)} is no integer of {self._width} bytes")
        if self._router is None or (self._vectorised and self._all_here(keys, self._router)):
            return
        for key in keys:
            try:
                db_id = self._router.route(int.from_bytes(key, "big") if self._width else key)
            except (ConfigValidationError, UnknownRoutingTokenError) as exc:
                raise self._damaged(f"key {shown(key)} cannot be routed: {exc.message}") from exc
            if db_id != self._record.db_id:
                raise self._damaged(f"key {shown(key)} belongs to shard {db_id}")

    def _all_here(self, keys: Sequence[bytes], router: Router) -> bool:
        import numpy as np
        import pyarrow as pa

        try:
            if self._width:
                numbers = np.frombuffer(b"".join(keys), dtype=f">u{self._width}").astype(np.uint64)
                routed = router.route_arrow(pa.array(numbers), {})
            else:
                routed = router.route_arrow(pa.array(keys, pa.large_binary()), {})
        except ConfigValidationError:  # one of them cannot be routed: which one shows key by key
            return False
        return bool((routed == self._record.db_id).all())

    def _digest_of(self, keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        if not self._vectorised:
            return sum(map(row_hash, keys, values)) & MASK
        import pyarrow as pa

        return digest_total(row_hashes(pa.array(keys, pa.large_binary()), pa.array(values, pa.large_binary())))
