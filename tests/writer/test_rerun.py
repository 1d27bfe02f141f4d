"""A rerun with the same run id publishes what is decided already, in the place among builds that it had."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shardyfusion import DaskWriteOptions, HashShardedWriteConfig
from shardyfusion.commits import BuildStart, Patience, append_cleanup, expiry_mark
from shardyfusion.errors import (
    ManifestParseError,
    PublishCurrentError,
    PublishManifestError,
    PublishUnknownError,
    RunConflictError,
    RunExpiredError,
    ShardyfusionError,
    StaleBuildError,
    StoreAccessError,
)
from shardyfusion.layout import SEAL
from shardyfusion.testing import StoreCall
from shardyfusion.writer.dask import BuildResult, pipeline, write_hash_sharded
from tests.protocol.tiny_writes import PUTS, Fault, faults, first, lose_answer, store_of
from tests.writer.frames import contents
from tests.writer.reruns import (
    INPUT,
    SHARDS,
    deny,
    frame,
    head_of,
    log_of,
    no_answer,
    other_write,
    read_seal,
    rows,
    seal_all_and_fail,
    seal_names,
    shard_writes,
    stored,
    unreadable,
)


@pytest.fixture
def config(config: HashShardedWriteConfig) -> HashShardedWriteConfig:
    return replace(config, num_dbs=SHARDS, run_id="nightly")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try, where a write would go on for a minute."""
    monkeypatch.setattr(pipeline, "Patience", lambda: Patience(deadline_seconds=0, pause_seconds=0))


FAILURES: dict[str, tuple[str, Fault, type[ShardyfusionError]]] = {
    "manifest denied": ("manifest", deny, PublishManifestError),
    "manifest unknown": ("manifest", lose_answer, PublishManifestError),
    "record unknown, absent": ("record", no_answer, PublishUnknownError),
    "record unknown, there": ("record", lose_answer, PublishUnknownError),
    "pointer denied": ("pointer-create", deny, PublishCurrentError),
    "pointer unknown": ("pointer-create", no_answer, PublishCurrentError),
}
COMMITTED = ["record unknown, there", "pointer denied", "pointer unknown"]


def fail_to_publish(config: HashShardedWriteConfig, failure: str) -> ShardyfusionError:
    put, fault, error = FAILURES[failure]
    with faults(first(10, PUTS[put], fault)), pytest.raises(error) as caught:
        write_hash_sharded(frame(rows()), config, INPUT)
    assert type(caught.value) is error
    assert caught.value.retryable
    return caught.value


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("failure", FAILURES)
def test_after_a_failed_publish_nothing_is_written_again_and_no_input_is_read(
    failure: str, config: HashShardedWriteConfig
) -> None:
    error = fail_to_publish(replace(config, run_id=None), failure)
    config = replace(config, run_id=error.facts["run_id"])
    start = decided_start(config)
    with faults() as calls:
        result = write_hash_sharded(unreadable(), config, INPUT)
    assert shard_writes(calls) == []
    assert result.reused
    assert result.reused_shards == tuple(range(SHARDS))
    assert "built by another execution" in repr(result)
    assert (head_of(config).base, head_of(config).started_at) == start
    assert result.manifest_ref == head_of(config).to_ref()
    assert contents(config.s3_prefix) == stored(rows())
    assert log_of(config).state().pointer.seq == 1


def decided_start(config: HashShardedWriteConfig) -> tuple[int, datetime]:
    """Of the first execution: when its run record was made is on the store's clock."""
    outcome = json.loads(store_of(str(config.s3_prefix)).get(f"runs/outcome/{config.run_id}.json").body)
    began = datetime.fromisoformat(outcome["started_at"])
    assert abs(datetime.now(UTC) - began) < timedelta(minutes=1)
    return outcome["base"], began


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_rerun_after_a_newer_publish_keeps_its_place(failure: str, config: HashShardedWriteConfig) -> None:
    """Committed before the other it returns its result; else it is older than what is served, however late the rerun."""
    fail_to_publish(config, failure)
    newer = other_write(config, rows(k0=b"newer"))
    if failure in COMMITTED:
        assert write_hash_sharded(unreadable(), config, INPUT).manifest_ref.seq == 1
    else:
        with pytest.raises(StaleBuildError, match="force=True"):
            write_hash_sharded(unreadable(), config, INPUT)
    assert head_of(config).to_ref() == newer.manifest_ref
    assert log_of(config).state().pointer.seq == newer.manifest_ref.seq
    assert contents(config.s3_prefix) == stored(rows(k0=b"newer"))


def test_an_outcome_of_another_request_is_refused(config: HashShardedWriteConfig) -> None:
    write_hash_sharded(frame(rows()), config, INPUT)
    for other in (
        replace(config, num_dbs=5),
        replace(config, custom={"team": "x"}),
        replace(config, key_encoding="u32be"),
    ):
        with pytest.raises(RunConflictError, match="another request"):
            write_hash_sharded(unreadable(), other, INPUT)


