"""Hash routing: the published vectors, and scalar against vectorised."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.errors import ConfigValidationError
from shardyfusion.manifest.models import ShardingSpec
from shardyfusion.routing.hashing import HashRouter, bytes_digests, canonical_bytes
from shardyfusion.routing.resolve import router_for

NUM_DBS = st.one_of(st.integers(1, 70), st.integers(1, 2**31))
INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-300, 300))


def vectors(shared: Path) -> list[tuple[Any, str, int]]:
    """(key, canonical bytes in hex, digest)"""
    read = {"int": int, "str": str, "bytes": bytes.fromhex}
    found = json.loads((shared / "vectors/hash_xxh3_64.json").read_text())["vectors"]
    keys = [next(read[kind](text) for kind, text in item["key"].items()) for item in found]
    return [(key, item["canonical_hex"], int(item["xxh3_64"], 16)) for key, item in zip(keys, found, strict=True)]


def test_scalar_route_gives_the_published_vectors(shared: Path) -> None:
    for key, canonical, digest in vectors(shared):
        assert canonical_bytes(key).hex() == canonical
        for num_dbs in (1, 2, 7, 64, 1000):
            assert HashRouter(num_dbs).route(key) == digest % num_dbs


@pytest.mark.parametrize(("kind", "arrow"), [(int, pa.int64()), (str, pa.large_string()), (bytes, pa.large_binary())])
@pytest.mark.parametrize("num_dbs", [1, 2, 7, 64, 1000, 2**31])
def test_route_arrow_gives_the_published_vectors(shared: Path, kind: type, arrow: pa.DataType, num_dbs: int) -> None:
    chosen = [(key, digest) for key, _, digest in vectors(shared) if type(key) is kind]
    shards = HashRouter(num_dbs).route_arrow(pa.array([key for key, _ in chosen], arrow), {})
    assert shards.dtype == np.int64
    assert shards.tolist() == [digest % num_dbs for _, digest in chosen]


@given(st.lists(INT64, max_size=50), NUM_DBS)
def test_scalar_and_vectorised_agree_on_integers(keys: list[int], num_dbs: int) -> None:
    router = HashRouter(num_dbs)
    assert router.route_arrow(pa.array(keys, pa.int64()), {}).tolist() == [router.route(key) for key in keys]


@given(st.lists(st.one_of(st.text(), st.binary(max_size=300)), max_size=30), NUM_DBS)
def test_scalar_and_vectorised_agree_on_text_and_bytes(keys: list[str | bytes], num_dbs: int) -> None:
    router = HashRouter(num_dbs)
    for arrow, some in (
        (pa.large_string(), [key for key in keys if isinstance(key, str)]),
        (pa.large_binary(), [key for key in keys if isinstance(key, bytes)]),
    ):
        assert router.route_arrow(pa.array(some, arrow), {}).tolist() == [router.route(key) for key in some]


@given(st.data())
def test_texts_of_every_length_agree_with_xxhash(data: st.DataObject) -> None:
    """Those of 9 to 16 bytes have a formula of our own."""
    lengths = data.draw(st.lists(st.integers(0, 40), max_size=40))
    seed = data.draw(st.integers(0, 2**32))
    keys = [np.random.default_rng([seed, row]).bytes(length) for row, length in enumerate(lengths)]
    array = pa.array(keys, pa.large_binary())
    start = data.draw(st.integers(0, len(keys)))
    expected = [xxhash.xxh3_64_intdigest(key) for key in keys]
    assert bytes_digests(array).tolist() == expected
    assert bytes_digests(array.slice(start)).tolist() == expected[start:]


def test_many_texts_of_every_length_agree_with_xxhash() -> None:
    random = np.random.default_rng(6)
    keys = [random.bytes(length) for length in random.integers(0, 20, 70_003).tolist()]
    expected = [xxhash.xxh3_64_intdigest(key) for key in keys]
    assert bytes_digests(pa.array(keys, pa.large_binary())).tolist() == expected


def test_chunk_borders_and_slices_do_not_matter() -> None:
    keys = pa.array(np.random.default_rng(5).integers(-(2**63), 2**63 - 1, 70_003))
    router = HashRouter(1000)
    shards = router.route_arrow(keys, {})
    assert router.route_arrow(keys.slice(32_766, 5), {}).tolist() == shards[32_766:32_771].tolist()
    for at in (0, 32_767, 32_768, 65_535, 65_536, 70_002):
        assert shards[at] == router.route(keys[at].as_py())


@pytest.mark.parametrize("arrow", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64(), pa.bool_()])
def test_every_integer_width_routes_as_its_value(arrow: pa.DataType) -> None:
    values = [True, False] if arrow == pa.bool_() else [0, 1, 100]
    router = HashRouter(97)
    assert router.route_arrow(pa.array(values, arrow), {}).tolist() == [router.route(value) for value in values]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        (1.0, "int"),
        (None, "NoneType"),
        (np.int64(1), "key.item()"),
        (np.bool_(True), "key.item()"),
        (2**63, "2\\^63"),
        (-(2**63) - 1, "2\\^63"),
        ("\ud800", "surrogate"),
        (memoryview(b"a"), "memoryview"),
    ],
)
def test_what_cannot_be_routed_is_refused(key: Any, hint: str) -> None:
    with pytest.raises(ConfigValidationError, match=hint):
        HashRouter(4).route(key)


@pytest.mark.parametrize("keys", [pa.array([2**63], pa.uint64()), pa.array([1.5]), pa.array([[1]])])
def test_columns_that_cannot_be_routed_are_refused(keys: pa.Array) -> None:
    with pytest.raises(ConfigValidationError, match="cannot be routed"):
        HashRouter(4).route_arrow(keys, {})


def test_text_its_bytes_and_bools_route_as_documented() -> None:
    router = HashRouter(1000)
    assert router.route("a") == router.route(b"a") == router.route(np.str_("a"))
    assert (router.route(True), router.route(False)) == (router.route(1), router.route(0))


def test_router_for_resolves_hash_and_refuses_what_it_does_not_know() -> None:
    router = router_for(ShardingSpec(), 8)
    assert pickle.loads(pickle.dumps(router)) == router == HashRouter(8)
    with pytest.raises(ConfigValidationError, match="no matching overload"):
        router_for(ShardingSpec(strategy="cel", cel_expr="key % 2u", cel_columns={"key": "int"}), 2)
    with pytest.raises(ConfigValidationError, match="md5"):
        router_for(ShardingSpec(hash_algorithm="md5"), 2)
    with pytest.raises(ConfigValidationError, match="positive"):
        HashRouter(0)
