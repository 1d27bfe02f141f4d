"""Is a published snapshot whole? The log is read in `verify_log.py`, shards in `verify_shard.py`; the rest is here."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from shardyfusion.commits import (
    CommitRecord,
    listed_manifests,
    load_manifest,
    manifest_name_of,
    snapshots_before,
)
from shardyfusion.credentials import CredentialProvider
from shardyfusion.errors import CommitLogError, ConfigValidationError, ManifestParseError, MissingExtraError
from shardyfusion.layout import COMMITS, CURRENT
from shardyfusion.manifest import Manifest, ManifestRef, ShardRecord
from shardyfusion.operations.verify_log import LogCheck, check_log
from shardyfusion.operations.verify_shard import Mode, ShardCheck, ShardVerifier
from shardyfusion.routing import Router
from shardyfusion.routing.resolve import router_for
from shardyfusion.serde.row_digest import NAME, format_digest, parse_digest
from shardyfusion.shard_contract import ShardReaderFactory
from shardyfusion.storage import ObjectStore, StoreAddress, open_store
from shardyfusion.type_defs import S3ConnectionOptions, require, require_type


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found. Nothing is damaged if `ok`.

    `problems` are those of the commit log, the pointer and the manifest; those of shards stand in `shards`.
    `unchecked` says what could not be compared, and what is unusual but no damage. `run_id`, `seq` and `manifest_ref`
    are None where damage hides what is served.
    """

    prefix: str
    mode: Mode
    seed: int
    run_id: str | None = None
    seq: int | None = None
    manifest_ref: str | None = None
    problems: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    shards: tuple[ShardCheck, ...] = ()
    advice: str | None = None

    @property
    def ok(self) -> bool:
        return not self.problems and not self.damaged

    @property
    def damaged(self) -> tuple[ShardCheck, ...]:
        """The shards with a problem."""
        return tuple(shard for shard in self.shards if shard.problem is not None)


def verify(
    s3_prefix: str | os.PathLike[str],
    mode: Mode = "metadata",
    *,
    to: str | int | None = None,
    sample_rows: int = 100,
    seed: int | None = None,
    workers: int = 4,
    local_root: str | os.PathLike[str] | None = None,
    reader_factory: ShardReaderFactory | None = None,
    allow_external_shards: bool = False,
    credential_provider: CredentialProvider | None = None,
    s3_connection_options: S3ConnectionOptions | None = None,
) -> VerifyReport:
    """Re-read a published snapshot and compare it with what was recorded. Nothing is written to the store.

    Damage is reported, never raised. Snapshots of other writers record less: the report says what that leaves open.

    Args:
        mode: `"metadata"`: commit log, pointer, manifest, and the sizes of all objects. `"sample"`: also open every
            shard, read its first rows and look some of them up. `"full"`: also compare the sha256 of every object, and
            read every row: order, routing, count and digest.
        to: Which snapshot: the number of a commit, a run id or the URL of a manifest. Default: what is served.
        sample_rows: How many rows of each shard mode `"sample"` reads.
        seed: Chooses the rows that are looked up; the report has it. Default: a random one.
        workers: How many shards are read at a time.
        local_root: Where copies of shards are made and removed again, one for each worker. Default: a temporary
            directory. What lies in a directory already is read in place.
        reader_factory, allow_external_shards: As for `ShardedReader`.

    Raises:
        SnapshotNotFoundError: Nothing is published at the prefix.
        ConfigValidationError: There is no such snapshot, or an argument is wrong.
        StorageError, ShardTimeoutError: The store did not answer, or refused; that is not taken for damage.
        ShardUnavailableError: A copy of a shard cannot be kept in `local_root`.
    """
    _check_arguments(mode, to, sample_rows, workers)
    address = StoreAddress.parse(s3_prefix, credential_provider=credential_provider, options=s3_connection_options)
    store = open_store(address)
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    log = check_log(store)
    report = VerifyReport(
        prefix=address.url, mode=mode, seed=seed, problems=tuple(log.problems), unchecked=tuple(log.unchecked)
    )
    ref = log.served if to is None else _find(store, log.records, to)
    manifest = None
    if ref is not None:
        report, manifest = _check_manifest(store, log, ref, report)
    if manifest is not None:
        with _scratch(local_root if mode != "metadata" else None) as scratch:
            verifier = ShardVerifier(
                address=address,
                manifest=manifest,
                mode=mode,
                router=_router(manifest),
                reader_factory=reader_factory,
                allow_external_shards=allow_external_shards,
                sample_rows=sample_rows,
                seed=seed,
                scratch=scratch,
            )
            report = replace(report, shards=_check_shards(verifier, manifest.shards, workers))
    return replace(report, advice=_advice(store, log, report, ref))


