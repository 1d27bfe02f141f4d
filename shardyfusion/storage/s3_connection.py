"""How an s3:// address becomes a boto3 client: credentials, region, endpoint and limits, resolved once per process.

What is then asked of S3 is in `s3.py`; its errors are translated in `s3_errors.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from shardyfusion.credentials import S3Credentials
from shardyfusion.errors import CredentialsError, ShardyfusionError
from shardyfusion.storage.address import StoreAddress, check_endpoint, check_s3_options
from shardyfusion.storage.s3_errors import translated_setup_errors
from shardyfusion.type_defs import S3ConnectionOptions

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.session import Session
    from mypy_boto3_s3 import S3Client

_Section = Mapping[str, Any]

DEFAULT_REGION = "us-east-1"

_CONNECT_TIMEOUT = 10.0
_READ_TIMEOUT = 60.0
_MAX_ATTEMPTS = 6
_MAX_CLIENTS = 16
_MAX_CONNECTIONS = 32
_HOST_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")  # a dot would not match the certificate of AWS
_CONFIG_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
_AMBIENT = {"HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}


@dataclass(frozen=True, kw_only=True)
class ResolvedS3:
    """Everything that decides how S3 is reached; what another S3 client needs in order to do as we do.

    Temporary credentials are those of the moment: resolve again for every store that is opened.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    region: str
    endpoint_url: str | None
    """None for AWS itself."""
    virtual_hosted: bool
    """Whether the bucket stands in the host name, for an endpoint of one's own too, and not in the path."""
    verify_ssl: bool | str
    """As given in the options. (AWS_CA_BUNDLE is boto3's own affair and does not show here.)"""
    connect_timeout: float
    read_timeout: float
    max_attempts: int


@dataclass(frozen=True)
class _Connection:
    client: S3Client
    credentials: Credentials
    region: str
    endpoint_url: str | None
    addressing_style: str


_connections: dict[object, _Connection] = {}
_lock = Lock()


def _forget_connections() -> None:
    """In a forked child: sockets of the parent must not be shared, and a thread of it may have held the lock."""
    global _lock
    _lock = Lock()
    _connections.clear()


os.register_at_fork(after_in_child=_forget_connections)


def resolve_s3(address: StoreAddress) -> ResolvedS3:
    """Settle credentials, region, endpoint and limits as `S3Store` does. `CredentialsError` if there are none."""
    connection = _connect(address)
    with translated_setup_errors(address.url):
        credentials = connection.credentials.get_frozen_credentials()
    style = connection.addressing_style
    options = address.options or {}
    return ResolvedS3(
        access_key_id=credentials.access_key or "",
        secret_access_key=credentials.secret_key or "",
        session_token=credentials.token,
        region=connection.region,
        endpoint_url=connection.endpoint_url,
        virtual_hosted=style == "virtual"
        or (style == "auto" and not connection.endpoint_url and bool(_HOST_LABEL.fullmatch(address.bucket))),
        verify_ssl=options.get("verify_ssl", True),
        connect_timeout=options.get("connect_timeout", _CONNECT_TIMEOUT),
        read_timeout=options.get("read_timeout", _READ_TIMEOUT),
        max_attempts=options.get("max_attempts", _MAX_ATTEMPTS),
    )


def s3_client(address: StoreAddress) -> S3Client:
    """The client for an address. Making one is slow, so those of equal settings share one, per process."""
    return _connect(address).client


def _connect(address: StoreAddress) -> _Connection:
    options = address.options or {}
    check_s3_options(options)
    explicit = _explicit_credentials(address)
    key = (os.getpid(), tuple(sorted(options.items())), explicit, _ambient())
    with _lock:
        if key not in _connections:
            with translated_setup_errors(address.url):
                connection = _new_connection(options, explicit)
            while len(_connections) >= _MAX_CLIENTS:
                del _connections[next(iter(_connections))]
            _connections[key] = connection
        return _connections[key]


def _explicit_credentials(address: StoreAddress) -> S3Credentials | None:
    provider = address.credential_provider
    if provider is None:
        return None
    try:
        return provider.resolve()
    except ShardyfusionError:
        raise
    except Exception as exc:
        # Its message is not repeated: nobody knows what a foreign provider puts into it.
        what = f"{type(provider).__name__} failed with {type(exc).__name__}"
        raise CredentialsError(f"no credentials for {address.url}: {what}") from exc


def _ambient() -> object:
    """What botocore looks at outside of the options, so that a change of it is noticed."""
    variables = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_") or k.upper() in _AMBIENT))
    files = (Path(os.environ.get(name, path)).expanduser() for name, path in _CONFIG_FILES.items())
    return variables, tuple(file.stat().st_mtime_ns if file.is_file() else None for file in files)


def _new_connection(options: S3ConnectionOptions, explicit: S3Credentials | None) -> _Connection:
    import boto3.session
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import NoCredentialsError

    session = botocore.session.get_session()
    if explicit:
        session.set_credentials(explicit.access_key_id, explicit.secret_access_key, explicit.session_token)
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    profile = cast("_Section", session.get_scoped_config())
    endpoint_url = options.get("endpoint_url") or _configured_endpoint(session, profile)
    if endpoint_url:
        check_endpoint(endpoint_url)
    region = options.get("region_name") or os.environ.get("AWS_REGION") or session.get_config_variable("region")
    region = region or DEFAULT_REGION
    default_style = "path" if endpoint_url else "auto"
    style = options.get("addressing_style") or _section(profile, "s3").get("addressing_style") or default_style
    config = Config(
        connect_timeout=options.get("connect_timeout", _CONNECT_TIMEOUT),
        read_timeout=options.get("read_timeout", _READ_TIMEOUT),
        retries={"mode": "standard", "total_max_attempts": options.get("max_attempts", _MAX_ATTEMPTS)},
        max_pool_connections=_MAX_CONNECTIONS,
        s3={"addressing_style": style},
        **_checksum_settings(profile),
    )
    # The stubs know every service of AWS but those that are not installed, which makes `client` Unknown.
    client: S3Client = cast("Any", boto3.session.Session(botocore_session=session)).client(
        "s3", region_name=region, endpoint_url=endpoint_url, verify=options.get("verify_ssl"), config=config
    )
    return _Connection(client, credentials, region, endpoint_url, style)


def _configured_endpoint(session: Session, profile: _Section) -> str | None:
    """The endpoint that botocore would take, in its order; asked here because the addressing style depends on it."""
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    services = _section(cast("_Section", session.full_config), "services")
    return (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or _section(_section(services, profile.get("services")), "s3").get("endpoint_url")
        or profile.get("endpoint_url")
    )


def _checksum_settings(profile: _Section) -> dict[str, Any]:
    # botocore's default adds CRC32 trailers, which several S3-compatible stores reject.
    names = ("request_checksum_calculation", "response_checksum_validation")
    return {n: "when_required" for n in names if f"AWS_{n.upper()}" not in os.environ and n not in profile}


def _section(section: _Section, name: str | None) -> _Section:
    """A section of an AWS configuration file, empty if it is not there."""
    return section.get(name or "") or {}
