"""docs/format.md says what is stored: its fields are those really written, its vectors hold, and citations lead to it."""

from __future__ import annotations

import ast
import json
import math
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import Any
from uuid import uuid4

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from shardyfusion import (
    ColumnWriteInput,
    HashShardedWriteConfig,
    KeyEncoding,
    LocalSlateDbFactory,
    SqliteFactory,
    ValueSpec,
)
from shardyfusion.errors import ConfigValidationError
from shardyfusion.routing.cel.program import compile_program
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.routing.hashing import HashRouter, canonical_bytes
from shardyfusion.storage import StoreAddress, open_store
from shardyfusion.writer.dask import write_hash_sharded
from tests.meta.test_docs import DOCS, ROOT

PAGE = DOCS / "format.md"
TABLE = re.compile(r"^<!-- (stored|vectors): (\w+) -->\n\n((?:\|.*\n)+)", re.MULTILINE)
CELL_END = re.compile(r"(?<!\\)\|")
TABLES = {
    f"{kind} {name}": [[cell.strip() for cell in CELL_END.split(line)[1:-1]] for line in table.splitlines()[2:]]
    for kind, name, table in TABLE.findall(PAGE.read_text())
}
CITATION = re.compile(r"""(docs/[\w/-]+\.md)(?:,\s+section\s+([\d.]*\d)|,\s+"([^"\n]+)")?""")
CODE = re.compile(r"`([^`]*)`")
PLACES = {
    "<20 digits>": r"\d{20}",
    "<time>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",
    "<run id>": r"[A-Za-z0-9._-]+",
    "<shard prefix>": "shards",
    "<db path>": r"db=\d{5}",
    "<nn>": r"\d\d",
    "<8 hex>": r"[0-9a-f]{8}",
    "<32 hex>": r"[0-9a-f]{32}",
    "<SlateDB's own>": r"(manifest|compacted|wal)/[^/]+",
}


def code(cell: str) -> str:
    (text,) = CODE.findall(cell)
    return text


def publish(prefix: str, factory: Any) -> None:
    """Three rows in up to four shards, one of them certainly empty."""
    users = dd.from_pandas(pd.DataFrame({"id": [1, 2, 3], "name": ["Ada", "Grace", "Edsger"]}), npartitions=1)
    config = HashShardedWriteConfig(s3_prefix=prefix, num_dbs=4, adapter_factory=factory)
    with dask.config.set(scheduler="synchronous"):
        write_hash_sharded(users, config, ColumnWriteInput("id", ValueSpec.binary_col("name")))


# -- fields ------------------------------------------------------------------------------------------------------------


