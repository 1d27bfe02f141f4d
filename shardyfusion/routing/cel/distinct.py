"""A program over columns: all of them at a time, or what lies outside of that once for each distinct tuple."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardyfusion.routing.cel.arrays import Failed, evaluate_columns, mapped
from shardyfusion.routing.cel.functions import EvaluationError
from shardyfusion.routing.cel.program import Program
from shardyfusion.routing.cel.scalar import Row

_log = logging.getLogger(__name__)

Codes = npt.NDArray[np.int64]

ANNOUNCED_TUPLES = 100_000
"""More distinct tuples than this are announced, with how long they will take."""

_TIMED_TUPLES = 5_000


def evaluate_program(program: Program, columns: Mapping[str, pa.Array], rows: int) -> tuple[Any, Failed]:
    """The value of each row, and which rows have none: as of `evaluate_columns`, whichever path the program takes.

    `columns` are those of the program, each of its type's Arrow form and without nulls.
    """
    if program.path == "vectorised":
        return evaluate_columns(program.tree, {name: _plain(columns[name]) for name in program.columns}, rows)
    codes, firsts = distinct_tuples([columns[name] for name in program.columns], rows)
    found, failed = mapped(program.evaluate, program.result, _rows_at(program, columns, firsts))
    spread = found[codes] if isinstance(found, np.ndarray) else found.take(pa.array(codes))
    return spread, None if failed is None else failed[codes]


def distinct_tuples(columns: Sequence[pa.Array], rows: int) -> tuple[Codes, Codes]:
    """For each row the number of its tuple of values, and for each tuple the first row that has it.

    Doubles are told apart by their bits: a NaN is a value of its own, and so is -0.0.
    """
    codes = np.zeros(rows, dtype=np.int64)
    for column in columns:
        encoded = (column.view(pa.int64()) if pa.types.is_float64(column.type) else column).dictionary_encode()
        codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
        # Numbered anew, so that the product stays below rows * rows.
        codes = pa.array(codes).dictionary_encode().indices.to_numpy().astype(np.int64)
    firsts = np.empty(int(codes.max(initial=-1)) + 1, dtype=np.int64)
    firsts[codes[::-1]] = np.arange(rows)[::-1]
    return codes, firsts


def row_at(program: Program, columns: Mapping[str, pa.Array], row: int) -> Row:
    return {name: columns[name][row].as_py() for name in program.columns}


def _rows_at(program: Program, columns: Mapping[str, pa.Array], firsts: Codes) -> list[Row]:
    at = pa.array(firsts)
    values = [columns[name].take(at).to_pylist() for name in program.columns]
    tuples: list[Row] = [dict(zip(program.columns, row, strict=True)) for row in zip(*values, strict=True)]
    if len(tuples) > ANNOUNCED_TUPLES:
        _announce(program, tuples)
    return tuples or [{} for _ in firsts]  # no columns: one tuple, of nothing


def _announce(program: Program, tuples: Sequence[Row]) -> None:
    started = time.perf_counter()
    for row in tuples[:_TIMED_TUPLES]:
        with suppress(EvaluationError):
            program.evaluate(row)
    seconds = (time.perf_counter() - started) / _TIMED_TUPLES * len(tuples)
    _log.warning(
        "cel_expr %r is evaluated once for each of %s distinct tuples of %s in a partition, which will take about "
        "%.1f s; expressions without lists, maps and macros are evaluated in columns",
        program.expression,
        f"{len(tuples):,}",
        ", ".join(program.columns),
        seconds,
    )


def _plain(column: pa.Array) -> Any:
    """As `arrays.py` has it: numbers and bools in NumPy, text and bytes in Arrow."""
    if pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type):
        return column
    return column.to_numpy(zero_copy_only=False)
