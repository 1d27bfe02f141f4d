"""Every error this library raises on purpose, in one tree.

Nothing else lives here. Foreign exceptions are translated where they are met and chained with `from`.

    ShardyfusionError                     retryable = False unless said otherwise
    ├── ConfigValidationError             the request is wrong: change the call (also ValueError)
    │   ├── InputDataError                the data is wrong: null, out-of-range or unroutable keys
    │   │   ├── DuplicateKeyError         one key more than once, and on_duplicate_key="fail"
    │   │   └── ValueEncodingError        a value column or the user's encoder gave what cannot be stored
    │   └── CredentialsError              no usable credentials for an s3:// prefix
    ├── MissingExtraError                 an optional package is not installed (also ImportError)
    ├── StorageError                      the object store said no
    │   ├── ObjectNotFoundError           nothing at that name
    │   ├── ObjectExistsError             create-only write, and something is there (HTTP 412)
    │   ├── StoreAccessError              denied (HTTP 401, 403)
    │   ├── UnsafeStoreError              the store ignores create-only writes
    │   └── StoreUnavailableError         retryable: timeouts, resets, 5xx, 429, 409
    ├── ComputeError                      the Dask computation failed: the input's own tasks, or Dask itself
    ├── ShardAssignmentError              vectorised and scalar routing disagree: a bug, nothing published
    ├── ShardWriteError                   retryable: building one shard failed for a passing reason
    ├── ShardCoverageError                what was sealed is not what was read, or a shard never came back
    ├── PublishManifestError              retryable: nothing visible changed; rerun with the same run_id
    │   └── PublishUnknownError           retryable: the commit may still appear; rerun with the same run_id
    ├── PublishCurrentError               retryable: committed, but the _CURRENT pointer lags behind
    ├── StaleBuildError                   a build that started later has been published
    ├── HeadMovedError                    another commit came first: nothing was changed, look at it and ask again
    ├── RunConflictError                  this run_id belongs to another request, or was cleaned up
    │   └── RunExpiredError               cleanup has given up this run_id
    ├── CommitLogError                    the commit log is broken or was replaced underneath us
    ├── ManifestParseError                a manifest, pointer or commit record cannot be read
    ├── UnknownRoutingTokenError          the routing expression names no shard: no such row (also ValueError)
    ├── ForkedProcessError                SlateDB in a child forked from a process that had used it: open after the fork
    └── ReaderStateError                  the reader cannot serve this call
        ├── SnapshotNotFoundError         no snapshot at the prefix
        └── ShardUnavailableError         a shard that the manifest names cannot be opened or read
            └── ShardTimeoutError         retryable: the store did not answer in time
"""

from __future__ import annotations

from typing import Any, Self

from shardyfusion.masking import masked


class ShardyfusionError(Exception):
    """Base of everything this library raises on purpose.

    `retryable` says whether the same call can succeed later without a change by the caller; `facts` are the
    shard, URL, column, key or run id that the message is about. Both survive pickling between processes. Secrets in
    a message, such as those that a store or a user's code put into theirs, are masked.
    """

    retryable = False

    def __init__(self, message: str, **facts: Any) -> None:
        self.message = masked(message)
        self.facts = facts
        super().__init__(self.message)

    def __str__(self) -> str:
        tail = ", ".join(f"{name}={value!r}" for name, value in self.facts.items())
        return f"{self.message} [{masked(tail)}]" if tail else self.message

    def detached(self) -> Self:
        """This error without its chain and traceback, to be sent between processes as data.

        A foreign cause may not survive pickling, and a traceback keeps the frames of the worker alive.
        """
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.facts)


def _rebuild(cls: type[ShardyfusionError], message: str, facts: dict[str, Any]) -> ShardyfusionError:
    return cls(message, **facts)


class ConfigValidationError(ShardyfusionError, ValueError): ...


class InputDataError(ConfigValidationError): ...


class DuplicateKeyError(InputDataError): ...


class ValueEncodingError(InputDataError): ...


class CredentialsError(ConfigValidationError): ...


class MissingExtraError(ShardyfusionError, ImportError): ...


class StorageError(ShardyfusionError): ...


class ObjectNotFoundError(StorageError): ...


class ObjectExistsError(StorageError): ...


class StoreAccessError(StorageError): ...


class UnsafeStoreError(StorageError): ...


class StoreUnavailableError(StorageError):
    retryable = True


class ComputeError(ShardyfusionError): ...


class ShardAssignmentError(ShardyfusionError): ...


class ShardWriteError(ShardyfusionError):
    retryable = True


class ShardCoverageError(ShardyfusionError): ...


class PublishManifestError(ShardyfusionError):
    retryable = True


class PublishUnknownError(PublishManifestError): ...


class PublishCurrentError(ShardyfusionError):
    retryable = True


class StaleBuildError(ShardyfusionError): ...


class HeadMovedError(ShardyfusionError): ...


class RunConflictError(ShardyfusionError): ...


class RunExpiredError(RunConflictError): ...


class CommitLogError(ShardyfusionError): ...


class ManifestParseError(ShardyfusionError): ...


class UnknownRoutingTokenError(ShardyfusionError, ValueError):
    """The routing expression names no shard for a key or its context: the snapshot has no such row."""


class ForkedProcessError(ShardyfusionError): ...


class ReaderStateError(ShardyfusionError): ...


class SnapshotNotFoundError(ReaderStateError): ...


class ShardUnavailableError(ReaderStateError): ...


class ShardTimeoutError(ShardUnavailableError):
    retryable = True
