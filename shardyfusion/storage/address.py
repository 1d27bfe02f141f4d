"""Where a snapshot lives: one parsed prefix, picklable, with what is needed to open it in any process."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

from shardyfusion.credentials import CredentialProvider
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
        if options is not None:
            check_s3_options(options)
        return cls(url=normalise_url(os.fspath(prefix)), credential_provider=credential_provider, options=options)

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
        return _file_url(prefix, Path(prefix).expanduser().absolute())
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


def check_s3_options(options: Mapping[str, Any]) -> None:
    """Raise `ConfigValidationError` for what boto3 would misunderstand, ignore or reveal."""
    unknown = sorted(set(options) - set(S3ConnectionOptions.__annotations__))
    require(
        not unknown, f"unknown S3 connection options {unknown}; known: {sorted(S3ConnectionOptions.__annotations__)}"
    )
    for name in ("connect_timeout", "read_timeout", "max_attempts"):
        value = options.get(name, 1)
        require(isinstance(value, (int, float)) and value > 0, f"S3 option {name} must be positive, not {value!r}")
    require(isinstance(options.get("max_attempts", 1), int), "S3 option max_attempts must be a whole number")
    require(
        options.get("addressing_style", "auto") in ("path", "virtual", "auto"),
        f"S3 option addressing_style must be path, virtual or auto, not {options.get('addressing_style')!r}",
    )
    if "endpoint_url" in options:
        check_endpoint(options["endpoint_url"])


def check_endpoint(endpoint_url: str) -> None:
    parts = urlsplit(endpoint_url)
    require("@" not in parts.netloc, "the S3 endpoint URL must not hold credentials; use a credential provider")
    require(
        parts.scheme in ("http", "https") and bool(parts.hostname),
        f"S3 endpoint {endpoint_url!r} must be a URL such as http://127.0.0.1:9000",
    )
