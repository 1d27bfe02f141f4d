"""Keys as they are stored (docs/format.md, section 8): the scalar codec that lookups use.

Whole columns of keys are encoded in `key_columns.py`; which shard a key belongs to is decided in `routing/`.
"""

from __future__ import annotations

from enum import Enum

from shardyfusion.errors import ConfigValidationError
from shardyfusion.type_defs import KeyInput


class KeyEncoding(Enum):
    """How keys become bytes in a shard. Prints as its name in the manifest, such as `u64be`."""

    U64BE = "u64be"
    """Integers from 0 to 2^64-1 as 8 bytes, big-endian. (Only those below 2^63 can be routed.)"""
    U32BE = "u32be"
    """Integers from 0 to 2^32-1 as 4 bytes, big-endian."""
    UTF8 = "utf8"
    """Text as UTF-8; bytes as they are."""
    RAW = "raw"
    """Bytes as they are; text as UTF-8."""

    @property
    def integer_width(self) -> int | None:
        """Stored bytes of an integer key, or None where keys are text or bytes."""
        return {KeyEncoding.U64BE: 8, KeyEncoding.U32BE: 4}.get(self)

    def encode(self, key: KeyInput) -> bytes:
        """The stored bytes of one key.

        Raises `ConfigValidationError` for a type that this encoding cannot hold. Encoded bytes are not accepted in
        place of an integer: routing would hash those bytes and look in the wrong shard.
        """
        width = self.integer_width
        return _encode_text(key, self) if width is None else _encode_integer(key, self, width)

    def __str__(self) -> str:
        return self.value


def is_text(value: str) -> bool:
    """Whether a string has an encoding: one with lone surrogates has none."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object, limit: int = 60) -> str:
    """`repr(value)`, cut to a length that fits into a message."""
    if isinstance(value, int) and value.bit_length() > 1024:  # Python refuses to write out a very long one
        return f"<integer of {value.bit_length():,} bits>"
    try:
        text = repr(value[:limit] if isinstance(value, (str, bytes)) else value)
    except ValueError:  # a container of such integers
        return f"<{type(value).__name__}>"
    whole = len(text) <= limit and not (isinstance(value, (str, bytes)) and len(value) > limit)
    return text if whole else f"{text[:limit]}…"


def type_hint(key: object) -> str:
    """What to do about a key of a type that no encoding or router takes; empty if there is nothing to add."""
    if type(key).__module__ == "numpy":
        return "; NumPy scalars are not keys: convert with key.item()"
    if isinstance(key, float):
        return "; floats are not keys: convert with int(key)"
    return ""


def decode_key(encoding: KeyEncoding, stored: bytes) -> int | str | None:
    """A stored key as a manifest can show it; None where only the bytes themselves would be exact."""
    if encoding.integer_width is not None:
        return int.from_bytes(stored, "big")
    if encoding is KeyEncoding.RAW:
        return None
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return None


def _encode_integer(key: object, encoding: KeyEncoding, width: int) -> bytes:
    if not isinstance(key, int):
        raise ConfigValidationError(
            f"key {shown(key)} is {type(key).__name__}, but key_encoding {encoding} takes int{type_hint(key)}"
        )
    try:
        return int(key).to_bytes(width, "big")
    except OverflowError as exc:
        raise ConfigValidationError(
            f"key {shown(key)} is out of range: key_encoding {encoding} takes integers from 0 to 2^{8 * width}-1"
        ) from exc


def _encode_text(key: object, encoding: KeyEncoding) -> bytes:
    if isinstance(key, bytes):
        return bytes(key)
    if not isinstance(key, str):
        raise ConfigValidationError(
            f"key {shown(key)} is {type(key).__name__}, but key_encoding {encoding} takes str or bytes{type_hint(key)}"
        )
    try:
        return key.encode()
    except UnicodeEncodeError as exc:
        raise ConfigValidationError(f"key {shown(key)} holds a lone surrogate and has no UTF-8 form") from exc
