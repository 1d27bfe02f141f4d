"""`verify`: sound snapshots are sound in every mode, and each kind of damage is reported where it is."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from shardyfusion import LocalSlateDbFactory, SqliteFactory
from shardyfusion.cli.app import shardy
from shardyfusion.commits import CommitLog, append_cleanup
from shardyfusion.errors import (
    ConfigValidationError,
    SnapshotNotFoundError,
    StoreAccessError,
    StoreUnavailableError,
)
from shardyfusion.layout import CURRENT, JSON_TYPE, commit_name
from shardyfusion.operations import rollback, verify
from shardyfusion.serde.keys import KeyEncoding
from shardyfusion.storage import StoreAddress, open_store, wrapping_stores
from shardyfusion.testing.faults import FaultStore, StoreCall
from tests.integrity.published import ROWS, change, flipped, names, write
from tests.reader.snapshots import listing, publish

MODES = ["metadata", "sample", "full"]
FACTORIES = {"sqlite": SqliteFactory(), "slatedb": LocalSlateDbFactory()}


@pytest.fixture
def prefix() -> str:
    return f"memory://{uuid4().hex}/snap"


def body_of(prefix: str, name: str) -> bytes:
    return open_store(StoreAddress.parse(prefix)).get(name).body


# -- sound -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", FACTORIES)
def test_a_sound_snapshot(any_prefix, backend, tmp_path):
    write(any_prefix, FACTORIES[backend])
    before = listing(any_prefix)
    for mode in MODES:
        report = verify(any_prefix, mode, local_root=tmp_path, sample_rows=7, seed=1)
        assert (report.ok, report.problems, report.unchecked, report.advice) == (True, (), (), None)
        assert (report.run_id, report.seq, report.mode, report.seed) == ("run-1", 1, mode, 1)
        assert [shard.unchecked for shard in report.shards] == [()] * 3
        assert all(shard.bytes > 0 for shard in report.shards)
        assert sum(shard.rows for shard in report.shards) == {"metadata": 0, "sample": 21, "full": len(ROWS)}[mode]
    assert listing(any_prefix) == before
    assert not list(tmp_path.glob("shardyfusion-verify-*"))


def test_text_keys_empty_shards_and_no_rows(prefix):
    publish(prefix, {f"user-{n}": b"%d" % n for n in range(20)}, encoding=KeyEncoding.UTF8, num_dbs=64)
    report = verify(prefix, "full")
    assert report.ok
    assert sum(shard.rows for shard in report.shards) == 20
    publish(prefix, {}, run_id="empty")
    assert verify(prefix, "full").ok


def test_which_snapshot(prefix):
    for number in (1, 2, 3):
        write(prefix, SqliteFactory(), {number: b"x"}, run_id=f"run-{number}")
    url = verify(prefix, to=2).manifest_ref
    for to in (2, "2", "run-2", url):
        report = verify(prefix, "full", to=to)
        assert (report.run_id, report.seq, report.ok) == ("run-2", 2, True)
    rollback(prefix, to=1)
    assert verify(prefix).run_id == "run-1"
    for to in (9, "run-9", f"{prefix}/manifests/x"):
        with pytest.raises(ConfigValidationError, match="history"):
            verify(prefix, to=to)


def test_a_run_id_of_digits_goes_before_a_commits_number(prefix):
    for run_id in ("3", "2", "1"):
        publish(prefix, {1: b"x"}, run_id=run_id)
    for to, run_id in {"3": "3", "1": "1", 3: "1", 1: "3"}.items():
        assert verify(prefix, to=to).run_id == run_id
        assert rollback(prefix, to=to).run_id == run_id


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "fast"}, {"sample_rows": 0}, {"workers": 0}, {"workers": 1.5}, {"to": 1.5}, {"to": True}],
    ids=str,
)
def test_arguments_are_checked(prefix, wrong):
    write(prefix, SqliteFactory())
    with pytest.raises(ConfigValidationError, match=next(iter(wrong))):
        verify(prefix, **wrong)


def test_an_unusable_local_root_says_so(prefix, tmp_path):
    write(prefix, SqliteFactory())
    with pytest.raises(ConfigValidationError, match="local_root"):
        verify(prefix, "full", local_root=tmp_path / "missing")


def test_no_snapshot(any_prefix):
    with pytest.raises(SnapshotNotFoundError):
        verify(any_prefix)


# -- damaged objects ---------------------------------------------------------------------------------------------------


def swapped(body: bytes) -> bytes:
    return flipped(body, 8 * (len(body) // 2))


@pytest.mark.parametrize("backend", FACTORIES)
@pytest.mark.parametrize(
    ("damage", "found_by", "says"),
    [
        (lambda body: None, MODES, "is missing|nothing is stored"),
        (lambda body: body[:-1], MODES, "bytes instead of"),
        (lambda body: body + b"x", MODES, "bytes instead of"),
        (swapped, ["full"], "sha256"),
    ],
    ids=["missing", "short", "long", "changed"],
)
def test_a_damaged_shard_is_named(prefix, backend, damage, found_by, says):
    write(prefix, FACTORIES[backend])
    name = max(
        (n for n in names(prefix, "db=00001/") if n.endswith((".sst", ".db"))), key=lambda n: len(body_of(prefix, n))
    )
    change(prefix, name, damage(body_of(prefix, name)))
    for mode in found_by:
        report = verify(prefix, mode)
        (damaged,) = report.damaged
        assert damaged.db_id == 1
        assert damaged.problem is not None
        assert f"{prefix}/{name}".startswith(damaged.url)
        assert any(part in damaged.problem for part in says.split("|")), damaged.problem
        assert (report.ok, report.problems) == (False, ())
        assert report.advice is not None
        assert "anew" in report.advice
        assert [shard.problem for shard in report.shards if shard.db_id != 1] == [None, None]


def test_the_manifest_that_slatedb_starts_from_is_checked_in_every_mode(prefix):
    write(prefix, FACTORIES["slatedb"])
    recorded = max(names(prefix, "db=00001/attempt"), key=lambda name: ("/manifest/" in name, name))
    body = change(prefix, recorded, swapped(body_of(prefix, recorded)))
    for mode in MODES:
        assert [shard.db_id for shard in verify(prefix, mode).damaged] == [1]
    change(prefix, recorded, body)
    number = int(Path(recorded).stem)
    store = open_store(StoreAddress.parse(prefix))
    store.put(recorded.replace(f"{number:020d}", f"{number + 1:020d}"), body, content_type=JSON_TYPE)
    metadata = verify(prefix)
    assert metadata.ok
    assert "later manifests" in metadata.shards[1].unchecked[0]


def test_advice_that_works(prefix):
    write(prefix, SqliteFactory(), run_id="monday")
    write(prefix, SqliteFactory(), run_id="tuesday")
    change(prefix, names(prefix, "run_id=tuesday/db=00002/")[1], None)
    report = verify(prefix)
    assert report.advice is not None
    assert f"`shardy verify {prefix} --to 1`" in report.advice
    assert f"`shardy rollback {prefix} --to 1`" in report.advice
    assert verify(prefix, "full", to=1).ok
    rollback(prefix, to=1)
    assert verify(prefix, "full").ok


# -- damaged log, pointer and manifest ---------------------------------------------------------------------------------


def test_a_damaged_manifest(prefix):
    write(prefix, SqliteFactory())
    (name,) = names(prefix, "manifests/")
    for damage, says in ((None, "not there"), (b"", "sha256"), (swapped(body_of(prefix, name)), "sha256")):
        before = change(prefix, name, damage)
        report = verify(prefix)
        assert (report.ok, report.run_id, report.shards) == (False, "run-1", ())
        assert says in report.problems[0]
        open_store(StoreAddress.parse(prefix)).put(name, before, content_type=JSON_TYPE)
    assert verify(prefix).ok


def three(prefix: str) -> None:
    for number in (1, 2, 3):
        write(prefix, SqliteFactory(), {number: b"x"}, run_id=f"run-{number}")


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_a_damaged_record(prefix, seq):
    three(prefix)
    change(prefix, commit_name(seq), swapped(body_of(prefix, commit_name(seq))))
    report = verify(prefix)
    assert (len(report.problems), commit_name(seq) in report.problems[0]) == (1, True), report.problems
    assert report.run_id == (None if seq == 3 else "run-3"), "what the newest record says is hidden"
    assert report.advice is not None
    assert "anew" not in report.advice, "a new write does not mend the log"


def test_a_missing_record(prefix):
    three(prefix)
    first, second = (change(prefix, commit_name(seq), None) for seq in (1, 2))
    report = verify(prefix)
    assert (report.ok, report.unchecked) == (True, ("commits before 3: they are not there",))
    change_to(prefix, commit_name(1), first)
    assert "00002.json is missing" in verify(prefix).problems[0]
    change_to(prefix, commit_name(2), second)
    assert verify(prefix).ok


def change_to(prefix: str, name: str, body: bytes) -> None:
    open_store(StoreAddress.parse(prefix)).put(name, body, content_type=JSON_TYPE)


def test_a_record_of_another_log(prefix):
    three(prefix)
    other = f"memory://{uuid4().hex}/snap"
    three(other)
    change(prefix, commit_name(2), body_of(other, commit_name(2)))
    assert [text.partition(" does")[0] for text in verify(prefix).problems] == ["commit 2", "commit 3"]


def test_pointers(prefix):
    write(prefix, SqliteFactory(), {1: b"x"}, run_id="run-1")
    lagging = body_of(prefix, CURRENT)
    write(prefix, SqliteFactory(), {2: b"x"}, run_id="run-2")
    good = change(prefix, CURRENT, lagging)
    report = verify(prefix)
    assert (report.ok, report.run_id) == (True, "run-2")
    assert "names commit 1 of 2" in report.unchecked[0]
    change(prefix, CURRENT, None)
    report = verify(prefix)
    assert report.ok
    assert CURRENT in report.unchecked[0]
    change_to(prefix, CURRENT, good[:-5])
    assert CURRENT in verify(prefix).problems[0]
    log = CommitLog(open_store(StoreAddress.parse(prefix)))
    head = log.read(2)
    assert head is not None
    other = f"memory://{uuid4().hex}/snap"
    three(other)
    change_to(prefix, CURRENT, body_of(other, CURRENT))  # commit 3 of another log
    assert "not what commit 3 made of it" in verify(prefix).problems[0]


def test_a_snapshot_that_cleanup_has_given_up(prefix):
    three(prefix)
    log = CommitLog(open_store(StoreAddress.parse(prefix)))
    assert append_cleanup(log, log.state(), ["run-1"])
    assert verify(prefix).ok
    assert "cleanup in commit 4" in verify(prefix, to=1).problems[0]


# -- what is no damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [StoreUnavailableError("503"), StoreAccessError("403")])
def test_a_store_that_does_not_answer_is_not_damaged(prefix, mode, error):
    write(prefix, SqliteFactory())
    verbs = {"list"} if mode == "metadata" else {"download"}

    def fail(call: StoreCall) -> None:
        if call.verb in verbs and "db=00001" in call.name:
            raise error

    with wrapping_stores(lambda store: FaultStore(store, before=fail)), pytest.raises(type(error)):
        verify(prefix, mode)


# -- other writers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hash_sqlite_int", "hash_sqlite_str", "hash_slatedb_int", "cel_direct_sqlite", "cel_inferred_sqlite"]
)
def test_what_the_reference_published(shared, tmp_path, name):
    import tarfile

    with tarfile.open(shared / "golden" / "upstream-0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((tmp_path / "expected.json").read_text())[name]
    before = listing(str(tmp_path / "bucket" / name))
    for mode in MODES:
        report = verify(tmp_path / "bucket" / name, mode)
        assert (report.ok, report.seq) == (True, None), report
        assert all("none are recorded" in shard.unchecked[0] for shard in report.shards)
        assert mode != "full" or sum(shard.rows for shard in report.shards) == len(expected["rows"])
        why_not = {text for shard in report.shards for text in shard.unchecked if "its keys belong" in text}
        needs_context = mode != "metadata" and name == "cel_inferred_sqlite"
        takes = "whether its keys belong to it: that takes region, tier, which shards do not hold"
        assert why_not == ({takes} if needs_context else set())
    assert listing(str(tmp_path / "bucket" / name)) == before


# -- command line ------------------------------------------------------------------------------------------------------


def run(*args: str) -> Result:
    return CliRunner().invoke(shardy, ["verify", *args])


def test_command_line(tmp_path):
    prefix = str(tmp_path / "snap")
    write(prefix, SqliteFactory(), run_id="monday")
    shown = run(prefix, "--mode", "full")
    assert shown.exit_code == 0
    lines = dict(line.split(":", 1) for line in shown.stdout.splitlines())
    assert {name: text.strip() for name, text in lines.items()} == {
        "snapshot": "run monday, commit 1",
        "mode": "full",
        "sound": "3 of 3 shards; 60 rows read, 24,576 bytes compared",
    }
    write(prefix, SqliteFactory(), run_id="tuesday")
    with closing((tmp_path / "snap" / names(prefix, "run_id=tuesday/db=00001/")[1]).open("r+b")) as file:
        file.seek(5000)
        file.write(b"rot")
    shown = run(prefix, "--mode", "full")
    assert shown.exit_code == 1
    assert "sound:      2 of 3 shards" in shown.stdout
    assert "damaged:    shard 1 at file:///" in shown.stdout
    assert "what to do: write the snapshot anew with a new run_id; until then, go back" in shown.stdout
    assert run(prefix, "--to", "1", "--mode", "full").exit_code == 0
    told = run(prefix, "--mode", "full", "--json")
    fields = json.loads(told.stdout)
    assert told.exit_code == 1
    assert (fields["ok"], fields["run_id"], [s["db_id"] for s in fields["shards"] if s["problem"]]) == (
        False,
        "tuesday",
        [1],
    )
    change(prefix, commit_name(2), b"{}")
    assert "snapshot:   hidden by damage" in run(prefix).stdout
    failed = run(str(tmp_path / "nothing"))
    assert (failed.exit_code, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)


def test_a_sample_can_be_repeated(prefix):
    write(prefix, SqliteFactory())
    assert "seed 5" in run(prefix, "--mode", "sample", "--seed", "5", "--sample-rows", "3", "--workers", "1").stdout
    assert verify(prefix, "sample", seed=5) == verify(prefix, "sample", seed=5)
