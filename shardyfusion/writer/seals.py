"""`seal.json`, written last into an attempt's directory: the shard is complete, and a rerun may use it.

There is no other ledger of what a run has built. A rerun that finds no outcome looks the seals up, and each shard task
decides by what it would have to build itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Self

from shardyfusion.commits import BuildStart
from shardyfusion.errors import ManifestParseError, ObjectNotFoundError
from shardyfusion.layout import SEAL
from shardyfusion.serde.checked_json import decode_checked, encode_checked
from shardyfusion.serde.row_digest import format_digest, parse_digest
from shardyfusion.storage import ObjectStore
from shardyfusion.writer.attempt import ShardAttempt
from shardyfusion.writer.conservation import RowSum

_log = logging.getLogger(__name__)

_FORMAT = 1
_READERS = 16


@dataclass(frozen=True, kw_only=True)
class Seal:
    """A sealed attempt, with what it takes to use it again.

    `arrived` is over all rows that the shard was built from, dropped duplicates included; `start` is that of the
    execution which built it.
    """

    run_id: str
    request: str
    start: BuildStart
    arrived: RowSum
    attempt: ShardAttempt

    @property
    def dropped(self) -> RowSum:
        """The duplicates that the attempt left out."""
        return self.arrived - self.attempt.kept

    def encode(self) -> bytes:
        return encode_checked(
            {
                "format": _FORMAT,
                "run_id": self.run_id,
                "request": self.request,
                **self.start.to_json(),
                "rows_in": self.arrived.rows,
                "digest_in": format_digest(self.arrived.digest),
                "attempt": self.attempt.to_json(),
            }
        )

    @classmethod
    def decode(cls, body: bytes, name: str) -> Self:
        """`ManifestParseError` for anything but an undamaged seal of this format."""
        try:
            fields = decode_checked(body, required=True)
            if fields["format"] != _FORMAT:
                raise ValueError(f"unknown format {fields['format']!r}")
            return cls(
                run_id=fields["run_id"],
                request=fields["request"],
                start=BuildStart.from_json(fields),
                arrived=RowSum(fields["rows_in"], parse_digest(fields["digest_in"])),
                attempt=ShardAttempt.from_json(fields["attempt"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ManifestParseError(f"the seal cannot be read: {exc}", name=name) from exc


def find_seals(
    store: ObjectStore, run_dir: str, *, run_id: str, request: str, start: BuildStart, overtaken: datetime | None
) -> dict[int, tuple[Seal, ...]]:
    """The complete attempts that earlier executions of this run id and request left, by shard number.

    Only of executions since which nothing was published: whatever was overtaken, or given up by a cleanup, would make
    the whole build so (`overtaken`: when another writer last published past our log). One listing, and one small
    request for each seal.
    """
    sizes = {info.name: info.size for info in store.list(run_dir)}
    names = [name for name in sizes if name.endswith(f"/{SEAL}")]
    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(partial(_read, store), names))
    found: dict[int, list[Seal]] = {}
    for name, seal in zip(names, read, strict=True):
        if seal is None:
            continue
        same = (seal.run_id, seal.request, f"{seal.attempt.directory}/{SEAL}") == (run_id, request, name)
        current = (seal.start.base, seal.start.log) == (start.base, start.log) and (
            overtaken is None or seal.start.started_at > overtaken
        )
        if same and current and _complete(seal.attempt, sizes):
            found.setdefault(seal.attempt.db_id, []).append(seal)
        else:
            _log.info("%s is not used again: of another request, overtaken, or no longer complete", name)
    return {db_id: tuple(sorted(seals, key=_order)) for db_id, seals in found.items()}


def unsealed_shards(store: ObjectStore, run_dir: str, db_path_template: str, num_dbs: int) -> list[int]:
    """The shards of which the run has no sealed attempt; those without rows never have one."""
    sealed = {
        info.name.removeprefix(run_dir).partition("/")[0]
        for info in store.list(run_dir)
        if info.name.endswith(f"/{SEAL}")
    }
    return [db_id for db_id in range(num_dbs) if db_path_template.format(db_id=db_id) not in sealed]


def reusable(seals: Iterable[Seal], arrived: RowSum, dropped: RowSum) -> Seal | None:
    """The first seal whose shard came from the same rows and left out the same ones: the shard would be the same."""
    return next((seal for seal in seals if (seal.arrived, seal.dropped) == (arrived, dropped)), None)


def _read(store: ObjectStore, name: str) -> Seal | None:
    try:
        return Seal.decode(store.get(name).body, name)
    except (ManifestParseError, ObjectNotFoundError) as exc:
        _log.warning("a seal is ignored and its shard built again: %s", exc)
        return None


def _complete(attempt: ShardAttempt, sizes: Mapping[str, int]) -> bool:
    return bool(attempt.objects) and all(
        sizes.get(f"{attempt.directory}/{item.path}") == item.size for item in attempt.objects
    )


def _order(seal: Seal) -> tuple[int, str]:
    return seal.attempt.attempt, seal.attempt.directory
