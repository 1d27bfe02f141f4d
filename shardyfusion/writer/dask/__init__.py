"""The Dask writer: turns a Dask DataFrame into a published snapshot."""

from __future__ import annotations

from shardyfusion._optional import needs

needs("dask.dataframe", extra="writer-dask-slatedb")  # a missing Dask is named with its extra, before it is imported

from shardyfusion.writer.dask.pipeline import write_cel_sharded, write_hash_sharded  # noqa: E402
from shardyfusion.writer.result import BuildResult, WriteSeconds  # noqa: E402

__all__ = ["BuildResult", "WriteSeconds", "write_cel_sharded", "write_hash_sharded"]
