"""`shardy rollback` and `shardy cleanup`: what they print, and their exit codes. What they do is in tests/operations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shardyfusion.cli.app import shardy
from shardyfusion.storage import StoreAddress, open_store
from tests.operations.protocol_jobs import reference_publish
from tests.reader.snapshots import listing, publish


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    prefix = str(tmp_path / "snap")
    for day in ("monday", "tuesday", "wednesday"):
        publish(prefix, {1: day.encode()}, run_id=day)
    return prefix


def run(*args: str) -> Result:
    return CliRunner().invoke(shardy, args)


def test_rollback(prefix):
    done = run("rollback", prefix, "--to", "previous")
    assert done.exit_code == 0
    assert done.stdout.startswith("commit 4: serving run tuesday (file://")
    assert run("get", prefix, "1").stdout == "tuesday\n"
    assert "*       4    rollback  tuesday" in run("history", prefix).stdout
    refused = run("rollback", prefix, "--to", "friday")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: ")
    assert run("rollback", prefix).exit_code == 2  # --to is missing


def test_rollback_to_what_another_writer_serves(tmp_path):
    store = open_store(StoreAddress.parse(tmp_path))
    reference_publish(store, "theirs")
    done = run("rollback", str(tmp_path), "--to", "theirs")
    assert (done.exit_code, done.stdout.startswith("no commit: serving run theirs (file://")) == (0, True)


def test_cleanup(prefix):
    before = listing(prefix)
    planned = run("cleanup", prefix, "--keep-last", "2", "--grace", "0s", "--dry-run", "--json")
    assert planned.exit_code == 0
    plan = json.loads(planned.stdout)
    assert (plan["dry_run"], plan["seq"]) == (True, None)
    assert listing(prefix) == before
    done = run("cleanup", prefix, "--keep-last", "2", "--grace", "0s")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].split() == ["key", "bytes", "modified"]
    assert done.stdout.splitlines()[-1].endswith("2 versions stay (commit 4)")
    gone = {*before} - {*listing(prefix)}
    assert gone == {row["key"] for row in plan["deleted"]}
    assert all(any(line.startswith(f"{name} ") for line in done.stdout.splitlines()) for name in gone)
    assert "monday" in plan["expired"]
    assert run("cleanup", prefix, "--grace", "0s").stdout == "deleted 0 objects, 0 bytes; 2 versions stay\n"


@pytest.mark.parametrize("age", ["5", "1y", "-1d", "1.5h", "day"])
def test_what_is_no_age(prefix, age):
    refused = run("cleanup", prefix, "--grace", age)
    assert refused.exit_code == 2
    assert "is not an age" in refused.stderr
