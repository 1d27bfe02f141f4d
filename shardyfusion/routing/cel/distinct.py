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

REMEMBERED_TUPLES = 100_000
"""So many distinct tuples are remembered from one partition to the next; more of them are announced."""

_TIMED_TUPLES = 5_000


def evaluate_program(program: Program, columns: Mapping[str, pa.Array], rows: int) -> tuple[Any, Failed]:
    """The value of each row, and which rows have none: as of `evaluate_columns`, whichever path the program takes.

    `columns` are those of the program, each of its type's Arrow form and without nulls.
    """
    if program.path == "vectorised":
        return evaluate_columns(program.tree, {name: _plain(columns[name]) for name in program.columns}, rows)
    codes, firsts = distinct_tuples([columns[name] for name in program.columns], rows)
    found, failed = _memoised(program, columns, pa.array(firsts))
    spread = found[codes] if isinstance(found, np.ndarray) else found.take(pa.array(codes))
    return spread, None if failed is None else failed[codes]


def distinct_tuples(columns: Sequence[pa.Array], rows: int) -> tuple[Codes, Codes]:
    """For each row the number of its tuple of values, and for each tuple the first row that has it.

    Doubles are told apart by their bits: a NaN is a value of its own, and so is -0.0.
    """
    codes = np.zeros(rows, dtype=np.int64)
    for column in columns:
        encoded = _bits(column).dictionary_encode()
        codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
        # Numbered anew, so that the product stays below rows * rows.
        codes = pa.array(codes).dictionary_encode().indices.to_numpy().astype(np.int64)
    firsts = np.empty(int(codes.max(initial=-1)) + 1, dtype=np.int64)
    firsts[codes[::-1]] = np.arange(rows)[::-1]
    return codes, firsts


def row_at(program: Program, columns: Mapping[str, pa.Array], row: int) -> Row:
    return {name: columns[name][row].as_py() for name in program.columns}


def _memoised(program: Program, columns: Mapping[str, pa.Array], firsts: pa.Array) -> tuple[Any, Failed]:
    """The values of the tuples that these rows have: remembered, or evaluated now."""
    at = [columns[name].take(firsts) for name in program.columns]
    nothing: list[tuple[Any, ...]] = [() for _ in firsts]  # the one tuple where there are no columns
    keys = list(zip(*(_bits(column).to_pylist() for column in at), strict=True)) or nothing
    tuples = list(zip(*(column.to_pylist() for column in at), strict=True)) or nothing
    rows: list[Row] = [dict(zip(program.columns, values, strict=True)) for values in tuples]
    memo = program.memo.values
    if not program.memo.announced and len(memo) + len(rows) > REMEMBERED_TUPLES:
        _announce(program, [row for key, row in zip(keys, rows, strict=True) if key not in memo])

    def value_of(key: tuple[Any, ...], row: Row) -> Any:
        if key in memo:
            return memo[key]
        value = program.evaluate(row)
        if len(memo) < REMEMBERED_TUPLES:
            memo[key] = value
        return value

    return mapped(value_of, program.result, keys, rows)


def _announce(program: Program, fresh: Sequence[Row]) -> None:
    """Once in a process, if these are too many for the memo; the first of them say how long they take."""
    if not fresh or len(program.memo.values) + len(fresh) <= REMEMBERED_TUPLES:
        return
    program.memo.announced = True
    timed = fresh[:_TIMED_TUPLES]
    started = time.perf_counter()
    for row in timed:
        with suppress(EvaluationError):
            program.evaluate(row)
    each = (time.perf_counter() - started) / len(timed)
    _log.warning(
        "cel_expr %r is evaluated once for each distinct tuple of %s, and there are more than %s of them: those of "
        "this partition, %s, will take about %.1f s, and a million about %.0f s. Expressions without lists, maps "
        "and macros are evaluated in columns",
        program.expression,
        ", ".join(program.columns),
        f"{REMEMBERED_TUPLES:,}",
        f"{len(fresh):,}",
        each * len(fresh),
        each * 1_000_000,
    )


def _bits(column: pa.Array) -> pa.Array:
    """What tells values apart: of doubles their bits, as a NaN is not equal to itself, and 0.0 is to -0.0."""
    return column.view(pa.int64()) if pa.types.is_float64(column.type) else column


def _plain(column: pa.Array) -> Any:
    """As `arrays.py` has it: numbers and bools in NumPy, text and bytes in Arrow."""
    if pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type):
        return column
    return column.to_numpy(zero_copy_only=False)
