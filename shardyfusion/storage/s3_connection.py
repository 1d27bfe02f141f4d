"""How an s3:// address becomes a boto3 client: credentials, region, endpoint and limits, resolved once per process.

What is then asked of S3 is in `s3.py`; its errors are translated in `s3_errors.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from shardyfusion.credentials import S3Credentials
from shardyfusion.errors import CredentialsError, ShardyfusionError
from shardyfusion.storage.address import StoreAddress, check_endpoint, check_s3_options
from shardyfusion.storage.s3_deadline import CallLimits, heed_deadlines
from shardyfusion.storage.s3_errors import translated_setup_errors
from shardyfusion.type_defs import S3ConnectionOptions, require

if TYPE_CHECKING:
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
    """None for AWS itself at its usual name, `s3.<region>.amazonaws.com`."""
    virtual_hosted: bool
    """Whether the bucket stands in the host name, for an endpoint of one's own too, and not in the path."""
    verify_ssl: bool | str
    """Of the options, AWS_CA_BUNDLE or the profile's `ca_bundle`."""
    connect_timeout: float
    read_timeout: float
    max_attempts: int


@dataclass(frozen=True, eq=False)
class _Setup:
    """What does not depend on credentials; the slow part, shared by all clients of equal settings."""

    session: Session
    region: str
    endpoint_url: str | None
    addressing_style: str
    verify_ssl: bool | str
    checksums: Mapping[str, Any]

    @cached_property
    def boto3_session(self) -> Any:
        """One for all clients of these settings: a second one on the same botocore session breaks `client` for both."""
        import boto3.session

        # The stubs know every service of AWS but those that are not installed, which makes `client` Unknown.
        return cast("Any", boto3.session.Session(botocore_session=self.session))

    @cached_property
    def aws_endpoint_url(self) -> str | None:
        """Where botocore finds S3 itself, if not at the usual name: another partition, FIPS, or dual-stack."""
        from botocore.config import Config

        # Only a request tells, and signing one ahead sends nothing. The bucket is of no interest.
        style = {
            "addressing_style": "path",
            "us_east_1_regional_endpoint": "regional",
            "use_accelerate_endpoint": False,
        }
        nobody = {"aws_access_key_id": "-", "aws_secret_access_key": "-"}
        client = cast("Any", self.session).create_client(
            "s3", self.region, config=Config(s3=cast("Any", style)), **nobody
        )
        host = urlsplit(client.generate_presigned_url("head_bucket", {"Bucket": "bucket"})).netloc
        return None if host == f"s3.{self.region}.amazonaws.com" else f"https://{host}"


_setups: dict[object, _Setup] = {}
_clients: dict[object, S3Client] = {}
_lock = Lock()


def _forget_connections() -> None:
    """In a forked child: sockets of the parent must not be shared, and a thread of it may have held the lock."""
    global _lock
    _lock = Lock()
    _setups.clear()
    _clients.clear()


os.register_at_fork(after_in_child=_forget_connections)


def resolve_s3(address: StoreAddress) -> ResolvedS3:
    """Settle credentials, region, endpoint and limits as `S3Store` does. `CredentialsError` if there are none."""
    options = check_s3_options(address.options or {})
    explicit = _explicit_credentials(address)
    with translated_setup_errors(address.url):
        with _lock:
            _, setup = _set_up(options)
        credentials = explicit or _found_credentials(setup)
        endpoint_url = setup.endpoint_url or setup.aws_endpoint_url
    style = setup.addressing_style
    limits = _limits(options)
    return ResolvedS3(
        access_key_id=credentials.access_key_id,
        secret_access_key=credentials.secret_access_key,
        session_token=credentials.session_token,
        region=setup.region,
        endpoint_url=endpoint_url,
        virtual_hosted=style == "virtual"
        or (style == "auto" and not setup.endpoint_url and bool(_HOST_LABEL.fullmatch(address.bucket))),
        verify_ssl=setup.verify_ssl,
        connect_timeout=limits.connect_timeout,
        read_timeout=limits.read_timeout,
        max_attempts=limits.max_attempts,
    )


def call_limits(address: StoreAddress) -> CallLimits:
    """What bounds each call of the store at an address."""
    return _limits(check_s3_options(address.options or {}))


def s3_client(address: StoreAddress) -> S3Client:
    """The client for an address. Making one is slow, so those of equal settings share one, per process."""
    options = check_s3_options(address.options or {})
    explicit = _explicit_credentials(address)
    with _lock, translated_setup_errors(address.url):
        settings, setup = _set_up(options)
        key = (settings, explicit)
        if key not in _clients:
            _keep(_clients, key, _new_client(options, setup, explicit))
        return _clients[key]


