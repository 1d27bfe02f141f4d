"""One row's values for the columns of an expression: from a lookup key, or from a routing context."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shardyfusion.errors import ConfigValidationError
from shardyfusion.routing.cel.scalar import Row
from shardyfusion.routing.cel.tree import CelType
from shardyfusion.serde.keys import is_text, shown, type_hint
from shardyfusion.type_defs import KeyInput, RoutingContext, require_type

_PYTHON_TYPES: Mapping[CelType, type] = {
    CelType.INT: int,
    CelType.UINT: int,
    CelType.DOUBLE: float,
    CelType.BOOL: bool,
    CelType.STRING: str,
    CelType.BYTES: bytes,
}
_RANGES = {CelType.INT: (-(2**63), 2**63), CelType.UINT: (0, 2**64)}


def row_of_key(columns: Mapping[str, CelType], key: KeyInput) -> Row:
    """The row of an expression whose only column is the key.

    Text and its UTF-8 bytes are the same key, and so are 1 and True: as for the key's stored bytes.

    Raises:
        ConfigValidationError: the key has no form of this type.
    """
    return {name: _of_key(name, kind, key) for name, kind in columns.items()}


def row_of_context(columns: Mapping[str, CelType], context: RoutingContext | None) -> Row:
    """The row that a routing context holds; entries for other columns are ignored.

    Raises:
        ConfigValidationError: an entry is missing, or not exactly of its column's type.
    """
    if context is not None:
        require_type(context, Mapping, "routing_context")
    given: Mapping[str, Any] = {} if context is None else context
    missing = [name for name in columns if name not in given]
    if missing:
        needed = ", ".join(f"{name} ({kind.value})" for name, kind in columns.items())
        raise ConfigValidationError(
            f"routing_context has no {', '.join(map(repr, missing))}; this snapshot is sharded by {needed}, so pass "
            "routing_context={…} with the values of the row that is looked up"
        )
    return {name: _checked(name, kind, given[name]) for name, kind in columns.items()}


def _of_key(name: str, kind: CelType, key: KeyInput) -> Any:
    convert = _FROM_KEY.get(kind)
    if convert is None:
        raise ConfigValidationError(f"column {name!r} is the key and declared {kind.value}, which no key is")
    value = convert(key)
    if value is None or not _in_range(value, kind):
        raise ConfigValidationError(
            f"key {shown(key)} of type {type(key).__name__} cannot be routed: cel_columns declares {name!r} as "
            f"{kind.value}{type_hint(key)}"
        )
    return value


def _checked(name: str, kind: CelType, value: Any) -> Any:
    if type(value) is not _PYTHON_TYPES[kind] or not _in_range(value, kind):
        raise ConfigValidationError(
            f"routing_context[{name!r}] is {shown(value)} of type {type(value).__name__}, and the column is "
            f"{kind.value}: pass {_wanted(kind)}{type_hint(value)}"
        )
    return value


def _wanted(kind: CelType) -> str:
    if kind in _RANGES:
        return f"an int from {'-2^63 to 2^63-1' if kind is CelType.INT else '0 to 2^64-1'}"
    return f"a {_PYTHON_TYPES[kind].__name__}{' without lone surrogates' if kind is CelType.STRING else ''}"


def _in_range(value: Any, kind: CelType) -> bool:
    if kind in _RANGES:
        low, end = _RANGES[kind]
        return low <= value < end
    return kind is not CelType.STRING or is_text(value)


def _integer(key: KeyInput) -> int | None:
    return int(key) if isinstance(key, int) else None


def _text(key: KeyInput) -> str | None:
    if not isinstance(key, bytes):
        return key if isinstance(key, str) else None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None


def _encoded(key: KeyInput) -> bytes | None:
    if not isinstance(key, str):
        return key if isinstance(key, bytes) else None
    try:
        return key.encode()
    except UnicodeEncodeError:
        return None


_FROM_KEY: Mapping[CelType, Callable[[KeyInput], Any]] = {
    CelType.INT: _integer,
    CelType.UINT: _integer,
    CelType.STRING: _text,
    CelType.BYTES: _encoded,
}
