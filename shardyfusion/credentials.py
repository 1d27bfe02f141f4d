"""S3 credentials: where they come from. They are masked in every repr and never written anywhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Protocol

from shardyfusion.errors import CredentialsError
from shardyfusion.masking import remember_secret


@dataclass(frozen=True, kw_only=True)
class S3Credentials:
    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        remember_secret(self.secret_access_key)
        remember_secret(self.session_token)


class CredentialProvider(Protocol):
    """Called on every process that opens the store; must be picklable for process-based schedulers."""

    def resolve(self) -> S3Credentials: ...


@dataclass(frozen=True)
class StaticCredentialProvider:
    """Credentials given in code."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)

    def resolve(self) -> S3Credentials:
        return S3Credentials(
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            session_token=self.session_token,
        )


@dataclass(frozen=True)
class EnvCredentialProvider:
    """AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN of the process that opens the store, and nothing
    else. (Without any provider, botocore's whole chain is used: environment, profiles, instance roles.)"""

    def resolve(self) -> S3Credentials:
        key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not key or not secret:
            raise CredentialsError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set in the environment")
        return S3Credentials(
            access_key_id=key, secret_access_key=secret, session_token=os.environ.get("AWS_SESSION_TOKEN") or None
        )
