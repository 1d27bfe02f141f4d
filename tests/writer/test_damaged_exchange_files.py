"""A file of the exchange through a disk that is damaged: an error of ours, or a damage that meets no row; never a crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from shardyfusion.errors import ShardCoverageError, ShardyfusionError
from tests.writer.faulty_exchange import FILES, Crossing, scheduler_that, write_over
from tests.writer.frames import contents
from tests.writer.test_conservation import ENCODINGS, assert_nothing_published, config_for, frame

UNSEEN = replace(FILES, flight=lambda files: {})
"""The rows in a damaged file are nothing to look at here."""


def flip_a_bit(path: Path, rng: random.Random) -> None:
    body = bytearray(path.read_bytes())
    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    path.write_bytes(body)


def tear(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def lose_a_block(path: Path, rng: random.Random) -> None:
    body = bytearray(path.read_bytes())
    start = rng.randrange(len(body))
    body[start : start + 512] = bytes(len(body[start : start + 512]))
    path.write_bytes(body)


def damaged_files(files: Crossing, harm: Callable[[Path, random.Random], None], seed: int) -> Crossing:
    rng = random.Random(seed)
    harm(rng.choice(files[()]).path, rng)
    return files


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("harm", [flip_a_bit, tear, lose_a_block])
def test_a_damaged_file_is_an_error_or_meets_no_row(harm: Callable[[Path, random.Random], None], kind: str) -> None:
    whole = f"memory://{uuid4().hex}/snap"
    write_over(frame(kind, 0), config_for(whole, kind), "disk")
    found = 0
    for seed in range(40):
        prefix = f"memory://{uuid4().hex}/snap"
        try:
            with scheduler_that(partial(damaged_files, harm=harm, seed=seed), UNSEEN):
                write_over(frame(kind, 0), config_for(prefix, kind), "disk")
            assert contents(prefix) == contents(whole), f"seed {seed}"
        except ShardyfusionError:
            found += 1
            assert_nothing_published(prefix, [])
    assert found > 12


def test_the_part_of_another_shard_is_found(memory_prefix: str) -> None:
    def shift(crossing: Crossing) -> Crossing:
        first, *others = crossing[()]
        edges = first.edges.copy()
        edges[:, :2] = first.edges[:, 1:3]
        return {(): [replace(first, edges=edges), *others]}

    with scheduler_that(shift, UNSEEN), pytest.raises(ShardCoverageError, match=r"shard 0: "):
        write_over(frame("int", 0), config_for(memory_prefix, "int"), "disk")
    assert_nothing_published(memory_prefix, [0, 1])
