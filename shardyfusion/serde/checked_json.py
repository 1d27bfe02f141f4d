"""Small JSON objects that carry a digest of themselves, so that a changed bit shows when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_DIGEST = "sha256"


def encode_checked(fields: Mapping[str, Any]) -> bytes:
    """Compact JSON with sorted names and, as one more field, the sha256 of what it would be without that field."""
    return _compact({**fields, _DIGEST: hashlib.sha256(_compact(fields)).hexdigest()})


def decode_checked(body: bytes, *, required: bool = False) -> dict[str, Any]:
    """The fields but the digest. `ValueError` if they are not those of the digest, or there is none and it is required.

    Fields that the caller does not know are covered too.
    """
    fields: dict[str, Any] = dict(json.loads(body))
    recorded = fields.pop(_DIGEST, None)
    if (recorded is not None or required) and recorded != hashlib.sha256(_compact(fields)).hexdigest():
        raise ValueError("it is damaged: its sha256 differs" if recorded else "it has no sha256")
    return fields


def _compact(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
