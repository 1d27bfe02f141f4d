"""Where a snapshot lives: one parsed prefix, picklable, with what is needed to open it in any process."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast
from urllib.parse import unquote, urlsplit

from shardyfusion.credentials import CredentialProvider
from shardyfusion.errors import ConfigValidationError
from shardyfusion.type_defs import S3ConnectionOptions, require

StoreKind = Literal["s3", "file", "memory"]

_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


@dataclass(frozen=True, kw_only=True)
class StoreAddress:
    """A root URL (`s3://bucket/prefix`, `file:///path` or `memory://name`, no trailing slash) and how to reach it.

    Build one with `parse`. The URL is literal: nothing in it is percent-decoded except in a `file://` given by a user.
    """

    url: str
    credential_provider: CredentialProvider | None = None
    options: S3ConnectionOptions | None = None

    @classmethod
    def parse(
        cls,
        prefix: str | os.PathLike[str],
        *,
        credential_provider: CredentialProvider | None = None,
        options: S3ConnectionOptions | None = None,
    ) -> Self:
        """Normalise what users give as `s3_prefix`; `ConfigValidationError` if it is none of the four forms."""
        text: object = os.fspath(prefix) if isinstance(prefix, os.PathLike) else prefix
        if not isinstance(text, str):
            raise ConfigValidationError(f"s3_prefix must be a string or a path, not a {type(text).__name__}")
        given = None if options is None else check_s3_options(options)
        return cls(url=normalise_url(text), credential_provider=credential_provider, options=given)

    @property
    def kind(self) -> StoreKind:
        scheme = self.url.partition("://")[0]
        return "s3" if scheme == "s3" else "memory" if scheme == "memory" else "file"

    @property
    def bucket(self) -> str:
        """The bucket of an s3 URL, the name of a memory URL."""
        return self.url.partition("://")[2].partition("/")[0]

    @property
    def key_prefix(self) -> str:
        """What follows the bucket or name, without leading or trailing `/`; may be empty only for memory."""
        return self.url.partition("://")[2].partition("/")[2]

    @property
    def path(self) -> Path:
        """The local directory of a file URL."""
        return Path(self.url.removeprefix("file://"))

    def at(self, url: str) -> Self:
        """The same connection, another root."""
        return replace(self, url=url)


def normalise_url(prefix: str) -> str:
    """`s3://bucket/prefix`, `file:///abs/path` or `memory://name/...`, without a trailing slash."""
    require(
        bool(prefix.strip()), "s3_prefix is empty; give s3://bucket/prefix, file:///path, a local path or memory://name"
    )
    scheme, sep, rest = prefix.partition("://")
    if not sep:
        require(
            not prefix.startswith(("s3:", "file:", "memory:")),
            f"s3_prefix {prefix!r} lacks slashes; write it as in s3://bucket/prefix, file:///path or memory://name",
        )
        # Path.expanduser raises where a user, or the own home directory, is not known.
        return _file_url(prefix, Path(os.path.expanduser(prefix)).absolute())  # noqa: PTH111
    require(
        scheme in ("s3", "file", "memory"),
        f"s3_prefix {prefix!r}: scheme {scheme!r} is not supported; use s3://, file://, memory:// or a local path",
    )
    if scheme == "file":
        path = rest.removeprefix("localhost")
        require(
            path.startswith("/"),
            f"s3_prefix {prefix!r}: a file URL needs three slashes and an absolute path, as in file:///data/users",
        )
        require(not set(path) & set("?#"), f"s3_prefix {prefix!r} must not hold '?' or '#'")
        return _file_url(prefix, Path(unquote(path)))
    require(
        rest.isprintable()
        and not set(rest) & set("?#\\")
        and not {"..", "."} & set(rest.split("/"))
        and "//" not in rest.strip("/"),
        f"s3_prefix {prefix!r} must not hold '?', '#', a backslash, control characters, '.', '..' or empty segments",
    )
    bucket, _, key = rest.rstrip("/").partition("/")
    require(bool(bucket), f"s3_prefix {prefix!r} names no bucket")
    if scheme == "s3":
        require(
            bool(_BUCKET.fullmatch(bucket)),
            f"s3_prefix {prefix!r}: {bucket!r} is no bucket name (3 to 255 of A-Z a-z 0-9 . _ -)",
        )
        require(bool(key), f"s3_prefix {prefix!r} needs a prefix below the bucket, as in s3://{bucket}/snapshots/users")
    return f"{scheme}://{rest.rstrip('/')}"


def _file_url(prefix: str, path: Path) -> str:
    # The manifest stores this URL as it is. What a URL parser would cut off or decode would name another directory.
    text = os.path.normpath(path)
    require(
        text.isprintable() and not set(text) & set("?#\\") and not _ESCAPE.search(text),
        f"s3_prefix {prefix!r}: a local path must not hold '?', '#', a backslash, control characters or %-escapes",
    )
    require(text.strip("/") != "", f"s3_prefix {prefix!r} is the root of the file system; give a directory below it")
    return f"file:///{text.lstrip('/')}"


def check_s3_options(options: Mapping[str, Any]) -> S3ConnectionOptions:
    """The options that are set. `ConfigValidationError` for what boto3 would misunderstand, ignore or reveal."""
    require(isinstance(cast("object", options), Mapping), "S3 connection options must be a dict")
    known = S3ConnectionOptions.__annotations__
    unknown = [name for name in options if name not in known]
    require(not unknown, f"unknown S3 connection options {unknown}; known: {sorted(known)}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("connect_timeout", "read_timeout", "max_attempts"):
        value = given.get(name, 1)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(number and 0 < value < threading.TIMEOUT_MAX, f"S3 option {name} must be positive, not {value!r}")
    require(isinstance(given.get("max_attempts", 1), int), "S3 option max_attempts must be a whole number")
    require(
        given.get("addressing_style", "auto") in ("path", "virtual", "auto"),
        f"S3 option addressing_style must be path, virtual or auto, not {given.get('addressing_style')!r}",
    )
    require(isinstance(given.get("region_name", ""), str), "S3 option region_name must be a string")
    verify = given.get("verify_ssl", True)
    require(
        isinstance(verify, bool) or (isinstance(verify, str) and bool(verify)),
        "S3 option verify_ssl must be True, False or the path of a CA bundle",
    )
    if "endpoint_url" in given:
        check_endpoint(given["endpoint_url"])
    return cast("S3ConnectionOptions", given)


def check_endpoint(endpoint_url: object) -> None:
    if not isinstance(endpoint_url, str):
        raise ConfigValidationError(f"the S3 endpoint must be a URL, not a {type(endpoint_url).__name__}")
    # First, and in all of it: what else is wrong with it must not be shown then.
    require("@" not in endpoint_url, "the S3 endpoint URL must not hold credentials; use a credential provider")
    try:
        parts = urlsplit(endpoint_url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unfinished IPv6 address, or no number for a port
        sound = False
    require(sound, f"S3 endpoint {endpoint_url!r} must be a URL such as http://127.0.0.1:9000")