def manifest_tables(body: bytes) -> dict[str, dict[str, Any]]:
    """The first row of both tables, by column."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(body)
        db.row_factory = sqlite3.Row
        names = [row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: dict(db.execute(f"SELECT * FROM {name}").fetchone()) for name in names}


@pytest.fixture(scope="module")
def written() -> dict[str, dict[str, Any]]:
    """What a small write left behind: for each table of the page, the fields of such an object with their values."""
    prefix = f"memory://{uuid4().hex}/snap"
    publish(prefix, SqliteFactory())
    store = open_store(StoreAddress.parse(prefix))
    bodies = {info.name: store.get(info.name).body for info in store.list()}

    def body(pattern: str) -> bytes:
        return next(body for name, body in bodies.items() if re.fullmatch(pattern, name))

    manifest = manifest_tables(body("manifests/.*/manifest"))
    assert set(manifest) == {"build_meta", "shards"}
    outcome, seal = json.loads(body("runs/outcome/.*")), json.loads(body(".*/seal.json"))
    assert seal["attempt"] in outcome["winners"]
    return {
        "pointer": json.loads(body("_CURRENT")),
        "build_meta": manifest["build_meta"],
        "shards": manifest["shards"],
        "sharding": json.loads(manifest["build_meta"]["sharding"]),
        "custom": json.loads(manifest["build_meta"]["custom"])["shardyfusion"],
        "run": yaml.safe_load(body(".*/run.yaml")),
        "commit": json.loads(body("commits/.*")),
        "outcome": outcome,
        "seal": seal,
        "attempt": seal["attempt"],
    }


@pytest.mark.parametrize(
    "name", [key.split()[1] for key in TABLES if key.startswith("stored") and "objects" not in key]
)
def test_fields_are_those_of_a_real_write(name: str, written: dict[str, dict[str, Any]]) -> None:
    stated = [field for row in TABLES[f"stored {name}"] for field in CODE.findall(row[0])]
    assert len(stated) == len(set(stated))
    assert set(stated) == set(written[name])


def test_every_kind_of_object_has_a_table_of_fields(written: dict[str, dict[str, Any]]) -> None:
    assert {f"stored {name}" for name in written} < set(TABLES)


def test_fixed_values_are_those_of_a_real_write(written: dict[str, dict[str, Any]]) -> None:
    """Versions, and the members of objects inside objects."""
    assert written["build_meta"]["format_version"] == 4
    assert [written[name]["format"] for name in ("commit", "outcome", "seal")] == [1, 1, 1]
    assert [written[name]["format_version"] for name in ("pointer", "run")] == [1, 1]
    shard, page = written["shards"], {row[0]: row[2] for row in TABLES["stored shards"]}
    assert set(json.loads(shard["writer_info"])) == set(CODE.findall(page["`writer_info`"]))
    assert set(json.loads(shard["objects"])[0]) == set(CODE.findall(page["`objects`"])) - {"db_url"}
    types = {"TEXT": str, "INTEGER": int, "BLOB": bytes}
    for name in ("build_meta", "shards"):
        for row in TABLES[f"stored {name}"]:
            kinds = {type(written[name][column]) for column in CODE.findall(row[0])}
            assert kinds == {types[row[1].split()[0]]}, row


def test_objects_have_the_stated_names_and_content_types(s3_client: Any, s3_prefix: str) -> None:
    """Of both backends, on S3; every row of the table is met."""
    bucket = s3_prefix.removeprefix("s3://").partition("/")[0]
    rows: dict[str, str] = {}
    for row in TABLES["stored objects"]:
        pattern = re.escape(code(row[1]))
        for place, meaning in PLACES.items():
            pattern = pattern.replace(re.escape(place), meaning)
        rows[pattern] = code(row[2])
    met: set[str] = set()
    for root, factory in (("lite", SqliteFactory()), ("slate", LocalSlateDbFactory())):
        publish(f"s3://{bucket}/{root}", factory)
        for item in s3_client.list_objects_v2(Bucket=bucket, Prefix=f"{root}/")["Contents"]:
            (pattern,) = [row for row in rows if re.fullmatch(f"{root}/{row}", item["Key"])]
            assert s3_client.head_object(Bucket=bucket, Key=item["Key"])["ContentType"] == rows[pattern], item["Key"]
            met.add(pattern)
    assert met == set(rows)


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_routing_vectors() -> None:
    rows = TABLES["vectors routing"]
    assert len(rows) >= 8
    counts = [int(heading) for heading in re.findall(r"\| mod (\d+)", PAGE.read_text())]
    assert len(counts) == len(rows[0]) - 3
    for shown, canonical, digest, *shards in rows:
        key = ast.literal_eval(code(shown))
        assert canonical_bytes(key).hex() == code(canonical).replace("empty", "")
        assert HashRouter(2**64).route(key) == int(code(digest), 16)
        assert [HashRouter(count).route(key) for count in counts] == [int(shard) for shard in shards]
        arrow = {int: pa.int64(), str: pa.large_string(), bytes: pa.large_binary()}[type(key)]
        column = pa.array([key], arrow)
        assert [HashRouter(count).route_arrow(column, {})[0] for count in counts] == [int(shard) for shard in shards]


def test_cel_vectors() -> None:
    kinds = {int: CelType.INT, str: CelType.STRING, float: CelType.DOUBLE, bool: CelType.BOOL}
    assert len(TABLES["vectors cel"]) > 5
    for expression, shown, result in TABLES["vectors cel"]:
        row = ast.literal_eval(code(shown))
        columns = {name: kinds[type(value)] for name, value in row.items()}
        program = compile_program(code(expression).replace(r"\|", "|"), columns)
        assert program.evaluate(row) == ast.literal_eval(code(result).replace(r"\|", "|"))


def test_key_vectors() -> None:
    rows = TABLES["vectors keys"]
    assert {code(row[0]) for row in rows} == {encoding.value for encoding in KeyEncoding}
    for name, shown, stored in rows:
        encoding, key = KeyEncoding(code(name)), ast.literal_eval(code(shown))
        if stored == "refused":
            with pytest.raises(ConfigValidationError):
                encoding.encode(key)
        else:
            assert encoding.encode(key).hex() == code(stored)


def test_value_vectors() -> None:
    for spec, shown, stored in TABLES["vectors values"]:
        row = eval(code(shown), {"nan": math.nan})
        frame = pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in row.items()})
        value_spec = eval(f"ValueSpec.{code(spec)}", {"ValueSpec": ValueSpec})
        assert value_spec.encode_frame(frame).to_pylist() == [ast.literal_eval(code(stored))]


# -- citations ---------------------------------------------------------------------------------------------------------


def headings(page: str) -> Iterable[str]:
    """Their text, and where they are numbered, their number."""
    for number, title in re.findall(r"^#+ (?:([\d.]*\d)\.? )?(.*)$", page, re.MULTILINE):
        yield from (number, title)


@pytest.mark.parametrize("folder", ["shardyfusion", "tests", "examples", "benchmarks"])
def test_citations_of_pages_lead_somewhere(folder: str) -> None:
    """In any Python file: `docs/format.md`, which may go on `, section 3.3` or `, "Shards"`."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for page, number, title in CITATION.findall(path.read_text()):
            assert (ROOT / page).is_file(), f"{path} cites {page}"
            cited = number or title
            assert not cited or cited in headings((ROOT / page).read_text()), f"{path} cites {page}, {cited}"
