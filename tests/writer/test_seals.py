"""A rerun without an outcome keeps the sealed shards that still hold, and builds all others again."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pytest

from shardyfusion import DaskWriteOptions, HashShardedWriteConfig, LocalSlateDbFactory, SlateDbFactory, SqliteFactory
from shardyfusion.commits import append_cleanup
from shardyfusion.errors import ManifestParseError, StoreAccessError
from shardyfusion.layout import CURRENT, SEAL
from shardyfusion.serde.checked_json import decode_checked, encode_checked
from shardyfusion.testing import StoreCall
from shardyfusion.writer.dask import write_hash_sharded
from shardyfusion.writer.seals import Seal
from tests.protocol.tiny_writes import faults, store_of
from tests.writer.frames import contents, frame_of
from tests.writer.reruns import (
    INPUT,
    KEYS,
    SHARDS,
    frame,
    head_of,
    log_of,
    other_write,
    read_seal,
    rows,
    seal_all_and_fail,
    seal_names,
    shard_names,
    shard_of,
    shards_written,
    stored,
)
from tests.writer.schedulers import scheduler


@pytest.fixture
def config(config: HashShardedWriteConfig) -> HashShardedWriteConfig:
    return replace(config, num_dbs=SHARDS, run_id="nightly")


@pytest.mark.parametrize("exchange", ["direct", "disk", "tasks"])
def test_sealed_shards_of_the_same_rows_are_kept_and_the_rest_is_built(
    exchange: Any, config: HashShardedWriteConfig, counted: Any
) -> None:
    """The second shard could not be stored; nothing else was wrong."""

    def no_room(call: StoreCall) -> None:
        if call.verb == "upload" and "/db=00001/" in call.name:
            raise StoreAccessError(f"{call}: HTTP 403")

    options = DaskWriteOptions(shuffle=exchange)
    with faults(no_room), pytest.raises(StoreAccessError):
        write_hash_sharded(frame(rows()), config, INPUT, options)
    sealed = seal_names(config)
    assert len(sealed) == SHARDS - 1
    ddf, evaluations = counted(frame(rows()))
    with faults() as calls:
        result = write_hash_sharded(ddf, config, INPUT, options)
    assert shards_written(calls) == {1}
    assert (result.reused, result.reused_shards, result.attempts) == (False, (0, 2, 3), {1: 1})
    assert "3 shards built by an earlier execution" in repr(result)
    assert evaluations() == ddf.npartitions, "the input is read, to know what must be in the shards"
    assert set(sealed) < set(seal_names(config))
    assert contents(config.s3_prefix) == stored(rows())
    assert (result.rows, result.input_rows) == (len(KEYS), len(KEYS))


@pytest.mark.parametrize(
    "backend", [SqliteFactory(), LocalSlateDbFactory(), SlateDbFactory()], ids=lambda b: type(b).__name__
)
def test_shards_of_every_backend_are_kept(backend: Any, tmp_path: Path, config: HashShardedWriteConfig) -> None:
    config = replace(config, adapter_factory=backend, s3_prefix=tmp_path)
    seal_all_and_fail(config)
    result = write_hash_sharded(frame(rows()), config, INPUT)
    assert result.reused_shards == tuple(range(SHARDS))
    assert contents(tmp_path) == stored(rows())


@pytest.mark.parametrize("exchange", ["direct", "p2p"])
def test_workers_are_told_of_the_seals(
    exchange: Any, tmp_path: Path, config: HashShardedWriteConfig, request: pytest.FixtureRequest
) -> None:
    config = replace(config, s3_prefix=tmp_path)
    with scheduler("distributed", request):
        seal_all_and_fail(config)
        result = write_hash_sharded(frame(rows(k7=b"x")), config, INPUT, DaskWriteOptions(shuffle=exchange))
    assert set(range(SHARDS)) - set(result.reused_shards) == {shard_of(config, 7)}
    assert contents(tmp_path) == stored(rows(k7=b"x"))


def test_the_build_counts_as_begun_when_the_oldest_of_it_began(config: HashShardedWriteConfig) -> None:
    other_write(config)
    seal_all_and_fail(config)
    oldest = read_seal(config, 0).start
    store_of(str(config.s3_prefix)).delete([name for name in seal_names(config) if "/db=00000/" not in name])
    seal_all_and_fail(config)
    result = write_hash_sharded(frame(rows()), config, INPUT)
    assert result.reused_shards == tuple(range(SHARDS))
    starts = {seal.start for seal in (read_seal(config, db_id) for db_id in range(SHARDS))}
    assert len(starts) == 2
    assert oldest == min(starts, key=lambda start: start.started_at)
    assert (head_of(config).base, head_of(config).started_at, head_of(config).log) == dataclasses.astuple(oldest)


def test_a_file_that_changed_behind_the_same_path_is_noticed(tmp_path: Path, config: HashShardedWriteConfig) -> None:
    """The very same frame, over a file of the same name, size and number of rows."""
    path = tmp_path / "in.parquet"

    def store(values: dict[int, bytes]) -> None:
        pd.DataFrame({"key": list(values), "v": list(values.values())}).to_parquet(path)

    store(rows())
    seal_all_and_fail(config, dd.read_parquet(path))
    store(rows(k7=b"V7"))
    result = write_hash_sharded(dd.read_parquet(path), config, INPUT)
    assert set(range(SHARDS)) - set(result.reused_shards) == {shard_of(config, 7)}
    assert contents(config.s3_prefix) == stored(rows(k7=b"V7"))


CHANGES: dict[str, Callable[[dict[int, bytes]], dict[int, bytes]]] = {
    "another value": lambda values: {**values, 7: b"another"},
    "two values exchanged": lambda values: {**values, 7: values[7 + 1], 8: values[7]},
    "another key": lambda values: {(key if key != 7 else 1_007): value for key, value in values.items()},
    "a row less": lambda values: {key: value for key, value in values.items() if key != 7},
    "a row more": lambda values: {**values, 1_007: b"more"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changed_behind_the_same_path_is_noticed(change: str, config: HashShardedWriteConfig) -> None:
    seal_all_and_fail(config)
    changed = CHANGES[change](rows())
    with faults() as calls:
        result = write_hash_sharded(frame(changed), config, INPUT)
    assert contents(config.s3_prefix) == stored(changed)
    differing = {key for key in {*changed, *rows()} if changed.get(key) != rows().get(key)}
    touched = {shard_of(config, key) for key in differing}
    assert shards_written(calls) == touched
    assert set(result.reused_shards) == set(range(SHARDS)) - touched
    assert len(seal_names(config)) == SHARDS, "what is no longer true is swept"


@pytest.mark.parametrize("exchange", ["direct", "disk", "tasks"])
@pytest.mark.parametrize("policy", ["first", "last"])
def test_where_duplicates_were_dropped_the_same_ones_must_be_dropped_again(
    policy: Any, exchange: Any, config: HashShardedWriteConfig
) -> None:
    """The same rows in another order have the same digest, but another of them stays."""
    config = replace(config, on_duplicate_key=policy)
    keys, values = [*KEYS, 7, 7], [*rows().values(), b"second", b"third"]
    there = frame_of(key=keys, v=values)
    seal_all_and_fail(config, there, shuffle=exchange)
    assert write_hash_sharded(there, config, INPUT, DaskWriteOptions(shuffle=exchange)).reused_shards == (0, 1, 2, 3)
    config = replace(config, run_id="another")
    seal_all_and_fail(config, there, shuffle=exchange)
    back = frame_of(key=keys[::-1], v=values[::-1])
    result = write_hash_sharded(back, config, INPUT, DaskWriteOptions(shuffle=exchange))
    assert set(range(SHARDS)) - set(result.reused_shards) == {shard_of(config, 7)}
    assert contents(config.s3_prefix) == stored({**rows(), 7: b"third" if policy == "first" else b"v7"})


def damage_seal(config: HashShardedWriteConfig, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the seal of shard 2 and give it a true checksum again: only its content is wrong."""
    store = store_of(str(config.s3_prefix))
    name = next(name for name in seal_names(config) if "/db=00002/" in name)
    fields = decode_checked(store.get(name).body)
    change(fields)
    store.put(name, encode_checked(fields), content_type="application/json")


