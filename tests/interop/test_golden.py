"""Snapshots that the reference 0.1.0 wrote read back completely: in place, moved to a directory, copied elsewhere."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from shardyfusion.errors import ConfigValidationError, ShardUnavailableError, UnknownRoutingTokenError
from shardyfusion.reader import ShardedReader
from shardyfusion.slatedb_adapter import SlateDbReaderFactory
from shardyfusion.sqlite_adapter import SqliteReaderFactory

HASH = ["hash_sqlite_int", "hash_sqlite_str", "hash_slatedb_int"]
CEL = ["cel_direct_sqlite", "cel_categorical_sqlite", "cel_inferred_sqlite"]


@pytest.fixture(scope="module")
def golden(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive: `expected.json`, and `bucket/` with what belongs in a bucket named golden."""
    directory = tmp_path_factory.mktemp("golden")
    with tarfile.open(shared / "golden" / "upstream-0.1.0.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict:
    return json.loads((golden / "expected.json").read_text())


def put_tree(client, directory: Path, bucket: str, prefix: str = "") -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            key = prefix + path.relative_to(directory).as_posix()
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())


@pytest.fixture(scope="module")
def bucket(s3_client, golden: Path) -> str:
    s3_client.create_bucket(Bucket="golden")
    put_tree(s3_client, golden / "bucket", "golden")
    return "golden"


def rows_of(expected: dict, name: str) -> dict:
    return {row[0]: row[3].encode() for row in expected[name]["rows"]}


def check_reads_back(prefix: str, expected: dict, name: str) -> None:
    rows = rows_of(expected, name)
    absent = [key for key in ([0, 1, 2**63 - 1] if name.endswith("int") else ["", "nobody", "é"]) if key not in rows]
    with ShardedReader(prefix) as reader:
        info = reader.snapshot_info()
        assert (info.num_dbs, info.backend, info.seq) == (5, expected[name]["backend"], None)
        assert (info.rows, info.key_encoding.value) == (len(rows), expected[name]["key_encoding"])
        assert reader.multi_get([*absent, *rows]) == {**dict.fromkeys(absent), **rows}
        assert {key: reader.get(key) for key in [*list(rows)[::10], *absent]} == {
            **dict(list(rows.items())[::10]),
            **dict.fromkeys(absent),
        }
        encode = reader.snapshot_info().key_encoding.encode
        scanned = [list(reader.scan(db_id)) for db_id in range(5)]
        assert {pair for shard in scanned for pair in shard} == {(encode(key), value) for key, value in rows.items()}
        assert [len(shard) for shard in scanned] == [details.row_count for details in reader.shard_details()]
        assert all((encode(key), value) in scanned[reader.route_key(key)] for key, value in rows.items())


@pytest.mark.parametrize("name", HASH)
def test_in_place_and_nothing_is_written(s3_client, bucket, expected, name):
    def listing():
        pages = s3_client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{name}/")
        return {item["Key"]: (item["ETag"], item["LastModified"]) for page in pages for item in page["Contents"]}

    before = listing()
    check_reads_back(f"s3://{bucket}/{name}", expected, name)
    assert listing() == before


@pytest.mark.parametrize("name", HASH)
def test_moved_to_a_directory(golden, expected, name):
    check_reads_back(str(golden / "bucket" / name), expected, name)


@pytest.mark.parametrize("name", HASH)
def test_copied_to_another_bucket_and_prefix(s3_client, s3_prefix, golden, expected, name):
    target, _, prefix = s3_prefix.removeprefix("s3://").partition("/")
    put_tree(s3_client, golden / "bucket" / name, target, f"{prefix}/{name}/")
    check_reads_back(f"{s3_prefix}/{name}", expected, name)


def contexts_of(expected: dict, name: str) -> dict:
    """The routing context of each key; None where the key is enough."""
    names = set(expected[name]["cel"]["cel_columns"])
    return {
        key: None if names == {"key"} else {"region": region, "tier": tier, "more": "ignored"}
        for key, region, tier, _ in expected[name]["rows"]
    }


@pytest.mark.parametrize("name", CEL)
@pytest.mark.parametrize("place", ["s3", "directory"])
def test_cel_snapshots_read_back(golden, bucket, expected, name, place):
    rows, contexts = rows_of(expected, name), contexts_of(expected, name)
    with ShardedReader(f"s3://{bucket}/{name}" if place == "s3" else golden / "bucket" / name) as reader:
        info = reader.snapshot_info()
        assert (info.sharding, info.rows, info.key_encoding.value) == ("cel", len(rows), expected[name]["key_encoding"])
        assert {key: reader.get(key, contexts[key]) for key in rows} == rows
        scanned = [dict(reader.scan(db_id)) for db_id in range(info.num_dbs)]
        assert [len(shard) for shard in scanned] == [details.row_count for details in reader.shard_details()]
        encode = info.key_encoding.encode
        assert all(scanned[reader.route_key(key, contexts[key])][encode(key)] == rows[key] for key in rows)
        for context in {str(context): context for context in contexts.values()}.values():
            together = [key for key in rows if contexts[key] == context]
            assert reader.multi_get(together, context) == {key: rows[key] for key in together}


def test_what_no_shard_of_a_cel_snapshot_is_for_is_absent(golden, expected):
    key = next(iter(rows_of(expected, "cel_categorical_sqlite")))
    with ShardedReader(golden / "bucket" / "cel_categorical_sqlite") as reader:
        assert reader.get(key, {"region": "mars"}) is None
        with pytest.raises(UnknownRoutingTokenError, match="'mars'"):
            reader.route_key(key, {"region": "mars"})
        with pytest.raises(ConfigValidationError, match="routing_context has no 'region'"):
            reader.get(key)


@pytest.mark.parametrize(
    ("name", "factory"), [("hash_sqlite_int", SlateDbReaderFactory), ("hash_slatedb_int", SqliteReaderFactory)]
)
def test_the_wrong_factory_never_looks_like_an_absent_key(golden, expected, name, factory):
    """The reference records no backend, so this shows when a shard is opened."""
    key = next(iter(rows_of(expected, name)))
    with (
        ShardedReader(golden / "bucket" / name, reader_factory=factory()) as reader,
        pytest.raises(ShardUnavailableError),
    ):
        reader.get(key)