def _check_manifest(
    store: ObjectStore, log: LogCheck, ref: ManifestRef, report: VerifyReport
) -> tuple[VerifyReport, Manifest | None]:
    report = replace(report, run_id=ref.run_id, seq=ref.seq, manifest_ref=ref.ref)
    expired = next((r.seq for r in log.records.values() if {ref.run_id, _name(store, ref)} & {*r.expired}), None)
    if expired is not None:
        report = _with(report, problems=[f"the cleanup in commit {expired} has given this snapshot up"])
    try:
        manifest = load_manifest(store, ref)
    except ManifestParseError as exc:
        return _with(report, problems=[str(exc)]), None
    problems, unchecked = _check_totals(manifest)
    return _with(report, problems=problems, unchecked=unchecked), manifest


@contextmanager
def _scratch(local_root: str | os.PathLike[str] | None) -> Generator[Path]:
    try:
        directory = TemporaryDirectory(dir=local_root, prefix="shardyfusion-verify-")
    except OSError as exc:
        raise ConfigValidationError(f"local_root {local_root!r} cannot be used: {exc}; pass a writable one") from exc
    with directory as path:
        yield Path(path)


def _check_arguments(mode: str, to: object, sample_rows: int, workers: int) -> None:
    require(mode in ("metadata", "sample", "full"), f"mode {mode!r} is none of metadata, sample, full")
    if to is not None:
        require_type(to, (int, str), "to")
    for name, value in (("sample_rows", sample_rows), ("workers", workers)):
        require_type(value, int, name)
        require(value > 0, f"{name} {value!r} must be positive")


def _with(report: VerifyReport, *, problems: Iterable[str] = (), unchecked: Iterable[str] = ()) -> VerifyReport:
    return replace(report, problems=(*report.problems, *problems), unchecked=(*report.unchecked, *unchecked))


def _name(store: ObjectStore, ref: ManifestRef) -> str | None:
    try:
        return manifest_name_of(store, ref.ref)
    except ManifestParseError:
        return None


def _find(store: ObjectStore, records: dict[int, CommitRecord], to: str | int) -> ManifestRef:
    newest_first = [record for _, record in sorted(records.items(), reverse=True) if record.manifest_ref]
    for record in newest_first:
        if to in (record.run_id, record.manifest_ref):
            return record.to_ref()
    for record in newest_first:  # a run id may consist of digits, and goes before the number, as for `rollback`
        if str(to) == str(record.seq):
            return record.to_ref()
    for ref in listed_manifests(store):
        if to in (ref.run_id, ref.ref):
            return ref
    raise ConfigValidationError(
        f"{store.url} has no readable commit, run or manifest {to!r}; `shardy history` lists what there is"
    )


def _check_totals(manifest: Manifest) -> tuple[list[str], list[str]]:
    """The manifest's own totals against the sums over its shards: problems, and what could not be compared."""
    ours = manifest.custom.get("shardyfusion")
    totals: dict[str, object] = dict(ours) if isinstance(ours, dict) else {}  # pyright: ignore[reportUnknownArgumentType]
    read, digest = totals.get("input_rows"), totals.get("row_digest")
    if not isinstance(read, int) or not isinstance(digest, str) or not digest.startswith(f"{NAME}:"):
        return [], ["the total of rows: none is recorded"]
    rows = sum(shard.row_count for shard in manifest.shards)
    if rows > read:
        return [f"the shards hold {rows} rows together, but only {read} were read"], []
    if rows < read:
        return [], [f"the digest of all rows: of {read} rows that were read, {read - rows} were dropped as duplicates"]
    total = format_digest(sum(parse_digest(shard.row_digest or f"{NAME}:0") for shard in manifest.shards))
    return ([] if total == digest else [f"the row digests of the shards add up to {total}, not {digest}"]), []


def _router(manifest: Manifest) -> Router | str:
    """What keys are routed with, or why they cannot be."""
    try:
        router = router_for(manifest.sharding, manifest.num_dbs, manifest.key_col)
    except (ConfigValidationError, MissingExtraError) as exc:
        return exc.message
    if router.context_columns:
        return f"that takes {', '.join(router.context_columns)}, which shards do not hold"
    return router


def _check_shards(verifier: ShardVerifier, shards: Iterable[ShardRecord], workers: int) -> tuple[ShardCheck, ...]:
    with ThreadPoolExecutor(workers) as pool:
        checks = [pool.submit(verifier.check, shard) for shard in shards if shard.db_url is not None]
        try:
            return tuple(check.result() for check in checks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _advice(store: ObjectStore, log: LogCheck, report: VerifyReport, ref: ManifestRef | None) -> str | None:
    """What an operator can do about what was found; None if that is nothing."""
    advice: list[str] = []
    if log.problems:
        advice.append(
            f"restore what is damaged below {COMMITS}, or {CURRENT}, from a copy or an earlier object version"
        )
    if ref is not None and (report.damaged or len(report.problems) > len(log.problems)):
        advice.append("write the snapshot anew with a new run_id")
        with suppress(ManifestParseError, CommitLogError):
            for older in islice(snapshots_before(store, ref), 1) if ref == log.served else ():
                to = f"{store.url} --to {older.seq or older.run_id}"
                advice.append(
                    f"until then, go back to an older one if it is sound: `shardy verify {to}`, then "
                    f"`shardy rollback {to}`"
                )
    return "; ".join(advice) or None
