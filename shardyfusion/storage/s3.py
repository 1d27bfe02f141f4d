"""Objects on S3 and on stores that speak its protocol, through boto3.

Credentials, endpoint and client come from `s3_connection.py`, the translation of errors from `s3_errors.py`, and the
end of every call from `s3_deadline.py`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shardyfusion.errors import ObjectNotFoundError, StorageError, StoreAccessError, StoreUnavailableError
from shardyfusion.storage.address import StoreAddress
from shardyfusion.storage.contract import ObjectInfo, PendingUpload, StoredObject
from shardyfusion.storage.durable import translated_os_errors
from shardyfusion.storage.names import check_object_name
from shardyfusion.storage.s3_connection import ResolvedS3, call_limits, resolve_s3, s3_client
from shardyfusion.storage.s3_deadline import PIECE_BYTES, CallThreads, moved, sets_out, stops_by, within
from shardyfusion.storage.s3_errors import translated_s3_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef
    from s3transfer.futures import TransferFuture
    from s3transfer.manager import TransferManager

T = TypeVar("T")

__all__ = ["ResolvedS3", "S3Store", "resolve_s3"]

MULTIPART_BYTES = 16 * 1024 * 1024
"""Uploads of this size and above go in parts; so do downloads."""

_TRANSFER_THREADS = 4
_DOWNLOAD_TRIES = 2
"""For a part that breaks off half-way. Each is made of `max_attempts` requests, and all by one deadline."""

_QUEUED_PIECES = 100
"""Of a download, when the disk is slower than the network."""

_DELETE_BATCH = 1000


class S3Store:
    """An `ObjectStore` over the keys below `<key_prefix>/` of one bucket."""

    def __init__(self, address: StoreAddress) -> None:
        self._address = address
        self._bucket = address.bucket
        self._prefix = f"{address.key_prefix}/" if address.key_prefix else ""
        self._limits = call_limits(address)
        self._opened = (os.getpid(), s3_client(address))
        self._bucket_seen = False

    @property
    def url(self) -> str:
        return self._address.url

    def get(self, name: str) -> StoredObject:
        key = self._key(name)

        def read(s3: S3Client) -> StoredObject:
            reply = s3.get_object(Bucket=self._bucket, Key=key)
            pieces: list[bytes] = []
            # `with reply["Body"]` would give the raw stream, whose errors botocore does not translate.
            with closing(reply["Body"]) as stream:
                while piece := stream.read(PIECE_BYTES):
                    moved(len(piece))
                    pieces.append(piece)
            body = b"".join(pieces)
            return StoredObject(ObjectInfo(name, len(body), reply["LastModified"], reply["ETag"]), body)

        return self._call("read", f"{self.url}/{name}", read)

    def head(self, name: str) -> ObjectInfo | None:
        key = self._key(name)
        try:
            reply = self._call("look up", f"{self.url}/{name}", lambda s3: s3.head_object(Bucket=self._bucket, Key=key))
        except ObjectNotFoundError:
            self._check_bucket()
            return None
        return ObjectInfo(name, reply["ContentLength"], reply["LastModified"], reply["ETag"])

    def put(self, name: str, body: bytes, *, content_type: str) -> str:
        return self._put("write", name, body, content_type)

    def create(self, name: str, body: bytes, *, content_type: str) -> str:
        return self._put("create", name, body, content_type, {"IfNoneMatch": "*"})

    def replace(self, name: str, body: bytes, *, etag: str, content_type: str) -> str:
        return self._put("replace", name, body, content_type, {"IfMatch": etag})

    def upload(self, name: str, path: Path, *, content_type: str) -> None:
        key = self._key(name)

        def send(s3: S3Client) -> None:
            sets_out(min(path.stat().st_size, _TRANSFER_THREADS * PIECE_BYTES))
            with _transfers(s3) as transfers:
                kind = {"ContentType": content_type}
                _finish(transfers.upload(str(path), self._bucket, key, kind, subscribers=[_progress()]))

        # The order matters: botocore's connection errors are OSErrors as well.
        with translated_os_errors("upload", str(path), missing=StorageError):
            self._call("upload", f"{self.url}/{name}", send)

    def download(self, name: str, path: Path) -> None:
        key = self._key(name)
        # Closed before the error of a call that was given up is out: what still comes for it is written nowhere.
        with translated_os_errors("write", str(path)), path.open("wb") as file:

            def fetch(s3: S3Client) -> None:
                with _transfers(s3) as transfers:
                    _finish(transfers.download(self._bucket, key, file, subscribers=[_progress()]))

            try:
                self._call("download", f"{self.url}/{name}", fetch)
            except ObjectNotFoundError:
                self._check_bucket()
                raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        )
        cut = len(self._prefix)
        while True:
            page = self._call("list", f"{self.url}/{prefix}", lambda _: next(pages, None))
            if page is None:
                return
            for found in page.get("Contents", []):
                name, modified = found.get("Key", "")[cut:], found.get("LastModified")
                # An S3 console makes empty objects that end in "/" to show folders.
                if name and modified and not name.endswith("/"):
                    yield ObjectInfo(name, found.get("Size", 0), modified, found.get("ETag", ""))

    def delete(self, names: Iterable[str]) -> None:
        keys = (self._key(name) for name in names)
        while batch := list(itertools.islice(keys, _DELETE_BATCH)):
            if not self._call("delete from", self.url, lambda s3, batch=batch: self._delete_at_once(s3, batch)):
                for key in batch:
                    self._call(
                        "delete from", self.url, lambda s3, key=key: s3.delete_object(Bucket=self._bucket, Key=key)
                    )

    def pending_uploads(self, prefix: str = "") -> Iterator[PendingUpload]:
        pages = iter(
            self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
        )
        cut = len(self._prefix)
        while True:
            page = self._call("list the unfinished uploads of", f"{self.url}/{prefix}", lambda _: next(pages, None))
            if page is None:
                return
            for found in page.get("Uploads", []):
                name, upload_id, started = found.get("Key", "")[cut:], found.get("UploadId"), found.get("Initiated")
                if name and upload_id and started:
                    yield PendingUpload(name, upload_id, started)

    def abort_uploads(self, uploads: Iterable[PendingUpload]) -> None:
        for upload in uploads:
            url = f"{self.url}/{upload.name}"
            self._call("abort the upload of", url, lambda s3, upload=upload: self._abort(s3, upload))

    def now(self) -> datetime:
        reply = self._call(
            "list", self.url, lambda s3: s3.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        )
        date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            raise StorageError(f"{self.url} sends no Date with its answers, so ages cannot be told by its clock")
        return parsedate_to_datetime(date)

    @property
    def _client(self) -> S3Client:
        """The client, or another one in a forked child."""
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), s3_client(self._address))
        return self._opened[1]

    def _key(self, name: str) -> str:
        return self._prefix + check_object_name(name)

    def _put(
        self, action: str, name: str, body: bytes, content_type: str, condition: Mapping[str, Any] | None = None
    ) -> str:
        key = self._key(name)

        def send(s3: S3Client) -> str:
            sets_out(len(body))
            reply = s3.put_object(
                Bucket=self._bucket, Key=key, Body=body, ContentType=content_type, **(condition or {})
            )
            return reply["ETag"]

        return self._call(action, f"{self.url}/{name}", send, conditional=bool(condition))

    def _call(self, action: str, url: str, work: Callable[[S3Client], T], *, conditional: bool = False) -> T:
        """What `work` gets out of the client, by the deadline of one call."""
        client = self._client
        with translated_s3_errors(action, url, conditional=conditional):
            return within(self._limits, action, f"{url} at {client.meta.endpoint_url}", lambda: work(client))

    def _delete_at_once(self, s3: S3Client, keys: list[str]) -> bool:
        """One request for many keys; False if this store does not take such a request as botocore sends it.

        Some want a Content-MD5, which botocore no longer adds, and some have no such request.
        """
        from botocore.exceptions import ClientError

        targets: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys]
        try:
            reply = s3.delete_objects(Bucket=self._bucket, Delete={"Objects": targets, "Quiet": True})
        except ClientError as exc:
            if exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (400, 405, 411, 501):
                return False
            raise
        for failed in reply.get("Errors", []):
            code = failed.get("Code", "")
            if code in ("NoSuchKey", "NoSuchVersion"):
                continue
            error = StoreAccessError if code == "AccessDenied" else StoreUnavailableError
            key = failed.get("Key", "")
            raise error(f"cannot delete s3://{self._bucket}/{key}: {code}: {failed.get('Message', '')}")
        return True

    def _abort(self, s3: S3Client, upload: PendingUpload) -> None:
        from botocore.exceptions import ClientError

        try:
            s3.abort_multipart_upload(Bucket=self._bucket, Key=self._key(upload.name), UploadId=upload.upload_id)
        except ClientError as exc:
            if exc.response.get("Error", {}).get("Code") != "NoSuchUpload":
                raise

    def _check_bucket(self) -> None:
        """A HEAD says 404 for a missing object and for a missing bucket alike. Tell them apart, once per store."""
        if self._bucket_seen:
            return
        try:
            self._call("find the bucket of", self.url, lambda s3: s3.head_bucket(Bucket=self._bucket))
        except ObjectNotFoundError as exc:
            raise StorageError(
                f"cannot read {self.url}: the bucket does not exist; create it or correct s3_prefix"
            ) from exc
        except StoreAccessError:
            pass  # without permission to list a bucket one may still read objects; it does exist
        self._bucket_seen = True


def _transfers(s3: S3Client) -> TransferManager:
    """What boto3's own `upload_file` and `download_fileobj` use, but with threads that nobody has to wait for."""
    from s3transfer.manager import TransferConfig, TransferManager

    config = TransferConfig(
        multipart_threshold=MULTIPART_BYTES,
        multipart_chunksize=MULTIPART_BYTES,
        max_request_concurrency=_TRANSFER_THREADS,
        max_io_queue_size=_QUEUED_PIECES,
        io_chunksize=PIECE_BYTES,
        num_download_attempts=_DOWNLOAD_TRIES,
    )
    return TransferManager(s3, config, executor_cls=cast("Any", CallThreads))


def _finish(transfer: TransferFuture) -> None:
    stops_by(transfer.cancel)
    transfer.result()


def _progress() -> Any:
    from boto3.s3.transfer import ProgressCallbackInvoker

    return ProgressCallbackInvoker(moved)
