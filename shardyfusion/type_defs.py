"""Types shared by every layer: keys, routing contexts, S3 connection options and the checks that configs use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from shardyfusion.errors import ConfigValidationError

KeyInput = int | str | bytes
"""What a lookup accepts as a key. NumPy scalars are not keys: `int(x)` them first."""

RoutingContext = Mapping[str, int | str | bytes | float | bool]
"""Values of the routing columns, by name, for snapshots whose shard does not follow from the key alone."""

BackendName = Literal["sqlite", "slatedb"]
DuplicatePolicy = Literal["fail", "first", "last"]


class S3ConnectionOptions(TypedDict, total=False):
    """How to reach S3, beyond credentials. Each one that is set wins over the environment; None counts as not set."""

    endpoint_url: str | None
    """For S3-compatible stores, e.g. `http://127.0.0.1:9000`. Default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the
    profile's, else AWS itself."""
    region_name: str | None
    """Default: AWS_REGION, AWS_DEFAULT_REGION or the profile, else `us-east-1`."""
    addressing_style: Literal["path", "virtual", "auto"]
    """Default: the profile's; else `path` with an endpoint of one's own and botocore's choice without."""
    verify_ssl: bool | str
    """False, or the path of a CA bundle. Default: AWS_CA_BUNDLE or the profile's `ca_bundle`, else True. (SlateDB
    takes only True.)"""
    connect_timeout: float
    """Seconds. Default 10."""
    read_timeout: float
    """Seconds. Default 60."""
    max_attempts: int
    """Tries of one request, the first included. Default 6."""


def require(ok: bool, message: str) -> None:
    """Raise `ConfigValidationError(message)` unless `ok`."""
    if not ok:
        raise ConfigValidationError(message)


def require_type(value: object, expected: type | tuple[type, ...], what: str) -> None:
    """Raise `ConfigValidationError` unless `value` is an instance of `expected`. A bool is no number here."""
    names = [kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,))]
    require(
        isinstance(value, expected) and not (isinstance(value, bool) and "bool" not in names),
        f"{what} is {type(value).__name__}; it must be {' or '.join(names)}",
    )
