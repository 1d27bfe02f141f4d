"""Writing: request -> plan -> shard attempts -> outcome -> commit. Only `writer.dask` knows Dask."""
