"""`shardy` on real prefixes: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from shardyfusion import CelShardedWriteConfig, ColumnWriteInput, SqliteFactory, ValueSpec
from shardyfusion.cli import app
from shardyfusion.cli.app import shardy
from shardyfusion.layout import CURRENT, JSON_TYPE
from shardyfusion.serde.keys import KeyEncoding
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.writer.dask import write_cel_sharded
from tests.reader.snapshots import build, commit, publish


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "snap")


def run(*args: str) -> Result:
    return CliRunner().invoke(shardy, args)


def test_info(prefix):
    publish(prefix, {1: b"one", 2: b"two"}, run_id="nightly")
    shown = run("info", prefix)
    assert shown.exit_code == 0
    lines = dict(line.split(":", 1) for line in shown.stdout.split("\n\n")[0].splitlines())
    assert (lines["run_id"].strip(), lines["rows"].strip(), lines["backend"].strip()) == ("nightly", "2", "sqlite")
    assert "db_id  row_count" in shown.stdout
    fields = json.loads(run("info", prefix, "--json").stdout)
    assert (fields["run_id"], fields["seq"], fields["num_dbs"], fields["key_encoding"]) == ("nightly", 1, 4, "u64be")
    assert sum(shard["row_count"] for shard in fields["shard_details"]) == fields["rows"] == 2
    assert len(fields["shard_details"]) == 4


def test_get_of_integer_keys(prefix):
    publish(prefix, {7: "é".encode(), 8: b"\xff\x00\n", 9: b""})
    assert run("get", prefix, "7").stdout == "é\n"
    assert run("get", prefix, "8").stdout == "ff000a\n"
    assert run("get", prefix, "8", "--raw").stdout_bytes == b"\xff\x00\n"
    assert run("get", prefix, "9", "--raw").stdout_bytes == b""
    assert run("get", prefix, "0000000000000007", "--key-type", "hex").stdout == "é\n"
    absent = run("get", prefix, "10")
    assert (absent.exit_code, absent.stdout, absent.stderr) == (1, "", f"no key '10' in {prefix}\n")


def test_get_with_a_context(prefix):
    kinds = {"i": "int", "u": "uint", "d": "double", "p": "bool", "s": "string", "b": "bytes"}
    row = {"i": -3, "u": 2**63, "d": 0.5, "p": True, "s": "a=b", "b": b"\xff"}
    frame = pd.DataFrame({"id": [7], "v": ["seven"]} | {name: pd.Series([value]) for name, value in row.items()})
    frame["u"] = frame["u"].astype("uint64")
    expression = "i == -3 && u > 9u && d == 0.5 && p && s == 'a=b' && b == b'\\xff' ? 1 : 0"
    config = CelShardedWriteConfig(
        s3_prefix=prefix, cel_expr=expression, cel_columns=kinds, num_dbs=2, adapter_factory=SqliteFactory()
    )
    with dask.config.set({"scheduler": "synchronous", "dataframe.convert-string": False}):
        ddf = dd.from_pandas(frame, npartitions=1)
        write_cel_sharded(ddf, config, ColumnWriteInput("id", ValueSpec.binary_col("v")))
    given = {"i": "-3", "u": str(2**63), "d": "0.5", "p": "true", "s": "a=b", "b": "ff"}
    context = [word for name, text in given.items() for word in ("--context", f"{name}={text}")]
    assert run("get", prefix, "7", *context).stdout == "seven\n"
    assert run("get", prefix, "7", *context, "--context", "i=4").exit_code == 1
    for wrong, says in (("i=x", "i is int"), ("p=yes", "p is bool"), ("b=é", "b is bytes"), ("z=1", "NAME=VALUE of b, d"), ("i", "NAME=VALUE")):  # fmt: skip
        refused = run("get", prefix, "7", *context, "--context", wrong)
        assert (refused.exit_code, says in refused.stderr) == (2, True), refused.stderr
    refused = run("get", prefix, "7")
    assert (refused.exit_code, "routing_context has no 'b', 'd', 'i'" in refused.stderr) == (2, True)
    assert json.loads(run("info", prefix, "--json").stdout)["context_columns"] == kinds


def test_get_of_text_keys(prefix):
    publish(prefix, {"7": b"seven", "é": b"accent"}, encoding=KeyEncoding.UTF8)
    assert run("get", prefix, "7").stdout == "seven\n"
    assert run("get", prefix, "é", "--key-type", "str").stdout == "accent\n"
    assert run("get", prefix, "c3a9", "--key-type", "hex").stdout == "accent\n"
    refused = run("get", prefix, "7", "--key-type", "int")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("key", "flags"),
    [
        ("abc", ()),
        pytest.param("9" * 9000, (), id="long"),
        ("0g", ("--key-type", "hex")),
        ("1.5", ("--key-type", "int")),
    ],
)
def test_a_key_that_cannot_be_read_is_one_line(prefix, key, flags):
    publish(prefix, {1: b"one"})
    shown = run("get", prefix, key, *flags)
    assert (shown.exit_code, shown.stdout, shown.stderr.count("\n")) == (2, "", 1)
    assert shown.stderr.startswith(f"error: key '{key[:50]}")
    assert len(shown.stderr) < 300


def test_history_of_commits(prefix):
    for number in (1, 2, 3):
        publish(prefix, {number: b"x"}, run_id=f"run-{number}")
    rows = json.loads(run("history", prefix, "--json").stdout)
    assert [(row["seq"], row["run_id"], row["kind"], row["served"]) for row in rows] == [
        (3, "run-3", "build", True),
        (2, "run-2", "build", False),
        (1, "run-1", "build", False),
    ]
    assert [row["seq"] for row in json.loads(run("history", prefix, "--json", "--limit", "2").stdout)] == [3, 2]
    lines = run("history", prefix).stdout.splitlines()
    assert lines[0].split() == ["served", "seq", "kind", "run_id", "committed_at"]
    assert lines[1].split()[:4] == ["*", "3", "build", "run-3"]
    assert lines[2].split()[:3] == ["2", "build", "run-2"]


def as_another_writer(prefix: str, run_id: str) -> None:
    """Publish as the reference does: a manifest and an unnumbered pointer, no commit."""
    store = open_store(StoreAddress.parse(prefix))
    ref = commit(prefix, build(prefix, {1: b"x"}, run_id=run_id), advance=False)
    store.delete([info.name for info in store.list("commits/")][-1:])
    pointer = {
        "format_version": 1,
        "manifest_content_type": "application/x-sqlite3",
        "manifest_ref": ref.ref,
        "run_id": run_id,
        "updated_at": "2026-11-20T10:00:00.000000Z",
    }
    store.put(CURRENT, json.dumps(pointer).encode(), content_type=JSON_TYPE)


def test_history_without_commits_lists_manifests(prefix):
    as_another_writer(prefix, "run-1")
    as_another_writer(prefix, "run-2")
    rows = json.loads(run("history", prefix, "--json").stdout)
    assert [(row["seq"], row["kind"], row["run_id"], row["served"]) for row in rows] == [
        (None, "manifest", "run-2", True),
        (None, "manifest", "run-1", False),
    ]
    assert len(json.loads(run("history", prefix, "--json", "--limit", "1").stdout)) == 1


def test_history_shows_what_another_writer_published_on_top(prefix):
    publish(prefix, {1: b"ours"})
    as_another_writer(prefix, "theirs")
    rows = json.loads(run("history", prefix, "--json").stdout)
    assert [(row["seq"], row["run_id"], row["served"]) for row in rows] == [(None, "theirs", True), (1, "run-1", False)]


@pytest.mark.parametrize("command", [["info"], ["get", "1"], ["history"]])
@pytest.mark.parametrize("where", ["", "nothing-here", "ftp://x/y", "s3://bucket-only"])
def test_errors_are_one_line_and_exit_2(tmp_path, command, where):
    target = str(tmp_path / where) if where == "nothing-here" else where
    shown = run(command[0], target, *command[1:])
    assert (shown.exit_code, shown.stdout, shown.stderr.count("\n")) == (2, "", 1)
    assert shown.stderr.startswith("error: ")


def test_endpoint_and_region_reach_the_store(s3, s3_prefix, monkeypatch):
    publish(s3_prefix, {1: b"one"})
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    shown = run("get", s3_prefix, "1", "--endpoint-url", s3, "--region", "us-east-1")
    assert (shown.exit_code, shown.stdout) == (0, "one\n")


def test_help_names_every_command():
    assert all(name in run("--help").stdout for name in ("info", "get", "history"))
    assert "--endpoint-url" in run("info", "--help").stdout


def shell(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False)


def test_the_installed_command(prefix):
    publish(prefix, {1: b"one"})
    main = "from shardyfusion.cli import main; main()"
    assert shell(main, "get", prefix, "1").stdout == "one\n"
    failed = shell(main, "info", prefix + "-not")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)


def test_a_stored_key_of_any_length_is_refused_in_one_line(prefix):
    publish(prefix, {1: b"one"})
    refused = run("get", prefix, "ff" * 9000, "--key-type", "hex")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: key <integer of 72,000 bits> is out of range")


@pytest.mark.parametrize(
    ("exception", "code", "says"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (RuntimeError("odd\nthing"), 2, "error: RuntimeError: odd thing\n"),
    ],
)
def test_only_an_absent_key_is_exit_code_1(prefix, monkeypatch, exception, code, says):
    def fail(*args, **kwargs):
        raise exception

    monkeypatch.setattr(app, "ShardedReader", fail)
    shown = run("get", prefix, "1")
    assert (shown.exit_code, shown.stdout, shown.stderr) == (code, "", says)


@pytest.mark.parametrize(
    ("output", "code", "says"),
    [("> /dev/full", 2, "error: OSError: [Errno 28] No space left on device\n"), ("| true", 141, "")],
)
@pytest.mark.parametrize("arguments", [("info",), ("--help",)])
def test_output_that_cannot_be_written(prefix, output, code, says, arguments):
    publish(prefix, {1: b"one"})
    main = "import time; time.sleep(0.3)\nfrom shardyfusion.cli import main; main()"  # `true` has ended by then
    line = f'"$@" {output}; exit ${{PIPESTATUS[0]}}'
    command = ["bash", "-c", line, "-", sys.executable, "-c", main, *arguments, prefix]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (code, says)


def test_without_click_it_says_what_to_install():
    ended = shell("import sys; sys.modules['click'] = None\nfrom shardyfusion.cli import main; main()", "info", "x")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: click is not installed; run: pip install 'shardyfusion[cli]'\n"
