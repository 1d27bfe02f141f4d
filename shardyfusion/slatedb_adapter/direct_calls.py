"""SlateDB's exported functions, called without the loops over single bytes of its generated Python binding.

The binding lowers and lifts every byte string in Python: 37 µs to put a row of 100 bytes, against 2 µs here, and 3 µs
to lift a row that is only counted. What is used here is private to the binding. So it is looked at first, for the
versions in `TESTED` only, and then has to store rows that come back as they were. If anything is amiss nothing of it is
used, the binding works as shipped, and the log says why, once per process.

Memory: lowered bytes and the cloned handle belong to Rust from the call on that takes them, whether it succeeds or not;
what Rust returns is freed here once it was read. That is how the generated code has it.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING, Any

from shardyfusion.errors import ShardWriteError
from shardyfusion.slatedb_adapter.bridge import Bridge
from shardyfusion.slatedb_adapter.settings import MAX_KEY_BYTES, bulk_settings

if TYPE_CHECKING:
    import pyarrow as pa

TESTED = ("0.17.",)
"""How the versions of slatedb begin that this was tested with."""

_CONTRACT = 30
"""uniffi's number for how arguments, buffers and errors cross."""

_LENGTH_BYTES = 4
_STRUCTURES = 512
"""So many at a time are given to ctypes: making one costs a tenth of a put."""

MAX_LOWERED_BYTES = 2**31 - 1 - _LENGTH_BYTES
"""The longest key or value that can cross, by either way: its length is a signed 32-bit integer."""

_CHECK_SECONDS = 30.0

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_settled: _Settled | None = None


class _UnfitError(Exception):
    """Why the installed binding cannot be called directly."""


# What crosses, as the binding declares it. These of our own have no room for attributes, so that millions cost less.


class _Handle(ctypes.c_uint64):
    """A subclass, so that ctypes does not turn what is returned into an int, nor cut what is passed to 32 bits."""

    __slots__ = ()


class _Buffer(ctypes.Structure):
    __slots__ = ()
    _fields_ = [("capacity", ctypes.c_uint64), ("len", ctypes.c_uint64), ("data", ctypes.c_void_p)]


class _Bytes(ctypes.Structure):
    __slots__ = ()
    _fields_ = [("len", ctypes.c_int32), ("data", ctypes.c_void_p)]


@dataclass(frozen=True, kw_only=True)
class DirectCalls:
    """What rows go through. Any thread may call, each with a `WriteBatch` or a `DbIterator` of its own."""

    binding: Any
    clone: Any
    lower: Any
    put: Any

    def put_rows(self, batch: Any, keys: pa.LargeBinaryArray, values: pa.LargeBinaryArray) -> None:
        """`batch.put(key, value)` for all rows of two `large_binary` columns without nulls.

        Raises what `batch.put` raises; the rows before the one that it refused are in the batch then.
        """
        _check_columns(keys, values)
        status = self.binding._UniffiRustCallStatus.default()
        told = ctypes.byref(status)
        handle = _Handle(batch._handle)
        clone, lower, put = self.clone, self.lower, self.put
        keys, values = _prefixed(keys), _prefixed(values)  # these names keep alive what the addresses point to
        every = chain.from_iterable
        for key, value in zip(every(_addressed(keys)), every(_addressed(values)), strict=True):
            # Cloning and lowering refuse nothing here: the handle is alive, and lengths and addresses are right.
            put(clone(handle, told), lower(key, told), lower(value, told), told)
            if status.code:
                self.binding._uniffi_check_call_status(self.binding._UniffiFfiConverterTypeError, status)

    async def next_count(self, rows: Any, most: int) -> int:
        """`len(await rows.next_batch(most))`: Rust hands over the same rows, of which only their number is read."""
        library = self.binding._UniffiLib
        return await self.binding._uniffi_rust_call_async(
            library.uniffi_slatedb_uniffi_fn_method_dbiterator_next_batch(rows._uniffi_clone_handle(), most),
            library.ffi_slatedb_uniffi_rust_future_poll_rust_buffer,
            library.ffi_slatedb_uniffi_rust_future_complete_rust_buffer,
            library.ffi_slatedb_uniffi_rust_future_free_rust_buffer,
            _lift_count,
            self.binding._UniffiFfiConverterTypeError,
        )


@dataclass(frozen=True)
class _Settled:
    calls: DirectCalls | None


