"""Read the snapshot that `write.py` wrote: `read.py PREFIX`."""

from __future__ import annotations

import sys

from shardyfusion import ShardedReader

if __name__ == "__main__":
    with ShardedReader(sys.argv[1]) as reader:
        if reader.get(41) != b"name 41" or reader.get(100) is not None:
            sys.exit(f"wrong answers from {reader!r}")
        if sum(1 for db_id in range(3) for _ in reader.scan(db_id)) != 100:
            sys.exit("not all rows came back")
