"""What boto3, botocore and s3transfer raise, as errors of this library; nowhere else are those caught.

The table is by error code first and by HTTP status second: S3-compatible stores agree more on the latter.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardyfusion.errors import (
    ConfigValidationError,
    CredentialsError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StoreAccessError,
    StoreUnavailableError,
    UnsafeStoreError,
)

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_BY_CODE: dict[str, tuple[type[StorageError], str]] = {
    "NoSuchBucket": (StorageError, "the bucket does not exist; create it or correct s3_prefix"),
    "PermanentRedirect": (StorageError, "the bucket is in another region or store; set region_name or endpoint_url"),
    "NoSuchUpload": (StoreUnavailableError, "the multipart upload was aborted meanwhile"),
    "ExpiredToken": (StoreAccessError, "the credentials have expired"),
    "InvalidToken": (StoreAccessError, "the session token is not valid"),
    "AuthorizationHeaderMalformed": (StoreAccessError, "the region is wrong for this bucket; set region_name"),
    "RequestTimeout": (StoreUnavailableError, "the store did not get the request in time"),
    "SlowDown": (StoreUnavailableError, "the store asks for fewer requests"),
    "NotImplemented": (StorageError, "the store does not support this request"),
}
_BY_STATUS: dict[int, tuple[type[StorageError], str]] = {
    401: (StoreAccessError, "access denied"),
    403: (StoreAccessError, "access denied"),
    404: (ObjectNotFoundError, "there is no such object"),
    408: (StoreUnavailableError, "the store timed out"),
    409: (StoreUnavailableError, "another request for the same object was under way"),
    412: (ObjectExistsError, "something else is there already"),
    429: (StoreUnavailableError, "the store asks for fewer requests"),
    501: (StorageError, "the store does not support this request"),
}


@contextmanager
def translated_s3_errors(action: str, url: str, *, conditional: bool = False) -> Generator[None]:
    """Turn what an S3 request raises into `StorageError`s that name the URL.

    `conditional` says that the request carries If-Match or If-None-Match: a store that does not know these is unsafe.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as exc:
        raise _from_reply(exc, f"cannot {action} {url}", conditional) from exc
    except BotoCoreError as exc:
        raise _from_client(exc, f"cannot {action} {url}") from exc
    except Exception as exc:
        # These have no base class in common, and which of them exist depends on the version.
        if type(exc).__module__ != "s3transfer.exceptions":
            raise
        raise StoreUnavailableError(f"cannot {action} {url}: the transfer failed: {_cause(exc)}") from exc


@contextmanager
def translated_setup_errors(url: str) -> Generator[None]:
    """Turn what botocore raises before any request into `CredentialsError` or `ConfigValidationError`."""
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as exc:
        raise CredentialsError(
            f"no AWS credentials found for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a profile "
            "with AWS_PROFILE, or pass a credential provider"
        ) from exc
    except BotoCoreError as exc:
        error = CredentialsError if _is_about_credentials(exc) else ConfigValidationError
        raise error(f"cannot set up S3 for {url}: {exc}") from exc
    except ValueError as exc:
        if isinstance(exc, ConfigValidationError):
            raise
        raise ConfigValidationError(f"cannot set up S3 for {url}: {exc}") from exc


def _cause(exc: Exception) -> str:
    """What made a transfer give up, which its own error only keeps."""
    last = getattr(exc, "last_exception", None)
    return str(exc) if last is None else f"{type(last).__name__}: {last}"


def _from_reply(exc: ClientError, what: str, conditional: bool) -> StorageError:
    """The error for a reply of the store."""
    details = exc.response.get("Error", {})
    code, said = str(details.get("Code", "")), details.get("Message", "")
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    error, meaning = _BY_CODE.get(code) or _BY_STATUS.get(status) or (StorageError, "the store refused the request")
    if status >= 500 and status != 501:
        error, meaning = StoreUnavailableError, "the store failed"
    if conditional and (status == 501 or code == "NotImplemented"):
        error, meaning = UnsafeStoreError, "the store does not support conditional writes, so writers could overwrite"
    if conditional and exc.response.get("ResponseMetadata", {}).get("RetryAttempts") and error is not ObjectExistsError:
        # botocore sent it more than once, and tells the answer to the last: an earlier one may have been applied.
        error, meaning = StoreUnavailableError, f"{meaning}, and what became of an earlier try is not known"
    return error(f"{what}: {meaning} (HTTP {status} {code}: {said})")


def _from_client(exc: Exception, what: str) -> StorageError:
    """The error for what went wrong on this side or on the way."""
    from botocore.exceptions import ParamValidationError

    if _is_about_credentials(exc):
        return StoreAccessError(f"{what}: {exc}")
    if isinstance(exc, ParamValidationError):
        return StorageError(f"{what}: {exc}")
    return StoreUnavailableError(f"{what}: {exc}")


def _is_about_credentials(exc: Exception) -> bool:
    from botocore import exceptions as known

    return isinstance(
        exc,
        known.NoCredentialsError
        | known.PartialCredentialsError
        | known.CredentialRetrievalError
        | known.TokenRetrievalError
        | known.UnknownCredentialError
        | known.ProfileNotFound
        | known.SSOError
        | known.MetadataRetrievalError
        | known.RefreshWithMFAUnsupportedError
        | known.InfiniteLoopConfigError,
    )
