"""From shard results to the one outcome of a run id: conservation, winners, and the create-only outcome object.

Pure except `freeze_outcome` and `find_outcome`, which store and read that object.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Self

from shardyfusion.commits import BuildStart, Patience, create_once, expired_by
from shardyfusion.config import WriteConfig
from shardyfusion.errors import ManifestParseError, ObjectNotFoundError, RunConflictError, RunExpiredError
from shardyfusion.layout import JSON_TYPE, manifest_name, outcome_name, parse_timestamp, timestamp
from shardyfusion.manifest import Manifest, ShardingSpec
from shardyfusion.serde.checked_json import decode_checked, encode_checked
from shardyfusion.serde.row_digest import format_digest
from shardyfusion.storage import ObjectStore
from shardyfusion.writer.attempt import ShardAttempt
from shardyfusion.writer.conservation import RowSum, require_same_rows
from shardyfusion.writer.encode import Tally
from shardyfusion.writer.shard import ShardResult


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run id came to, fixed once: the same winners, manifest name and order among builds for every rerun."""

    run_id: str
    request: str
    stamp: str
    write_id: str
    start: BuildStart
    num_dbs: int
    sharding: ShardingSpec
    input_rows: int
    row_digest: str
    winners: tuple[ShardAttempt, ...]

    @property
    def manifest_name(self) -> str:
        return manifest_name(self.stamp, self.run_id)

    def encode(self) -> bytes:
        fields: dict[str, Any] = {
            "format": 1,
            "run_id": self.run_id,
            "request": self.request,
            "stamp": self.stamp,
            "write_id": self.write_id,
            **self.start.to_json(),
            "num_dbs": self.num_dbs,
            "strategy": self.sharding.strategy,
            "cel_expr": self.sharding.cel_expr,
            "cel_columns": self.sharding.cel_columns,
            "routing_values": self.sharding.routing_values,
            "input_rows": self.input_rows,
            "row_digest": self.row_digest,
            "winners": [winner.to_json() for winner in self.winners],
        }
        return encode_checked(fields)

    @classmethod
    def decode(cls, body: bytes, name: str) -> Self:
        try:
            fields = decode_checked(body, required=True)
            if fields["format"] != 1:
                raise ValueError(f"unknown format {fields['format']!r}")
            values = fields["routing_values"]
            return cls(
                run_id=fields["run_id"],
                request=fields["request"],
                stamp=fields["stamp"],
                write_id=fields["write_id"],
                start=BuildStart.from_json(fields),
                num_dbs=fields["num_dbs"],
                sharding=ShardingSpec(
                    strategy=fields["strategy"],
                    cel_expr=fields["cel_expr"],
                    cel_columns=fields["cel_columns"],
                    routing_values=None if values is None else tuple(values),
                ),
                input_rows=fields["input_rows"],
                row_digest=fields["row_digest"],
                winners=tuple(ShardAttempt.from_json(item) for item in fields["winners"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ManifestParseError(f"the run outcome cannot be read: {exc!r}", name=name) from exc


def check_conservation(tally: Tally, results: Sequence[ShardResult]) -> None:
    """What arrived at every shard is what was read for it, row for row; else `ShardCoverageError` names the shard."""
    arrived = {result.db_id: result.arrived for result in results}
    for db_id in range(len(tally.counts)):
        require_same_rows(db_id, tally.of(db_id), arrived.get(db_id, RowSum()))


def select_winners(results: Sequence[ShardResult]) -> tuple[ShardAttempt, ...]:
    """One attempt per non-empty shard, by shard number; of several, the lowest attempt, then directory."""
    best: dict[int, ShardAttempt] = {}
    attempts = [result.attempt for result in results if result.attempt and result.attempt.rows]
    for attempt in sorted(attempts, key=lambda a: (a.db_id, a.attempt, a.directory)):
        best.setdefault(attempt.db_id, attempt)
    return tuple(best.values())


def make_outcome(
    *,
    run_id: str,
    request: str,
    start: BuildStart,
    sharding: ShardingSpec,
    tally: Tally,
    winners: tuple[ShardAttempt, ...],
) -> Outcome:
    return Outcome(
        run_id=run_id,
        request=request,
        stamp=timestamp(datetime.now(UTC)),
        write_id=uuid.uuid4().hex,
        start=start,
        num_dbs=len(tally.counts),
        sharding=sharding,
        input_rows=tally.rows,
        row_digest=format_digest(int(tally.digests.sum())),
        winners=winners,
    )


def freeze_outcome(store: ObjectStore, outcome: Outcome, patience: Patience) -> Outcome:
    """Store the outcome of the run id, or adopt the one that is there if it is of the same request."""
    name = outcome_name(outcome.run_id)
    body, ours = create_once(store, name, outcome.encode(), content_type=JSON_TYPE, patience=patience)
    return outcome if ours else _adopted(body, name, outcome.run_id, outcome.request)


def find_outcome(store: ObjectStore, run_id: str, request: str) -> Outcome | None:
    """The outcome that an earlier execution of this run id left; `RunConflictError` if it was another request's."""
    name = outcome_name(run_id)
    try:
        body = store.get(name).body
    except ObjectNotFoundError:
        return None
    return _adopted(body, name, run_id, request)


def _adopted(body: bytes, name: str, run_id: str, request: str) -> Outcome:
    if given_up := expired_by(body):
        raise RunExpiredError(f"cleanup gave up run {run_id!r} in commit {given_up}; use a new run_id", run_id=run_id)
    outcome = Outcome.decode(body, name)
    if outcome.request != request:
        raise RunConflictError(
            f"run_id {outcome.run_id!r} belongs to another request (other config, columns or library version); "
            "choose a new run_id",
            run_id=outcome.run_id,
        )
    return outcome


def manifest_of(outcome: Outcome, config: WriteConfig, key_col: str, root_url: str) -> Manifest:
    """The manifest that an outcome publishes: always the same for one outcome."""
    return Manifest(
        run_id=outcome.run_id,
        created_at=parse_timestamp(outcome.stamp),
        num_dbs=outcome.num_dbs,
        s3_prefix=root_url,
        key_col=key_col,
        sharding=outcome.sharding,
        key_encoding=config.key_encoding,
        shards=tuple(winner.to_record(root_url, config.key_encoding) for winner in outcome.winners),
        db_path_template=config.output.db_path_template,
        shard_prefix=config.output.shard_prefix,
        custom={
            **config.custom,
            "shardyfusion": {
                "backend": config.adapter_factory.backend,
                "writer": version("shardyfusion"),
                "input_rows": outcome.input_rows,
                "row_digest": outcome.row_digest,
            },
        },
    )
