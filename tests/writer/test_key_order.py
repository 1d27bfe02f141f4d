"""Keys are sorted as bytes are, and stably, whatever their lengths and common beginnings."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.writer.key_order import key_order

LETTERS = st.sampled_from([b"\0", b"\1", b"a", b"\xff"])
SHORT = st.lists(LETTERS, max_size=18).map(b"".join)
KEYS = st.builds(
    lambda shared, keys: [shared + key for key in keys], st.binary(max_size=20), st.lists(SHORT, max_size=60)
)


def expected(keys: list[bytes]) -> list[int]:
    return sorted(range(len(keys)), key=keys.__getitem__)


def array(keys: list[bytes]) -> pa.LargeBinaryArray:
    """Not at the beginning of its buffers."""
    return pa.array([b"before", *keys, b"\xff" * 9], pa.large_binary())[1:-1]


@given(KEYS)
def test_any_keys(keys: list[bytes]) -> None:
    assert key_order(array(keys)).tolist() == expected(keys)


@pytest.mark.parametrize("length", [0, 1, 4, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("equal_lengths", [True, False])
def test_many_keys(length: int, equal_lengths: bool) -> None:
    for seed in range(5):
        rng = random.Random(f"{length} {equal_lengths} {seed}")
        keys = [rng.randbytes(length if equal_lengths else rng.randint(0, length)) for _ in range(3_000)]
        keys += rng.sample(keys, 500)
        assert key_order(array(keys)).tolist() == expected(keys), f"seed {seed}"


def test_integers_as_they_are_stored() -> None:
    numbers = np.random.default_rng(5).integers(0, 2**63, 10_000)
    keys = [int(number).to_bytes(8, "big") for number in numbers]
    assert key_order(array(keys)).tolist() == np.argsort(numbers, kind="stable").tolist(), "seed 5"
