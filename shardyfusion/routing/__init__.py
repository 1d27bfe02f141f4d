"""Which shard a key belongs to: a scalar answer for readers and a vectorised one for writers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from shardyfusion.routing.cel.tree import CelType
from shardyfusion.type_defs import KeyInput, RoutingContext

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


class Router(Protocol):
    """Pure and picklable. `route` and `route_arrow` are independent code and must agree on every row."""

    @property
    def num_dbs(self) -> int: ...

    @property
    def context_columns(self) -> Mapping[str, CelType]:
        """What `route` needs in its context, and `route_arrow` in its columns. Empty where the key is enough."""
        ...

    def route(self, key: KeyInput, context: RoutingContext | None = None) -> int:
        """The shard of one key.

        Raises:
            UnknownRoutingTokenError: no shard is for such a row.
        """
        ...

    def route_arrow(self, keys: pa.Array, columns: Mapping[str, pa.Array]) -> npt.NDArray[np.int64]:
        """The shards of a column of keys (integers, text or bytes, no nulls). `columns` are the context columns, each
        of its type's Arrow form (`serde/context_columns.py`) and without nulls."""
        ...
