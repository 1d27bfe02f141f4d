"""The manifest of a snapshot: frozen models and their stored form (format 4)."""

from __future__ import annotations

from shardyfusion.manifest.codec import decode_manifest, encode_manifest
from shardyfusion.manifest.models import RESERVED_CUSTOM, Manifest, ManifestRef, ShardingSpec, ShardObject, ShardRecord

__all__ = [
    "RESERVED_CUSTOM",
    "Manifest",
    "ManifestRef",
    "ShardObject",
    "ShardRecord",
    "ShardingSpec",
    "decode_manifest",
    "encode_manifest",
]
