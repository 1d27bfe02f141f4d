"""Objects on S3 and on stores that speak its protocol, through boto3.

Credentials, endpoint and client come from `s3_connection.py`, the translation of errors from `s3_errors.py`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardyfusion.errors import ObjectNotFoundError, StorageError, StoreAccessError, StoreUnavailableError
from shardyfusion.storage.address import StoreAddress
from shardyfusion.storage.contract import ObjectInfo, PendingUpload, StoredObject
from shardyfusion.storage.durable import translated_os_errors
from shardyfusion.storage.names import check_object_name
from shardyfusion.storage.s3_connection import ResolvedS3, resolve_s3, s3_client
from shardyfusion.storage.s3_errors import translated_s3_errors

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

__all__ = ["ResolvedS3", "S3Store", "resolve_s3"]

MULTIPART_BYTES = 8 * 1024 * 1024
"""Uploads of this size and above go in parts; so do downloads."""

_TRANSFER_THREADS = 4
_DOWNLOAD_TRIES = 2
"""For a part that breaks off half-way. Each is made of `max_attempts` requests, so a hung endpoint costs them all."""

_DELETE_BATCH = 1000


class S3Store:
    """An `ObjectStore` over the keys below `<key_prefix>/` of one bucket."""

    def __init__(self, address: StoreAddress) -> None:
        self._address = address
        self._bucket = address.bucket
        self._prefix = f"{address.key_prefix}/" if address.key_prefix else ""
        self._opened = (os.getpid(), s3_client(address))
        self._bucket_seen = False

    @property
    def url(self) -> str:
        return self._address.url

    def get(self, name: str) -> StoredObject:
        key = self._key(name)
        with translated_s3_errors("read", f"{self.url}/{name}"):
            reply = self._client.get_object(Bucket=self._bucket, Key=key)
            # `with reply["Body"]` would give the raw stream, whose errors botocore does not translate.
            with closing(reply["Body"]) as stream:
                body = stream.read()
        return StoredObject(ObjectInfo(name, len(body), reply["LastModified"], reply["ETag"]), body)

    def head(self, name: str) -> ObjectInfo | None:
        key = self._key(name)
        try:
            with translated_s3_errors("look up", f"{self.url}/{name}"):
                reply = self._client.head_object(Bucket=self._bucket, Key=key)
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
        # The order matters: botocore's connection errors are OSErrors as well.
        with (
            translated_os_errors("upload", str(path), missing=StorageError),
            translated_s3_errors("upload", f"{self.url}/{name}"),
        ):
            self._client.upload_file(
                str(path), self._bucket, key, ExtraArgs={"ContentType": content_type}, Config=_transfer_config()
            )

    def download(self, name: str, path: Path) -> None:
        key = self._key(name)
        with translated_os_errors("write", str(path)), path.open("wb") as file:
            try:
                with translated_s3_errors("download", f"{self.url}/{name}"):
                    self._client.download_fileobj(self._bucket, key, file, Config=_transfer_config())
            except ObjectNotFoundError:
                self._check_bucket()
                raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        )
        cut = len(self._prefix)
        while True:
            with translated_s3_errors("list", f"{self.url}/{prefix}"):
                page = next(pages, None)
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
            with translated_s3_errors("delete from", self.url):
                if not self._delete_at_once(batch):
                    for key in batch:
                        self._client.delete_object(Bucket=self._bucket, Key=key)

    def pending_uploads(self, prefix: str = "") -> Iterator[PendingUpload]:
        pages = iter(
            self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
        )
        cut = len(self._prefix)
        while True:
            with translated_s3_errors("list the unfinished uploads of", f"{self.url}/{prefix}"):
                page = next(pages, None)
            if page is None:
                return
            for found in page.get("Uploads", []):
                name, upload_id, started = found.get("Key", "")[cut:], found.get("UploadId"), found.get("Initiated")
                if name and upload_id and started:
                    yield PendingUpload(name, upload_id, started)

    def abort_uploads(self, uploads: Iterable[PendingUpload]) -> None:
        for upload in uploads:
            with (
                translated_s3_errors("abort the upload of", f"{self.url}/{upload.name}"),
                _no_such_upload_is_fine(),
            ):
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._key(upload.name), UploadId=upload.upload_id
                )

    def now(self) -> datetime:
        with translated_s3_errors("list", self.url):
            reply = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
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
        with translated_s3_errors(action, f"{self.url}/{name}", conditional=bool(condition)):
            reply = self._client.put_object(
                Bucket=self._bucket, Key=key, Body=body, ContentType=content_type, **(condition or {})
            )
        return reply["ETag"]

    def _delete_at_once(self, keys: list[str]) -> bool:
        """One request for many keys; False if this store does not take such a request as botocore sends it.

        Some want a Content-MD5, which botocore no longer adds, and some have no such request.
        """
        from botocore.exceptions import ClientError

        targets: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys]
        try:
            reply = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": targets, "Quiet": True})
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

    def _check_bucket(self) -> None:
        """A HEAD says 404 for a missing object and for a missing bucket alike. Tell them apart, once per store."""
        if self._bucket_seen:
            return
        try:
            with translated_s3_errors("find the bucket of", self.url):
                self._client.head_bucket(Bucket=self._bucket)
        except ObjectNotFoundError as exc:
            raise StorageError(
                f"cannot read {self.url}: the bucket does not exist; create it or correct s3_prefix"
            ) from exc
        except StoreAccessError:
            pass  # without permission to list a bucket one may still read objects; it does exist
        self._bucket_seen = True


@contextmanager
def _no_such_upload_is_fine() -> Generator[None]:
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as exc:
        if exc.response.get("Error", {}).get("Code") != "NoSuchUpload":
            raise


def _transfer_config() -> TransferConfig:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=MULTIPART_BYTES,
        multipart_chunksize=MULTIPART_BYTES,
        max_concurrency=_TRANSFER_THREADS,
        num_download_attempts=_DOWNLOAD_TRIES,
        preferred_transfer_client="classic",  # the other one does not take the settings of our client
    )