def _set_up(options: S3ConnectionOptions) -> tuple[object, _Setup]:
    """The setup for these options in the environment as it is now, and the key that stands for both."""
    key = (tuple(sorted(options.items())), _ambient())
    if key not in _setups:
        _keep(_setups, key, _new_setup(options))
    return key, _setups[key]


def _keep(cache: dict[object, Any], key: object, value: object) -> None:
    while len(cache) >= _MAX_CLIENTS:
        del cache[next(iter(cache))]
    cache[key] = value


def _explicit_credentials(address: StoreAddress) -> S3Credentials | None:
    provider = address.credential_provider
    if provider is None:
        return None
    who = f"no credentials for {address.url}: {type(provider).__name__}"
    try:
        found: object = provider.resolve()
    except ShardyfusionError:
        raise
    except Exception as exc:
        # Its message is not repeated: nobody knows what a foreign provider puts into it.
        raise CredentialsError(f"{who} failed with {type(exc).__name__}") from exc
    if not isinstance(found, S3Credentials):
        raise CredentialsError(f"{who} gave a {type(found).__name__} and not S3Credentials")
    for name in ("access_key_id", "secret_access_key"):
        if not (isinstance(value := getattr(found, name), str) and value):
            raise CredentialsError(f"{who} gave S3Credentials whose {name} is not a string, or empty")
    if not isinstance(cast("object", found.session_token), str | None):
        raise CredentialsError(f"{who} gave S3Credentials whose session_token is neither a string nor None")
    return found


def _found_credentials(setup: _Setup) -> S3Credentials:
    """Those of botocore's chain, as they are now."""
    from botocore.exceptions import NoCredentialsError

    found = setup.session.get_credentials()
    if found is None:
        raise NoCredentialsError
    now = found.get_frozen_credentials()
    if not now.access_key or not now.secret_key:
        raise NoCredentialsError
    return S3Credentials(access_key_id=now.access_key, secret_access_key=now.secret_key, session_token=now.token)


def _ambient() -> object:
    """What botocore looks at outside of the options, so that a change of it is noticed."""
    variables = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_") or k.upper() in _AMBIENT))
    # Path.expanduser raises where there is no home directory.
    files = (Path(os.path.expanduser(os.environ.get(name, path))) for name, path in _CONFIG_FILES.items())  # noqa: PTH111
    return variables, tuple(file.stat().st_mtime_ns if file.is_file() else None for file in files)


def _new_setup(options: S3ConnectionOptions) -> _Setup:
    import botocore.session

    session = botocore.session.get_session()
    profile = cast("_Section", session.get_scoped_config())
    endpoint_url = options.get("endpoint_url") or _configured_endpoint(session, profile)
    if endpoint_url:
        check_endpoint(endpoint_url)
    region = options.get("region_name") or os.environ.get("AWS_REGION") or session.get_config_variable("region")
    region = region or DEFAULT_REGION
    default_style = "path" if endpoint_url else "auto"
    verify_ssl = options.get("verify_ssl", session.get_config_variable("ca_bundle") or True)
    require(
        isinstance(verify_ssl, bool) or Path(verify_ssl).exists(),
        f"the CA bundle {verify_ssl!r} does not exist; correct verify_ssl, AWS_CA_BUNDLE or the profile's ca_bundle",
    )
    return _Setup(
        session=session,
        region=region,
        endpoint_url=endpoint_url,
        addressing_style=options.get("addressing_style")
        or _section(profile, "s3").get("addressing_style")
        or default_style,
        verify_ssl=verify_ssl,
        checksums=_checksum_settings(profile),
    )


def _new_client(options: S3ConnectionOptions, setup: _Setup, explicit: S3Credentials | None) -> S3Client:
    from botocore.config import Config

    limits = _limits(options)
    config = Config(
        connect_timeout=limits.connect_timeout,
        read_timeout=limits.read_timeout,
        retries={"mode": "standard", "total_max_attempts": limits.max_attempts},
        max_pool_connections=_MAX_CONNECTIONS,
        s3=cast("Any", {"addressing_style": setup.addressing_style}),
        **setup.checksums,
    )
    if explicit is None:
        _found_credentials(setup)
    client: S3Client = setup.boto3_session.client(
        "s3",
        region_name=setup.region,
        endpoint_url=setup.endpoint_url,
        verify=setup.verify_ssl,
        config=config,
        aws_access_key_id=explicit and explicit.access_key_id,
        aws_secret_access_key=explicit and explicit.secret_access_key,
        aws_session_token=explicit and explicit.session_token,
    )
    heed_deadlines(client)
    return client


def _limits(options: S3ConnectionOptions) -> CallLimits:
    return CallLimits(
        connect_timeout=options.get("connect_timeout", _CONNECT_TIMEOUT),
        read_timeout=options.get("read_timeout", _READ_TIMEOUT),
        max_attempts=options.get("max_attempts", _MAX_ATTEMPTS),
    )


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
