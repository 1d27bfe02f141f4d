"""Nothing lost, nothing invented: how many rows, and which, are compared before and after they moved.

Digests are those of docs/row-digest.md. All of them are taken here, so that their cost can be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardyfusion.errors import ShardCoverageError
from shardyfusion.serde.row_digest import MASK, digest_by_shard, digest_total, row_hashes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


@dataclass(frozen=True)
class RowSum:
    """How many rows, and their order-independent digest: equal for the same rows in any order, and adds up."""

    rows: int = 0
    digest: int = 0

    def __add__(self, other: RowSum) -> RowSum:
        return RowSum(self.rows + other.rows, (self.digest + other.digest) & MASK)

    def __sub__(self, other: RowSum) -> RowSum:
        return RowSum(self.rows - other.rows, (self.digest - other.digest) & MASK)


def row_sum(keys: pa.LargeBinaryArray, values: pa.LargeBinaryArray) -> RowSum:
    return RowSum(len(keys), digest_total(row_hashes(keys, values)))


def shard_digests(
    keys: pa.LargeBinaryArray, values: pa.LargeBinaryArray, shards: npt.NDArray[np.int64], num_dbs: int
) -> npt.NDArray[np.uint64]:
    """The digest of the rows of every shard."""
    return digest_by_shard(row_hashes(keys, values), shards, num_dbs)


def require_same_rows(db_id: int, expected: RowSum, arrived: RowSum) -> None:
    """`ShardCoverageError` unless the rows that arrived at a shard are those that were read for it."""
    if arrived == expected:
        return
    if arrived.rows == expected.rows:
        difference = "changed"
        what = (
            f"{expected.rows} rows were read and {arrived.rows} arrived, but they are not the same rows (digests "
            "differ): keys or values were exchanged or changed on the way"
        )
    else:
        difference = "lost" if arrived.rows < expected.rows else "invented"
        what = f"{expected.rows} rows were read for it and {arrived.rows} arrived, so rows were {difference}"
    raise ShardCoverageError(
        f"shard {db_id}: {what}; nothing was published. Rerun; if it happens again, try another "
        "DaskWriteOptions.shuffle",
        db_id=db_id,
        expected_rows=expected.rows,
        arrived_rows=arrived.rows,
        difference=difference,
    )
