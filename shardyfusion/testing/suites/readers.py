"""What every reader of published snapshots promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import pytest

from shardyfusion.errors import ConfigValidationError, ReaderStateError, SnapshotNotFoundError

Rows = Mapping[int, bytes]

ROWS: Rows = {key: b"" if key % 10 == 3 else b"value of %d" % key for key in range(40)}
ABSENT = (1_000, 2**62)


class Reader(Protocol):
    """What the tests use of a reader."""

    def get(self, key: int) -> bytes | None: ...
    def multi_get(self, keys: Iterable[int]) -> Mapping[int, bytes | None]: ...
    def scan(self, db_id: int) -> Iterator[tuple[bytes, bytes]]: ...
    def route_key(self, key: int) -> int: ...
    def refresh(self) -> bool: ...
    def close(self) -> None: ...


class ReaderTests:
    """Provide `publish` and `open_reader`, which work on one place, empty at first, another for each test."""

    @pytest.fixture
    def publish(self) -> Callable[[Rows], None]:
        raise NotImplementedError("a fixture `publish` returns a function that publishes rows as the next snapshot")

    @pytest.fixture
    def open_reader(self) -> Callable[[], Reader]:
        raise NotImplementedError("a fixture `open_reader` returns a function that opens a reader on what is served")

    def test_without_a_snapshot_there_is_no_reader(self, open_reader: Callable[[], Reader]) -> None:
        with pytest.raises(SnapshotNotFoundError):
            open_reader()

    def test_every_row_is_found_and_no_other(
        self, publish: Callable[[Rows], None], open_reader: Callable[[], Reader]
    ) -> None:
        publish(ROWS)
        reader = open_reader()
        assert {key: reader.get(key) for key in ROWS} == ROWS
        assert [reader.get(key) for key in ABSENT] == [None, None]
        asked = [ABSENT[0], *ROWS, 3, ABSENT[0]]
        found = reader.multi_get(asked)
        assert list(found) == [ABSENT[0], *ROWS]
        assert found == {ABSENT[0]: None, **ROWS}
        assert reader.multi_get([]) == {}
        reader.close()

    def test_scans_give_every_row_once_in_key_order_where_it_is_routed(
        self, publish: Callable[[Rows], None], open_reader: Callable[[], Reader]
    ) -> None:
        publish(ROWS)
        reader = open_reader()
        shards = {reader.route_key(key) for key in ROWS}
        scanned = {db_id: list(reader.scan(db_id)) for db_id in shards}
        for db_id, rows in scanned.items():
            expected = {key.to_bytes(8, "big"): value for key, value in ROWS.items() if reader.route_key(key) == db_id}
            assert rows == sorted(expected.items())
        reader.close()

    @pytest.mark.parametrize("key", ["7", None, 7.0, -1])
    def test_what_cannot_be_a_key_is_refused(
        self, publish: Callable[[Rows], None], open_reader: Callable[[], Reader], key: int
    ) -> None:
        publish(ROWS)
        reader = open_reader()
        lookups: Sequence[Callable[[], object]] = (lambda: reader.get(key), lambda: reader.multi_get([1, key]))
        for lookup in lookups:
            with pytest.raises(ConfigValidationError):
                lookup()
        reader.close()

    def test_a_snapshot_is_served_until_refresh_takes_the_next_one_whole(
        self, publish: Callable[[Rows], None], open_reader: Callable[[], Reader]
    ) -> None:
        newer = {key: value + b"!" for key, value in ROWS.items() if key % 2}
        publish(ROWS)
        reader = open_reader()
        assert reader.get(1) == ROWS[1]
        assert reader.refresh() is False
        publish(newer)
        assert reader.multi_get(ROWS) == ROWS
        assert reader.refresh() is True
        assert reader.multi_get(ROWS) == {key: newer.get(key) for key in ROWS}
        assert reader.refresh() is False
        reader.close()

    def test_a_closed_reader_says_so(self, publish: Callable[[Rows], None], open_reader: Callable[[], Reader]) -> None:
        publish(ROWS)
        reader = open_reader()
        half_way = reader.scan(reader.route_key(1))
        next(half_way)
        reader.close()
        reader.close()
        uses: Sequence[Callable[[], object]] = (
            lambda: reader.get(1),
            lambda: reader.multi_get([1]),
            lambda: reader.scan(0),
            lambda: list(half_way),
            reader.refresh,
        )
        for use in uses:
            with pytest.raises(ReaderStateError, match="closed"):
                use()
