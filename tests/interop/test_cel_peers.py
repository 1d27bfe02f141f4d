"""What others need to find a row of a CEL snapshot of ours: its manifest, the rules of the format, and Google's engine."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pytest

from shardyfusion import CelShardedWriteConfig, ColumnWriteInput, ShardedReader, SqliteFactory, ValueSpec
from shardyfusion.storage import open_store
from shardyfusion.writer.dask import write_cel_sharded

KINDS = {
    "id": "int",
    "key": "int",
    "region": "string",
    "tier": "int",
    "price": "double",
    "paid": "bool",
    "raw": "bytes",
}
FRAME = pd.DataFrame({"id": range(50), "tier": [n % 4 for n in range(50)], "price": [n / 8 for n in range(50)]}).assign(
    region=[("eu", "日本", "")[n % 3] for n in range(50)],
    paid=[n % 2 == 0 for n in range(50)],
    raw=pd.Series([bytes([n % 5 + 1]) for n in range(50)], dtype=object),
    v=[f"v{n}" for n in range(50)],
)
INFER = {"infer_routing_values_from_data": True}


def peer_route(sharding: Mapping[str, Any]) -> Callable[[int, Mapping[str, Any]], int]:
    """The shard of a key and its context, by the rules of the format alone."""
    cel = pytest.importorskip("cel_expr_python.cel", reason="needs Google's engine: pip install cel-expr-python")
    types = {name: getattr(cel.Type, kind.upper()) for name, kind in sharding["cel_columns"].items()}
    compiled = cel.NewEnv(variables=types).compile(sharding["cel_expr"])

    def route(key: int, context: Mapping[str, Any]) -> int:
        row = {"key": key} if set(types) == {"key"} else {name: context[name] for name in types}
        result = compiled.eval(data=row)
        assert str(result.type()) != "ERROR"
        token = result.value()
        return int(token) if sharding["routing_values"] is None else sharding["routing_values"].index(token)

    return route


@pytest.mark.parametrize(
    ("expression", "options"),
    [
        ("key % 8", {}),
        ("id % 8", {"num_dbs": 9}),
        ("region", {"routing_values": ["", "eu", "mars", "日本"]}),
        ("region + '|' + string(tier)", INFER),
        ("string(price) + string(paid)", INFER),
        ("int(price) - 3", INFER),
        ("uint(tier) * 6148914691236517205u", {"infer_routing_values_from_data": True}),
        ("string(size(raw) + tier)", {"num_dbs": 5}),
        ("[tier, size(region)].exists(x, x == 2) ? 'two' : 'other'", INFER),
        ("(key + tier) % 3", {}),
    ],
)
def test_a_peer_finds_every_row(expression: str, options: dict[str, Any], tmp_path: Path) -> None:
    config = CelShardedWriteConfig(
        s3_prefix=tmp_path / "snap", cel_expr=expression, cel_columns=KINDS, adapter_factory=SqliteFactory(), **options
    )
    with dask.config.set({"scheduler": "synchronous", "dataframe.convert-string": False}):
        ddf = dd.from_pandas(FRAME, npartitions=3)
        write_cel_sharded(ddf, config, ColumnWriteInput("id", ValueSpec.binary_col("v")))
    store = open_store(config.address())
    pointer = json.loads(store.get("_CURRENT").body)
    with closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(store.get(pointer["manifest_ref"].removeprefix(store.url + "/")).body)
        meta = db.execute("SELECT sharding, num_dbs FROM build_meta").fetchone()
    sharding = json.loads(meta[0])
    assert sharding["routing_values"] is None or meta[1] == len(sharding["routing_values"])
    route = peer_route(sharding)
    with ShardedReader(tmp_path / "snap") as reader:
        stored = [dict(reader.scan(db_id)) for db_id in range(meta[1])]
        for row in FRAME.to_dict("records"):
            context = {**row, "key": row["id"]}
            db_id = route(row["id"], context)
            assert stored[db_id][row["id"].to_bytes(8, "big")] == row["v"].encode()
            given = {name: context[name] for name in reader.snapshot_info().context_columns}
            assert reader.get(row["id"], given) == row["v"].encode()
