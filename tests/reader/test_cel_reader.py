"""Looking keys up in snapshots that an expression shards: contexts, keys alone, and rows that cannot be there."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pytest

from shardyfusion import (
    CelShardedWriteConfig,
    ColumnWriteInput,
    ShardedReader,
    SqliteFactory,
    UnknownRoutingTokenError,
    ValueSpec,
)
from shardyfusion.errors import ConfigValidationError, ManifestParseError
from shardyfusion.manifest import decode_manifest
from shardyfusion.operations import verify
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.writer.dask import write_cel_sharded

ROWS = 40
REGIONS = ["eu", "us", "ap"]


def write(prefix: str, expression: str, columns: dict[str, str], **options: Any) -> None:
    """Row n has the key n, `region` n % 3 and `tier` n % 4."""
    frame = pd.DataFrame({"id": range(ROWS), "v": [f"v{n}" for n in range(ROWS)]})
    frame["region"] = [REGIONS[n % 3] for n in range(ROWS)]
    frame["tier"] = frame["id"] % 4
    config = CelShardedWriteConfig(
        s3_prefix=prefix, cel_expr=expression, cel_columns=columns, adapter_factory=SqliteFactory(), **options
    )
    how = ColumnWriteInput("id", ValueSpec.binary_col("v"))
    write_cel_sharded(dd.from_pandas(frame, npartitions=3), config, how)


@pytest.fixture
def by_region(tmp_path: Path) -> Iterator[ShardedReader]:
    write(str(tmp_path / "snap"), "region", {"region": "string"}, routing_values=["eu", "us", "sa", "ap"])
    with ShardedReader(tmp_path / "snap") as reader:
        yield reader


def test_every_row_is_found_with_its_context(by_region: ShardedReader) -> None:
    for n in range(ROWS):
        assert by_region.get(n, {"region": REGIONS[n % 3]}) == b"v%d" % n
        assert by_region.shard_for_key(n, {"region": REGIONS[n % 3]}).db_id == [0, 1, 3][n % 3]
    found = by_region.multi_get(range(5), routing_context={"region": "us", "tier": "ignored"})
    assert found == {0: None, 1: b"v1", 2: None, 3: None, 4: b"v4"}
    assert by_region.get(ROWS, {"region": "eu"}) is None
    assert by_region.get(0, {"region": "sa"}) is None, "a shard without rows"
    assert by_region.shard_for_key(0, {"region": "sa"}).row_count == 0
    assert by_region.snapshot_info().sharding == "cel"


def test_what_no_shard_is_for_is_absent(by_region: ShardedReader) -> None:
    nowhere = {"region": "mars"}
    assert by_region.get(1, nowhere) is None
    assert by_region.multi_get([1, 2], nowhere) == {1: None, 2: None}
    for lookup in (by_region.route_key, by_region.shard_for_key):
        with pytest.raises(UnknownRoutingTokenError, match="gives 'mars'"):
            lookup(1, nowhere)
        with pytest.raises(ValueError, match="mars"):
            lookup(1, nowhere)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, r"has no 'region'; this snapshot is sharded by region \(string\)"),
        ({"Region": "eu"}, "has no 'region'"),
        ({"region": None}, r"\['region'\] is None of type NoneType, and the column is string: pass a str"),
        ({"region": b"eu"}, r"of type bytes"),
        (["region"], "routing_context is list; it must be Mapping"),
    ],
)
def test_a_wrong_context_is_an_error(context: Any, message: str, by_region: ShardedReader) -> None:
    for lookup in (by_region.get, by_region.route_key, by_region.shard_for_key):
        with pytest.raises(ConfigValidationError, match=message):
            lookup(1, context)
    with pytest.raises(ConfigValidationError, match=message):
        by_region.multi_get([1], context)
    with pytest.raises(ConfigValidationError, match="key '1' is str"):
        by_region.get("1", {"region": "eu"})


@pytest.mark.parametrize("name", ["key", "id"])
def test_the_key_alone_is_enough(name: str, tmp_path: Path) -> None:
    """By either name; what is stored lists only what the expression needs, in the words it was written in."""
    prefix = str(tmp_path / "snap")
    write(prefix, f"{name} % 4", {name: "int", "region": "string"})
    with ShardedReader(prefix) as reader:
        assert [reader.get(n) for n in range(ROWS)] == [b"v%d" % n for n in range(ROWS)]
        assert reader.multi_get([3, 4], {"anything": 1}) == {3: b"v3", 4: b"v4"}
        assert reader.route_key(True) == 1
        with pytest.raises(ConfigValidationError, match="key '3' is str"):
            reader.get("3")
        with pytest.raises(ConfigValidationError, match="cannot be routed"):
            reader.get(2**63)
    assert sharding_of(prefix) == {
        "cel_columns": {name: "int"}, "cel_expr": f"{name} % 4", "hash_algorithm": "xxh3_64", "routing_values": None, "strategy": "cel",
    }  # fmt: skip
    report = verify(prefix, "full")
    assert report.ok
    assert not any(shard.unchecked for shard in report.shards), "keys were routed"


def test_a_number_that_no_shard_has_is_absent(tmp_path: Path) -> None:
    prefix = str(tmp_path / "snap")
    write(prefix, "key / 10", {"key": "int"})
    with ShardedReader(prefix) as reader:
        assert reader.snapshot_info().num_dbs == 4
        assert (reader.get(39), reader.get(40)) == (b"v39", None)
        with pytest.raises(UnknownRoutingTokenError, match=r"gives 4 for .* none of the 4 shards"):
            reader.route_key(40)


def test_key_and_column_together_need_both(tmp_path: Path) -> None:
    prefix = str(tmp_path / "snap")
    write(prefix, "(key + tier) % 5", {"key": "int", "tier": "int"}, num_dbs=5)
    with ShardedReader(prefix) as reader:
        assert all(reader.get(n, {"key": n, "tier": n % 4}) == b"v%d" % n for n in range(ROWS))
        with pytest.raises(ConfigValidationError, match=r"has no 'key'.*key \(int\), tier \(int\)"):
            reader.get(1, {"tier": 1})


# -- what is stored ----------------------------------------------------------------------------------------------------


def manifest_bytes(prefix: str) -> bytes:
    store = open_store(StoreAddress.parse(prefix))
    pointer = json.loads(store.get("_CURRENT").body)
    return store.get(pointer["manifest_ref"].removeprefix(store.url + "/")).body


def sharding_of(prefix: str) -> dict[str, Any]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(manifest_bytes(prefix))
        return json.loads(db.execute("SELECT sharding FROM build_meta").fetchone()[0])


@pytest.mark.parametrize(
    "change",
    [
        {"cel_expr": ""},
        {"cel_expr": None},
        {"cel_expr": 7},
        {"cel_columns": {}},
        {"cel_columns": None},
        {"cel_columns": ["region"]},
        {"cel_columns": {"region": "text"}},
        {"cel_columns": {"region": ["string"]}},
        {"routing_values": ["eu", "us", "sa", "sa"]},
        {"routing_values": ["eu", "us", "sa", 4]},
        {"routing_values": [True, False, 2, 3]},
        {"routing_values": [["eu"], "us", "sa", "ap"]},
        {"routing_values": {"eu": 0, "us": 1, "sa": 2, "ap": 3}},
        {"routing_values": "eusa"},
        {"routing_values": 4},
        {"strategy": "hash", "cel_expr": None, "cel_columns": None},
    ],
)
def test_a_manifest_that_cannot_be_routed_by_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    prefix = str(tmp_path / "snap")
    write(prefix, "region", {"region": "string"}, routing_values=["eu", "us", "sa", "ap"])
    with closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(manifest_bytes(prefix))
        assert decode_manifest(db.serialize()).sharding.cel_expr == "region"
        db.execute("UPDATE build_meta SET sharding = ?", (json.dumps(sharding_of(prefix) | change),))
        db.commit()
        with pytest.raises(ManifestParseError):
            decode_manifest(db.serialize())


def test_verify_says_where_routing_takes_more_than_the_key(by_region: ShardedReader) -> None:
    report = verify(by_region.snapshot_info().prefix, "full")
    assert report.ok
    reason = "whether its keys belong to it: that takes region, which shards do not hold"
    assert [shard.unchecked for shard in report.shards] == [(reason,)] * 3


def test_reading_loads_no_arrays(tmp_path: Path) -> None:
    """An installation for readers has neither NumPy nor Arrow."""
    prefix = str(tmp_path / "snap")
    write(prefix, "[region, string(tier)].exists(x, x == 'eu') ? 0 : 1", {"region": "string", "tier": "int"})
    code = (
        "import sys; from shardyfusion import ShardedReader\n"
        f"reader = ShardedReader({prefix!r})\n"
        "assert reader.get(3, {'region': 'eu', 'tier': 3}) == b'v3'\n"
        "reader.close(); assert not {'numpy', 'pyarrow', 'pandas', 'dask'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_cel_python_the_extra_is_named(tmp_path: Path) -> None:
    prefix = str(tmp_path / "snap")
    write(prefix, "key % 4", {"key": "int"})
    code = f"import sys; sys.modules['celpy'] = None\nfrom shardyfusion import ShardedReader\nShardedReader({prefix!r})"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtraError: celpy is not installed; run: pip install 'shardyfusion[cel]'" in failed.stderr
