"""What is stored for a key and a value: encodings, columns to bytes, and digests of rows. No I/O."""

from __future__ import annotations

from shardyfusion.serde.keys import KeyEncoding
from shardyfusion.serde.values import ValueSpec

__all__ = ["KeyEncoding", "ValueSpec"]