def drop_object(config: HashShardedWriteConfig) -> None:
    store_of(str(config.s3_prefix)).delete([shard_file(config)])


def shorten_object(config: HashShardedWriteConfig) -> None:
    store = store_of(str(config.s3_prefix))
    store.put(shard_file(config), store.get(shard_file(config)).body[:-1], content_type="x")


def shard_file(config: HashShardedWriteConfig) -> str:
    return next(n for n in shard_names(config) if "/db=00002/" in n and n.endswith("shard.db"))


def flip_bit(config: HashShardedWriteConfig) -> None:
    store = store_of(str(config.s3_prefix))
    name = next(name for name in seal_names(config) if "/db=00002/" in name)
    body = store.get(name).body.replace(b'"rows":1', b'"rows":9', 1).replace(b'"rows_in":1', b'"rows_in":9', 1)
    assert body != store.get(name).body
    store.put(name, body, content_type="application/json")


SPOILT: dict[str, Callable[[HashShardedWriteConfig], object]] = {
    "an object is gone": drop_object,
    "an object is shorter": shorten_object,
    "a digit is another": flip_bit,
    "a later format": lambda config: damage_seal(config, lambda seal: seal.update(format=2)),
    "another request": lambda config: damage_seal(config, lambda seal: seal.update(request="0" * 64)),
    "another run": lambda config: damage_seal(config, lambda seal: seal.update(run_id="weekly")),
    "another directory": lambda config: damage_seal(config, lambda seal: seal["attempt"].update(directory="shards/x")),
    "no objects": lambda config: damage_seal(config, lambda seal: seal["attempt"].update(objects=[])),
    "a field less": lambda config: damage_seal(config, lambda seal: seal.pop("rows_in")),
    "an attempt of nothing": lambda config: damage_seal(config, lambda seal: seal.update(attempt=[])),
    "another log": lambda config: damage_seal(config, lambda seal: seal.update(log="x")),
    "not even JSON": lambda config: store_of(str(config.s3_prefix)).put(
        next(name for name in seal_names(config) if "/db=00002/" in name), b"\xff{", content_type="x"
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_seal_that_does_not_hold_is_never_used(
    spoilt: str, config: HashShardedWriteConfig, caplog: pytest.LogCaptureFixture
) -> None:
    seal_all_and_fail(config)
    SPOILT[spoilt](config)
    with caplog.at_level(logging.INFO, "shardyfusion"):
        result = write_hash_sharded(frame(rows()), config, INPUT)
    assert result.reused_shards == (0, 1, 3)
    assert "/db=00002/" in caplog.text, "and it is said"
    assert contents(config.s3_prefix) == stored(rows())


def test_no_flipped_bit_of_a_seal_goes_unnoticed(config: HashShardedWriteConfig) -> None:
    seal_all_and_fail(config)
    seal = read_seal(config, 0)
    body = seal.encode()
    for position in range(len(body)):
        for bit in range(8):
            flipped = bytearray(body)
            flipped[position] ^= 1 << bit
            try:
                assert Seal.decode(bytes(flipped), "seal.json") == seal, f"bit {bit} of byte {position}"
            except ManifestParseError:
                continue


def test_seals_are_only_looked_for_under_a_given_run_id(config: HashShardedWriteConfig) -> None:
    with faults() as calls:
        other_write(config)
    first_listing = next(call for call in calls if call.verb == "list" and call.name.startswith("shards/"))
    assert any(call.verb == "upload" for call in calls if call.number < first_listing.number)
    assert not [call for call in calls if call.verb == "get" and call.name.endswith(SEAL)]


@pytest.mark.parametrize("between", ["a publish", "a cleanup"])
def test_nothing_is_kept_once_something_was_committed_after_it(between: str, config: HashShardedWriteConfig) -> None:
    """Kept shards would make the whole build as old as they are: stale, or older than a cleanup that looked at them."""
    other_write(config)
    seal_all_and_fail(config)
    if between == "a publish":
        other_write(config, rows(k0=b"newer"))
    else:
        assert append_cleanup(log_of(config), log_of(config).state(), ["an older run"])
    result = write_hash_sharded(frame(rows()), config, INPUT)
    assert result.reused_shards == ()
    assert result.manifest_ref == head_of(config).to_ref()
    assert contents(config.s3_prefix) == stored(rows())


def test_nothing_is_kept_once_another_writer_moved_the_pointer(config: HashShardedWriteConfig) -> None:
    other_write(config)
    seal_all_and_fail(config)
    store = store_of(str(config.s3_prefix))
    pointer = json.loads(store.get(CURRENT).body)
    foreign = {
        name: pointer[name] for name in ("format_version", "manifest_content_type", "manifest_ref", "updated_at")
    }
    store.put(CURRENT, json.dumps({**foreign, "run_id": "theirs"}).encode(), content_type="application/json")
    result = write_hash_sharded(frame(rows()), config, INPUT)
    assert result.reused_shards == ()
    assert log_of(config).state().served == result.manifest_ref


def test_of_several_seals_of_a_shard_the_same_one_is_taken_every_time(config: HashShardedWriteConfig) -> None:
    seal_all_and_fail(config)
    store = store_of(str(config.s3_prefix))
    one = read_seal(config, 2)
    for nonce in ("00000000", "ffffffff"):
        copy = replace(one.attempt, directory=f"{one.attempt.directory.rpartition('-')[0]}-{nonce}")
        body = store.get(f"{one.attempt.directory}/shard.db").body
        store.put(f"{copy.directory}/shard.db", body, content_type="x")
        store.put(f"{copy.directory}/{SEAL}", replace(one, attempt=copy).encode(), content_type="x")
    result = write_hash_sharded(frame(rows()), config, INPUT)
    assert result.winners[2].directory.endswith("attempt=00-00000000")
    assert len(seal_names(config)) == SHARDS