def direct_calls() -> DirectCalls | None:
    """The direct calls of this process, made ready and checked when they are first asked for; None if they are unfit.

    Not for the event loop's own thread: the check waits for it.
    """
    global _settled
    with _lock:
        if _settled is None:
            _settled = _Settled(_prepare())
        return _settled.calls


def _prepare() -> DirectCalls | None:
    try:
        calls = _probe()
        bridge = Bridge(url="memory:///", db_id=0, deadline_seconds=_CHECK_SECONDS, failure=ShardWriteError)
        bridge.run("check", lambda: _round_trip(calls))
    except Exception as exc:
        _log.warning(
            "SlateDB shards are written by the slatedb package's own put, some ten times slower than the direct one, "
            "which cannot be used: %s",
            exc if isinstance(exc, _UnfitError) else f"{type(exc).__name__}: {exc}",
        )
        return None
    return calls


def _generated() -> Any:
    """The generated module. Only what is public of it is in `slatedb.uniffi`."""
    return importlib.import_module("slatedb.uniffi._slatedb_uniffi.slatedb")


def _probe() -> DirectCalls:
    """Everything that is used, if it is there and looks as it did in the tested versions."""
    installed = version("slatedb")
    if not installed.startswith(TESTED):
        raise _UnfitError(f"slatedb {installed} is not of a tested version ({', '.join(TESTED)}*)")
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise _UnfitError("this is no 64-bit Python")
    binding = _generated()
    library, status = binding._UniffiLib, binding._UniffiRustCallStatus
    buffer, foreign = binding._UniffiRustBuffer, binding._UniffiForeignBytes
    contract = library.ffi_slatedb_uniffi_uniffi_contract_version()
    if contract != _CONTRACT:
        raise _UnfitError(f"the contract of its binding is {contract}, not {_CONTRACT}")
    for theirs, ours in ((buffer, _Buffer), (foreign, _Bytes)):
        if _layout(theirs) != _layout(ours):
            raise _UnfitError(f"its structure {theirs.__name__} has other fields")
    handle, told = ctypes.c_uint64, ctypes.POINTER(status)
    clone, lower, put = (
        "uniffi_slatedb_uniffi_fn_clone_writebatch",
        "ffi_slatedb_uniffi_rustbuffer_from_bytes",
        "uniffi_slatedb_uniffi_fn_method_writebatch_put",
    )
    signatures: dict[str, tuple[tuple[Any, ...], Any]] = {
        clone: ((handle, told), handle),
        lower: ((foreign, told), buffer),
        put: ((handle, buffer, buffer, told), None),
        "uniffi_slatedb_uniffi_fn_method_dbiterator_next_batch": ((handle, ctypes.c_uint32), handle),
        "ffi_slatedb_uniffi_rust_future_complete_rust_buffer": ((handle, told), buffer),
    }
    for name, signature in signatures.items():
        function = getattr(library, name)
        if (function.argtypes, function.restype) != signature:
            raise _UnfitError(f"its function {name} has another signature")
    _check_lowering(binding)
    return DirectCalls(
        binding=binding,
        clone=_undeclared(library, clone, _Handle),
        lower=_undeclared(library, lower, _Buffer),
        put=_undeclared(library, put, None),
    )


def _layout(structure: Any) -> list[tuple[str, int, int]]:
    """Names, places and sizes of the fields of a structure, which must be all that it holds."""
    places = [getattr(structure, name) for name, _ in structure._fields_]
    fields = [(field[0], place.offset, place.size) for field, place in zip(structure._fields_, places, strict=True)]
    return [*fields, ("", 0, ctypes.sizeof(structure))]


def _undeclared(library: Any, name: str, returned: Any) -> Any:
    """A function of our own, apart from the binding's, that keeps the interpreter lock for its microsecond.

    It declares no argument types: checking them would cost half as much as the call. It is only given instances of
    the structures above, which ctypes passes as they are.
    """
    function = ctypes.PyDLL(library._name)[name]
    function.restype = returned
    return function


def _check_lowering(binding: Any) -> None:
    """A byte string must cross as its length and its bytes."""
    lowered = binding._UniffiFfiConverterBytes.lower(b"\xff\0\n")
    try:
        if ctypes.string_at(lowered.data, lowered.len) != b"\0\0\0\x03\xff\0\n":
            raise _UnfitError("its byte strings cross in another form")
    finally:
        lowered.free()


