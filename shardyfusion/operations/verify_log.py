"""Is the commit log one chain, and does the pointer say what the log says?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shardyfusion.commits import CommitLog, CommitRecord, served_manifest
from shardyfusion.errors import ManifestParseError
from shardyfusion.layout import COMMITS, CURRENT, commit_name, parse_commit_name
from shardyfusion.manifest import ManifestRef
from shardyfusion.storage import ObjectStore

_READERS = 16


@dataclass(frozen=True, kw_only=True)
class LogCheck:
    """`served` is None where damage hides what is served; `records` are those that can be read, by number."""

    records: dict[int, CommitRecord]
    served: ManifestRef | None
    problems: list[str]
    unchecked: list[str]


def check_log(store: ObjectStore) -> LogCheck:
    """Read every commit record and the pointer. `SnapshotNotFoundError` if nothing is published."""
    problems, unchecked, served = list[str](), list[str](), None
    try:
        served = served_manifest(store)
        pointer = CommitLog(store).state(known_seq=served.seq or 0).pointer
    except ManifestParseError as exc:
        problems.append(str(exc))
        pointer = None
    records = _read_records(store, problems)
    problems += _broken_links(records)
    if records and min(records) > 1 and not problems:
        unchecked.append(f"commits before {min(records)}: they are not there")
    newest = max(records, default=0)
    if pointer is None and served is not None:
        unchecked.append(f"{CURRENT}: it is not there; readers list {COMMITS}, and the next write makes a new one")
    elif pointer is not None and pointer.seq is not None:
        named = records.get(pointer.seq)
        if named is None or pointer.ref != named.to_ref():
            problems.append(f"{CURRENT} is not what commit {pointer.seq} made of it")
        elif pointer.seq < newest and records[newest].manifest_ref != named.manifest_ref:
            unchecked.append(f"{CURRENT} lags behind: it names commit {pointer.seq} of {newest}; readers look further")
    return LogCheck(records=records, served=served, problems=problems, unchecked=unchecked)


def _read_records(store: ObjectStore, problems: list[str]) -> dict[int, CommitRecord]:
    log = CommitLog(store)

    def read(seq: int) -> CommitRecord | str | None:
        try:
            return log.read(seq)
        except ManifestParseError as exc:
            return str(exc)

    seqs = sorted(seq for info in store.list(COMMITS) if (seq := parse_commit_name(info.name)))
    with ThreadPoolExecutor(_READERS) as pool:
        found = dict(zip(seqs, pool.map(read, seqs), strict=True))
    problems += [text for text in found.values() if isinstance(text, str) and text not in problems]
    gaps = sorted(set(range(seqs[0], seqs[-1])) - set(seqs)) if seqs else []
    problems += [f"{commit_name(seq)} is missing, although later commits are there" for seq in gaps]
    return {seq: record for seq, record in found.items() if isinstance(record, CommitRecord)}


def _broken_links(records: dict[int, CommitRecord]) -> list[str]:
    broken: list[str] = []
    for seq, record in records.items():
        below = records.get(seq - 1)
        if below and (record.parent != (below.seq, below.write_id) or record.log != below.log):
            broken.append(f"commit {seq} does not follow what is stored as commit {seq - 1}")
    return broken
