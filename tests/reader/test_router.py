"""Pure decisions of a lookup: where a shard is read, and how many keys are grouped."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from shardyfusion.errors import ConfigValidationError, ReaderStateError
from shardyfusion.manifest import Manifest, ShardingSpec, ShardRecord
from shardyfusion.reader.router import KeyPlacer
from shardyfusion.serde.keys import KeyEncoding
from shardyfusion.shard_places import ShardPlace, locate_shard, locate_shards

OLD, NEW = "s3://old/snap", "file:///data/copy"


def manifest(*urls: str | None, encoding: KeyEncoding = KeyEncoding.U64BE) -> Manifest:
    return Manifest(
        run_id="r",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        num_dbs=8,
        s3_prefix=OLD,
        key_col="id",
        sharding=ShardingSpec(),
        key_encoding=encoding,
        shards=tuple(
            ShardRecord(db_id=i, db_url=url, attempt=0, row_count=1, db_bytes=1) for i, url in enumerate(urls)
        ),
    )


def place(url: str, *, allow_external: bool = False) -> ShardPlace:
    m = manifest(url)
    return locate_shard(m, m.shards[0], NEW, allow_external=allow_external)


@pytest.mark.parametrize("url", [f"{OLD}/shards/db=00000/attempt=00", f"{OLD}/shards/db=00000/attempt=00/"])
def test_a_url_under_the_manifests_prefix_is_rerooted(url):
    assert place(url) == (NEW, "shards/db=00000/attempt=00")


def test_a_url_under_the_readers_prefix_is_used():
    assert place(f"{NEW}/shards/x") == (NEW, "shards/x")
    assert place(f"{NEW}/shards/x").url == f"{NEW}/shards/x"


@pytest.mark.parametrize(
    "url", ["s3://old/snapshot/x", "s3://other/snap/x", f"{OLD}//x", f"{OLD}/a//b", OLD, "relative/x", "", "/etc/x"]
)
def test_any_other_url_is_refused_by_name(url):
    with pytest.raises(ReaderStateError, match=r"shard 0.*allow_external_shards=True") as caught:
        place(url)
    assert url.rstrip("/") in str(caught.value)


def test_an_external_url_is_read_where_it_is_when_opted_in():
    assert place("s3://other/snap/x", allow_external=True) == ("s3://other/snap", "x")


@pytest.mark.parametrize("url", [f"{OLD}/../secret/x", "s3://other/a/../x", "s3://other/a/./x", ".."])
@pytest.mark.parametrize("allow_external", [False, True])
def test_dots_are_refused_even_when_opted_in(url, allow_external):
    with pytest.raises(ReaderStateError, match="refused"):
        place(url, allow_external=allow_external)


@pytest.mark.parametrize("url", ["http://other/a/x", "relative/x", "s3://other/a?b/x", "s3://", "", "s3://x"])
def test_an_external_url_that_no_store_reads_is_refused(url):
    with pytest.raises(ReaderStateError, match="shard 0"):
        place(url, allow_external=True)


def test_a_record_without_url_has_no_place():
    assert set(locate_shards(manifest(f"{OLD}/a", None, f"{OLD}/c"), NEW, allow_external=False)) == {0, 2}


def test_a_plan_asks_each_shard_once_for_each_distinct_stored_key():
    placer = KeyPlacer.of(manifest(encoding=KeyEncoding.UTF8))
    keys = ["a", b"a", "b", "a", "c"]
    plan = placer.plan(keys)
    assert list(plan.placed) == ["a", b"a", "b", "c"], "the caller's spelling and order"
    assert plan.placed["a"] == plan.placed[b"a"]
    asked = [stored for group in plan.by_shard.values() for stored in group]
    assert sorted(asked) == [b"a", b"b", b"c"]
    assert all(placer.place(key).stored in plan.by_shard[placer.place(key).db_id] for key in keys)


@pytest.mark.parametrize("key", [None, 1.0, "1", [1], -1, 2**63, 2**64, pytest.param(10**5000, id="huge"), [10**5000]])
def test_what_cannot_be_a_key_is_a_config_error(key):
    placer = KeyPlacer.of(manifest())
    with pytest.raises(ConfigValidationError):
        placer.place(key)
    with pytest.raises(ConfigValidationError):
        placer.plan([1, key])


def test_a_single_text_is_not_a_collection_of_keys():
    with pytest.raises(ConfigValidationError, match="use get"):
        KeyPlacer.of(manifest(encoding=KeyEncoding.UTF8)).plan("abc")


@pytest.mark.parametrize("keys", [None, 7, 1.5])
def test_what_is_no_collection_is_no_collection_of_keys(keys):
    with pytest.raises(ConfigValidationError, match=type(keys).__name__):
        KeyPlacer.of(manifest()).plan(keys)
