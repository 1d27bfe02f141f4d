"""A prefix whose clock a test moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from shardyfusion.commits import CommitLog
from shardyfusion.storage import MemoryStore, ObjectStore
from tests.operations.protocol_jobs import build, lacking

NO_GRACE = timedelta(0)
HOUR = timedelta(hours=1)


class Prefix:
    """A prefix in memory whose clock the test moves."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)
        self.url = f"memory://{uuid4().hex}/snap"
        self.store: ObjectStore = MemoryStore(self.url, clock=lambda: self.time)

    def names(self, prefix: str = "") -> list[str]:
        return [info.name for info in self.store.list(prefix)]

    def runs_with_shards(self) -> set[str]:
        return {name.split("/")[1].removeprefix("run_id=") for name in self.names("shards/")}

    def served(self) -> str:
        served = CommitLog(self.store).state().served
        assert served is not None
        assert lacking(self.store, served) == []
        return served.run_id

    def later(self, **age: float) -> Prefix:
        self.time += timedelta(**age)
        return self


def builds(prefix: Prefix, *run_ids: str) -> None:
    for run_id in run_ids:
        build(prefix.store, run_id)
        prefix.later(hours=2)