@pytest.mark.parametrize("committed", [True, False])
def test_what_a_cleanup_gave_up_is_refused_and_leaves_nothing(committed: bool, config: HashShardedWriteConfig) -> None:
    with faults(first(0 if committed else 10, PUTS["manifest"], deny)):
        try:
            write_hash_sharded(frame(rows()), config, INPUT)
        except PublishManifestError:
            assert not committed
    other_write(config)
    assert append_cleanup(log_of(config), log_of(config).state(), ["nightly"])
    store = store_of(str(config.s3_prefix))
    gone = [info.name for info in store.list() if "run_id=nightly/" in info.name]
    store.delete(gone)
    for force in (False, True):
        with pytest.raises(RunExpiredError, match="use a new run_id"):
            write_hash_sharded(unreadable(), replace(config, force=force), INPUT)
    assert not [info.name for info in store.list() if info.name in gone], "not even its manifest comes back"


def test_what_a_cleanup_gave_up_before_it_came_to_an_outcome_is_refused_too(config: HashShardedWriteConfig) -> None:
    seal_all_and_fail(config)
    store_of(str(config.s3_prefix)).create("runs/outcome/nightly.json", expiry_mark("nightly", 7), content_type="x")
    with pytest.raises(RunExpiredError, match="in commit 7"):
        write_hash_sharded(unreadable(), config, INPUT)


@pytest.mark.parametrize("field", ["format", "winners", "request"])
def test_a_damaged_outcome_decides_nothing(field: str, config: HashShardedWriteConfig) -> None:
    write_hash_sharded(frame(rows()), config, INPUT)
    store, name = store_of(str(config.s3_prefix)), "runs/outcome/nightly.json"
    outcome = json.loads(store.get(name).body)
    store.put(name, json.dumps({**outcome, field: 0}).encode(), content_type="x")
    with pytest.raises(ManifestParseError, match="outcome cannot be read"):
        write_hash_sharded(unreadable(), config, INPUT)


# -- while another execution finishes --------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["direct", "disk", "tasks"])
def test_an_execution_that_is_swept_while_it_builds_returns_what_was_committed(
    exchange: Any, config: HashShardedWriteConfig
) -> None:
    """Another one of the same run id commits in the middle of it, and takes its unfinished shards away."""
    uploads: list[StoreCall] = []
    done: list[BuildResult] = []

    def swept(call: StoreCall) -> None:
        uploads.extend([call] if call.verb == "upload" else [])
        if uploads == [call]:
            done.append(write_hash_sharded(frame(rows()), config, INPUT))
            raise StoreAccessError(f"{call}: there is no such upload any more")

    with faults(swept):
        result = write_hash_sharded(frame(rows()), config, INPUT, DaskWriteOptions(shuffle=exchange))
    assert result.reused
    assert result.winners == done[0].winners
    assert result.manifest_ref == done[0].manifest_ref == head_of(config).to_ref()
    assert len(seal_names(config)) == SHARDS
    assert contents(config.s3_prefix) == stored(rows())


@pytest.mark.parametrize("second_look", ["finds nothing", "gets no answer"])
def test_an_execution_that_fails_by_itself_says_why(second_look: str, config: HashShardedWriteConfig) -> None:
    looks: list[StoreCall] = []

    def fail(call: StoreCall) -> None:
        if call.verb == "upload":
            deny(call)
        if call.name.startswith("runs/outcome/"):
            looks.append(call)
            if len(looks) == 2 and second_look == "gets no answer":
                no_answer(call)

    with faults(fail), pytest.raises(StoreAccessError, match="upload"):
        write_hash_sharded(frame(rows()), config, INPUT)
    assert len(looks) == 2, "before the build, and when it had failed"


def test_a_swept_seal_is_never_published(config: HashShardedWriteConfig) -> None:
    """This execution would use the seal that another one, which commits meanwhile, does not name and sweeps."""
    seal_all_and_fail(config)
    kept = read_seal(config, 0).attempt

    done: list[BuildResult] = []

    def commit_otherwise(call: StoreCall) -> None:
        store_of(str(config.s3_prefix)).delete([f"{kept.directory}/{SEAL}"])
        done.append(write_hash_sharded(frame(rows()), config, INPUT))

    with faults(first(1, PUTS["outcome"], commit_otherwise)):
        result = write_hash_sharded(frame(rows()), config, INPUT)
    assert result.winners == done[0].winners
    assert kept.directory not in {winner.directory for winner in result.winners}
    assert contents(config.s3_prefix) == stored(rows())


def test_start_of_a_build_survives_being_stored() -> None:
    start = BuildStart(base=3, started_at=datetime(2026, 11, 20, 1, 2, 3, 456789, tzinfo=UTC), log="abc")
    assert BuildStart.from_json(json.loads(json.dumps(start.to_json()))) == start
