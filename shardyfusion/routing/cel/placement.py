"""From whole columns to shards, or to the distinct values that a pass over the input is after.

Everything here raises `InputDataError` for the first row that has no place; it names the expression and the row's key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardyfusion.errors import InputDataError, ShardAssignmentError
from shardyfusion.routing.cel.columns import arrow_type
from shardyfusion.routing.cel.distinct import evaluate_program, row_at
from shardyfusion.routing.cel.functions import EvaluationError
from shardyfusion.routing.cel.program import Program
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.serde.columns import arrow_compute
from shardyfusion.serde.keys import shown

pc: Any = arrow_compute()

ShardIds = npt.NDArray[np.int64]


class Results:
    """What a program gives for the rows of a partition: a value for every row, or the error of the first without.

    `keys` are only for messages; None where they were not read.
    """

    def __init__(self, program: Program, columns: Mapping[str, pa.Array], keys: pa.Array | None, rows: int) -> None:
        self._program = program
        self._keys = keys
        self._values, failed = evaluate_program(program, columns, rows)
        if failed is not None:
            row = int(failed.argmax())
            raise self._error(row, f"has no value: {_reason(program, columns, row)}; mend the row or the expression")

    def shard_ids(self, num_dbs: int) -> ShardIds:
        """The results themselves, as numbers of shards."""
        numbers = self._numbers()
        if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= num_dbs):
            row = int(((numbers < 0) | (numbers >= num_dbs)).argmax())
            raise self._error(
                row,
                f"gives {self._shown(row)}, which is no shard: they are numbered from 0 to {num_dbs - 1}. Use % (of a "
                "negative int it is negative) or shard_hash(…) % …u, or set num_dbs higher",
            )
        return numbers.astype(np.int64, copy=False)

    def positions(self, routing_values: Sequence[int | str]) -> ShardIds:
        """Where in `routing_values` each result stands."""
        kind = arrow_type(CelType(self._program.result))
        found = pc.index_in(pa.array(self._values), value_set=pa.array(list(routing_values), kind))
        if found.null_count:
            row = pc.index(found.is_null(), True).as_py()
            raise self._error(
                row,
                f"gives {self._shown(row)}, which is not among routing_values; add it there, or set "
                "infer_routing_values_from_data=True (if it was, the input has changed since)",
            )
        return found.to_numpy().astype(np.int64)

    def distinct_ids(self, limit: int) -> list[int]:
        """The shard numbers that occur, all of them below `limit`."""
        return np.flatnonzero(np.bincount(self.shard_ids(limit))).tolist()

    def distinct_values(self) -> list[Any]:
        return pc.unique(pa.array(self._values)).to_pylist()

    def _numbers(self) -> npt.NDArray[Any]:
        if isinstance(self._values, np.ndarray):
            return self._values
        encoded = self._values.dictionary_encode()
        numbers = [_number(text) for text in encoded.dictionary.to_pylist()]
        if None in numbers:
            row = pc.index(encoded.indices, numbers.index(None)).as_py()
            raise self._error(
                row,
                f"gives {self._shown(row)}, which is no shard number; make it an integer, or set routing_values or "
                "infer_routing_values_from_data=True",
            )
        # An id that no array holds is no shard's in any case.
        small = np.array([number if number is not None and 0 <= number < 2**62 else -1 for number in numbers], np.int64)
        return small[encoded.indices.to_numpy()]

    def _shown(self, row: int) -> str:
        value = self._values[row]
        return shown(value.item() if isinstance(self._values, np.ndarray) else value.as_py())

    def _error(self, row: int, problem: str) -> InputDataError:
        key = None if self._keys is None else self._keys[row].as_py()
        where = f"row {row} of a partition" if self._keys is None else f"key {shown(key)}"
        facts = {} if self._keys is None else {"key": key}
        return InputDataError(f"cel_expr {self._program.expression!r}, for {where}, {problem}", row=row, **facts)


def _reason(program: Program, columns: Mapping[str, pa.Array], row: int) -> str:
    """Why a row has no value, by the scalar evaluator, which gives reasons."""
    try:
        value = program.evaluate(row_at(program, columns, row))
    except EvaluationError as exc:
        return str(exc)
    raise ShardAssignmentError(
        f"cel_expr {program.expression!r} has a value for a row alone and none in columns; this is a bug in routing, "
        "nothing was published",
        value=value,
    )


def _number(text: str | bytes) -> int | None:
    """As the format has it: what Python's `int()` makes of a text."""
    try:
        return int(text)
    except ValueError:
        return None