async def _round_trip(calls: DirectCalls) -> None:
    """Rows that were put directly must come back, and be counted, by the binding as shipped; errors must arrive."""
    import pyarrow as pa
    from slatedb.uniffi import CloseOptions, DbBuilder, KeyRange, ObjectStore, WriteBatch

    rows = {
        b"\0": b"",
        b"\0\xff\xfe": b"\x80 no UTF-8 \xc3\x28",
        b"k": bytes(range(256)) * 4096,
        b"z" * MAX_KEY_BYTES: b"the longest key",
    }
    columns = [pa.array([b"skipped", *column], pa.large_binary())[1:] for column in (rows.keys(), rows.values())]
    everything = KeyRange(start=None, start_inclusive=True, end=None, end_inclusive=False)
    builder = DbBuilder("check", ObjectStore.resolve("memory:///"))
    builder.with_settings(bulk_settings(sst_bytes=8 * 1024 * 1024, retries=0))
    builder.with_db_cache_disabled()
    database = await builder.build()
    try:
        batch = WriteBatch()
        calls.put_rows(batch, *columns)
        await database.write(batch)
        stored = await (await database.scan(everything)).next_batch(len(rows) + 1)
        if [(row.key, row.value) for row in stored] != list(rows.items()):
            raise _UnfitError("rows that were put directly did not come back as they were")
        counted = await database.scan(everything)
        if [await calls.next_count(counted, 3) for _ in range(3)] != [3, len(rows) - 3, 0]:
            raise _UnfitError("rows were counted wrongly")
        try:
            calls.put_rows(batch, *columns)
        except calls.binding.Error:
            return
        raise _UnfitError("an error of SlateDB did not arrive")
    finally:
        await database.shutdown_with_options(CloseOptions(flush_type=None))


def _check_columns(*columns: pa.LargeBinaryArray) -> None:
    """What is not as it should be would be read from wrong addresses."""
    import pyarrow as pa

    for column in columns:
        if column.type != pa.large_binary() or column.null_count:
            raise TypeError(f"a column is {column.type} with {column.null_count} nulls; large_binary without is needed")


def _prefixed(array: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """Every element behind its length, which is how a byte string crosses."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = len(array)
    lengths = np.diff(_offsets(array))
    if rows and lengths.max() > MAX_LOWERED_BYTES:
        raise ValueError(f"a key or a value of {lengths.max()} bytes cannot cross: {MAX_LOWERED_BYTES} is the most")
    ends = np.arange(rows + 1, dtype=np.int64) * _LENGTH_BYTES
    prefixes = pa.Array.from_buffers(
        pa.large_binary(), rows, [None, pa.py_buffer(ends), pa.py_buffer(lengths.astype(">i4"))]
    )
    return pc.call_function("binary_join_element_wise", [prefixes, array, pa.scalar(b"", pa.large_binary())])


def _addressed(array: pa.LargeBinaryArray) -> Iterator[list[_Bytes]]:
    """Length and address of every element, as `lower` takes them: runs of structures, which the next run reuses."""
    import numpy as np

    layout = np.dtype(
        {
            "names": ["len", "data"],
            "formats": [np.int32, np.uint64],
            "offsets": [_Bytes.len.offset, _Bytes.data.offset],
            "itemsize": ctypes.sizeof(_Bytes),
        }
    )
    rows, offsets = len(array), _offsets(array)
    filled: Any = np.zeros(min(rows, _STRUCTURES), dtype=layout)
    structures = list((_Bytes * len(filled)).from_buffer(filled))
    for start in range(0, rows, _STRUCTURES):
        stop = min(start + _STRUCTURES, rows)
        filled["len"][: stop - start] = np.diff(offsets[start : stop + 1])
        filled["data"][: stop - start] = offsets[start:stop].astype(np.uint64) + np.uint64(array.buffers()[2].address)
        yield structures[: stop - start]


def _offsets(array: pa.LargeBinaryArray) -> Any:
    """Where every element begins in the data buffer, and where the last one ends."""
    import numpy as np

    offsets = array.buffers()[1]
    if not len(array) or offsets is None:
        return np.zeros(1, dtype=np.int64)
    return np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]


def _lift_count(buffer: Any) -> int:
    """The number that a sequence begins with. Takes the buffer over, as every lifting function does."""
    try:
        if buffer.len < _LENGTH_BYTES:
            raise ShardWriteError(f"SlateDB returned {buffer.len} bytes as a batch of rows")
        return int.from_bytes(ctypes.string_at(buffer.data, _LENGTH_BYTES), "big")
    finally:
        buffer.free()
