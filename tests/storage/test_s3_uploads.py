"""Unfinished uploads on S3, the clock of the store, and credentials that change under way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shardyfusion.credentials import StaticCredentialProvider
from shardyfusion.errors import StorageError, StoreAccessError
from shardyfusion.storage import S3Store, StoreAddress
from tests.storage.fake_s3 import FakeS3

TEXT = "text/plain"


def test_unfinished_uploads_are_found_and_given_up(s3_prefix: str, s3_client: Any) -> None:
    """Those below the prefix, and no others of the bucket; an ended one is no error; objects are no uploads."""
    store = S3Store(StoreAddress.parse(s3_prefix))
    bucket = s3_prefix.split("/")[2]
    store.put("shards/done", b"x", content_type=TEXT)
    for key in ("snap/shards/b", "snap/shards/a", "snap/shards/a", "snap2/shards/x", "other"):
        s3_client.create_multipart_upload(Bucket=bucket, Key=key)
    found = list(store.pending_uploads())
    assert sorted(upload.name for upload in found) == ["shards/a", "shards/a", "shards/b"]
    assert [upload.name for upload in store.pending_uploads("shards/b")] == ["shards/b"]
    assert all(upload.started.tzinfo for upload in found)  # which time it is, moto makes up
    store.abort_uploads(upload for upload in found if upload.name == "shards/a")
    store.abort_uploads(found)
    assert list(store.pending_uploads()) == []
    left = {upload["Key"] for upload in s3_client.list_multipart_uploads(Bucket=bucket)["Uploads"]}
    assert left == {"snap2/shards/x", "other"}
    assert store.get("shards/done").body == b"x"


def _page(names: list[str], more: str | None) -> str:
    uploads = "".join(
        f"<Upload><Key>snap/{name}</Key><UploadId>id-{name}</UploadId><Initiated>2026-11-20T10:00:00.000Z</Initiated></Upload>"
        for name in names
    )
    marker = (
        f"<NextKeyMarker>snap/{more}</NextKeyMarker><NextUploadIdMarker>id-{more}</NextUploadIdMarker>" if more else ""
    )
    return (
        f"<ListMultipartUploadsResult><IsTruncated>{'true' if more else 'false'}</IsTruncated>{marker}{uploads}"
        "</ListMultipartUploadsResult>"
    )


def test_unfinished_uploads_go_on_to_the_next_page(fake: FakeS3) -> None:
    fake.replies = [(200, _page(["a", "b"], more="b")), (200, _page(["c"], more=None))]
    found = list(fake.store().pending_uploads())
    assert [(upload.name, upload.upload_id) for upload in found] == [("a", "id-a"), ("b", "id-b"), ("c", "id-c")]
    assert found[0].started == datetime(2026, 11, 20, 10, tzinfo=UTC)
    first, second = (path for _, path, _ in fake.requests)
    assert "prefix=snap%2F" in first
    assert "key-marker=snap%2Fb&upload-id-marker=id-b" in second


def test_a_store_that_knows_no_multipart_listing_says_so(fake: FakeS3) -> None:
    fake.fails(501, "NotImplemented")
    with pytest.raises(StorageError, match=r"unfinished uploads of s3://bucket/snap/.*does not support this request"):
        list(fake.store().pending_uploads())


def test_now_is_the_date_of_an_answer(s3_prefix: str, fake: FakeS3) -> None:
    """Of any answer that is allowed: whole seconds, in UTC, as `modified` is."""
    store = S3Store(StoreAddress.parse(s3_prefix))
    store.put("a", b"", content_type=TEXT)
    now = store.now()
    assert (now.microsecond, now.utcoffset()) == (0, timedelta(0))
    assert abs(now - store.get("a").info.modified) <= timedelta(seconds=5)
    fake.replies = [(200, "<ListBucketResult></ListBucketResult>")]
    assert abs(fake.store().now() - datetime.now(UTC)) < timedelta(minutes=1)
    fake.fails(403, "AccessDenied")
    with pytest.raises(StoreAccessError):
        fake.store().now()


def test_credentials_may_change_from_one_store_to_the_next(fake: FakeS3) -> None:
    """As those of a provider that rotates them do: one endpoint and one set of options, used under several keys."""
    fake.replies = [(200, "")]
    for number in range(3):
        keys = StaticCredentialProvider(f"AKIA{number}", f"secret-number-{number}")
        address = StoreAddress.parse(
            "s3://bucket/snap", credential_provider=keys, options={"endpoint_url": fake.url, "max_attempts": 1}
        )
        S3Store(address).get("a")
    used = [headers["authorization"].partition("Credential=")[2].partition("/")[0] for _, _, headers in fake.requests]
    assert used == ["AKIA0", "AKIA1", "AKIA2"]
