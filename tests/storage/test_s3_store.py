"""What only the S3 store has: credentials, endpoints, multipart, and the errors of a server that misbehaves."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from shardyfusion.credentials import EnvCredentialProvider, S3Credentials
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
from shardyfusion.storage import S3Store, StoreAddress
from shardyfusion.storage.s3 import resolve_s3
from shardyfusion.storage.s3_connection import s3_client as client_of
from tests.storage.fake_s3 import STATIC, FakeS3

TEXT = "text/plain"


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment in which botocore finds nothing at all."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return monkeypatch


# -- credentials and settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [None, EnvCredentialProvider()])
def test_without_credentials_no_request_is_sent(
    clean_env: pytest.MonkeyPatch, fake: FakeS3, provider: EnvCredentialProvider | None
) -> None:
    address = StoreAddress.parse("s3://bucket/snap", credential_provider=provider, options={"endpoint_url": fake.url})
    with pytest.raises(CredentialsError, match="AWS_ACCESS_KEY_ID"):
        S3Store(address)
    with pytest.raises(CredentialsError):
        resolve_s3(address)
    assert fake.requests == []


def test_a_provider_that_fails_is_a_credentials_error_without_its_words() -> None:
    class Vault:
        def resolve(self) -> S3Credentials:
            raise OSError("token hidden is not valid")

    with pytest.raises(CredentialsError, match="Vault failed with OSError") as caught:
        S3Store(StoreAddress.parse("s3://bucket/snap", credential_provider=Vault()))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        None,
        {"access_key_id": "hidden"},
        ("hidden", "hidden"),
        S3Credentials(access_key_id="", secret_access_key=""),
        S3Credentials(access_key_id="hidden", secret_access_key=None),
        S3Credentials(access_key_id="hidden", secret_access_key=b"hidden"),
        S3Credentials(access_key_id="hidden", secret_access_key="hidden", session_token=("hidden",)),
    ],
)
def test_a_provider_that_gives_none_does_not_fall_back_to_the_environment(s3: str, given: Any) -> None:
    class Vault:
        def resolve(self) -> Any:
            return given

    address = StoreAddress.parse("s3://bucket/snap", credential_provider=Vault())
    for use in (S3Store, resolve_s3):
        with pytest.raises(CredentialsError, match="s3://bucket/snap: Vault gave") as caught:
            use(address)
        assert "hidden" not in str(caught.value)


def test_a_ca_bundle_of_the_environment_shows_and_an_option_wins(clean_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def verify(**options: Any) -> object:
        return resolve_s3(
            StoreAddress.parse("s3://bucket/snap", credential_provider=STATIC, options=options)
        ).verify_ssl

    assert verify() is True
    bundle = tmp_path / "ca.pem"
    (tmp_path / "config").write_text(f"[default]\nca_bundle = {bundle}\n")
    with pytest.raises(ConfigValidationError, match=r"ca\.pem.*does not exist.*ca_bundle"):
        verify()
    bundle.touch()
    assert verify() == str(bundle)
    assert verify(verify_ssl=False) is False
    assert verify(verify_ssl=True) is True
    clean_env.setenv("AWS_CA_BUNDLE", str(tmp_path))
    assert verify() == str(tmp_path)


@pytest.mark.parametrize(
    ("region", "variables", "endpoint"),
    [
        ("us-east-1", [], None),
        ("eu-west-1", [], None),
        ("cn-north-1", [], "https://s3.cn-north-1.amazonaws.com.cn"),
        ("us-east-1", ["FIPS"], "https://s3-fips.us-east-1.amazonaws.com"),
        ("eu-west-1", ["DUALSTACK"], "https://s3.dualstack.eu-west-1.amazonaws.com"),
    ],
)
def test_other_endpoints_of_aws_show(
    clean_env: pytest.MonkeyPatch, region: str, variables: list[str], endpoint: str | None
) -> None:
    """Another S3 client has other rules for them."""
    for name in variables:
        clean_env.setenv(f"AWS_USE_{name}_ENDPOINT", "true")
    found = resolve_s3(
        StoreAddress.parse("s3://bucket/snap", credential_provider=STATIC, options={"region_name": region})
    )
    assert (found.endpoint_url, found.virtual_hosted) == (endpoint, True)


def test_a_profile_that_does_not_exist_is_a_credentials_error(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(CredentialsError, match="nobody"):
        S3Store(StoreAddress.parse("s3://bucket/snap"))


def test_a_profile_gives_credentials_region_and_endpoint(
    s3: str, s3_prefix: str, clean_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        f"[profile etl]\nregion = eu-west-1\nservices = here\n[services here]\ns3 =\n  endpoint_url = {s3}\n"
    )
    (tmp_path / "credentials").write_text("[etl]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = hidden\n")
    clean_env.setenv("AWS_PROFILE", "etl")
    address = StoreAddress.parse(s3_prefix)
    found = resolve_s3(address)
    assert (found.access_key_id, found.secret_access_key, found.session_token) == ("AKIAPROFILE", "hidden", None)
    assert (found.region, found.endpoint_url, found.virtual_hosted) == ("eu-west-1", s3, False)
    S3Store(address).put("a", b"1", content_type=TEXT)
    assert S3Store(address).get("a").body == b"1"
    (tmp_path / "config").write_text(f"[profile etl]\nendpoint_url = {s3}\ns3 =\n  addressing_style = virtual\n")
    os.utime(tmp_path / "config", (0, 0))  # the change is noticed even if the clock is coarse
    changed = resolve_s3(address)
    assert (changed.region, changed.endpoint_url, changed.virtual_hosted) == ("us-east-1", s3, True)


def test_environment_settings_and_their_precedence(clean_env: pytest.MonkeyPatch) -> None:
    address = StoreAddress.parse("s3://bucket/snap", credential_provider=STATIC)
    assert resolve_s3(address).endpoint_url is None
    assert resolve_s3(address).virtual_hosted
    assert not resolve_s3(address.at("s3://dotted.bucket/snap")).virtual_hosted
    clean_env.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    clean_env.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert (resolve_s3(address).region, resolve_s3(address).virtual_hosted) == ("eu-west-1", False)
    clean_env.setenv("AWS_REGION", "eu-west-2")
    clean_env.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:2")
    assert (resolve_s3(address).region, resolve_s3(address).endpoint_url) == ("eu-west-2", "http://127.0.0.1:2")
    clean_env.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert resolve_s3(address).endpoint_url is None
    given = StoreAddress.parse(
        "s3://bucket/snap",
        credential_provider=STATIC,
        options={"region_name": "eu-west-3", "endpoint_url": "http://127.0.0.1:3", "max_attempts": 2},
    )
    found = resolve_s3(given)
    assert (found.region, found.endpoint_url, found.max_attempts) == ("eu-west-3", "http://127.0.0.1:3", 2)
    clean_env.setenv("AWS_ENDPOINT_URL_S3", "http://user:hidden@127.0.0.1:2")
    clean_env.delenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    with pytest.raises(ConfigValidationError, match="credentials") as caught:
        S3Store(address)
    assert "hidden" not in str(caught.value)


def test_explicit_credentials_win_over_the_environment(s3: str, fake: FakeS3) -> None:
    fake.store().put("a b=c", b"", content_type=TEXT)
    method, path, headers = fake.requests[0]
    assert (method, path) == ("PUT", "/bucket/snap/a%20b%3Dc")
    assert "Credential=AKIAEXPLICIT/" in headers["authorization"]
    assert headers["x-amz-security-token"] == "secret-token"
    found = resolve_s3(StoreAddress.parse("s3://bucket/snap", credential_provider=STATIC))
    assert (found.access_key_id, found.secret_access_key) == ("AKIAEXPLICIT", "top-secret")


def test_secrets_are_in_no_repr_and_no_error(fake: FakeS3) -> None:
    fake.fails(403, "SignatureDoesNotMatch")
    with pytest.raises(StoreAccessError) as caught:
        fake.store().get("a")
    address = StoreAddress.parse("s3://bucket/snap", credential_provider=STATIC)
    for shown in (repr(resolve_s3(address)), repr(address), str(caught.value), repr(caught.value), repr(fake.store())):
        assert "top-secret" not in shown
        assert "secret-token" not in shown


def test_no_checksums_are_added_unless_asked_for(fake: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.store().put("a", b"x", content_type=TEXT)
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    fake.store().put("a", b"x", content_type=TEXT)
    plain, asked = ({name for name in headers if "checksum" in name} for _, _, headers in fake.requests)
    assert not plain
    assert asked


def test_stores_of_equal_settings_share_a_client(s3: str, s3_prefix: str) -> None:
    address = StoreAddress.parse(s3_prefix)
    assert client_of(address) is client_of(address.at(s3_prefix + "2"))
    other = StoreAddress.parse(s3_prefix, options={"read_timeout": 7})
    assert client_of(address) is not client_of(other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_client(s3: str, s3_prefix: str) -> None:
    store = S3Store(StoreAddress.parse(s3_prefix))
    store.put("parent", b"", content_type=TEXT)
    before = client_of(StoreAddress.parse(s3_prefix))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            store.put("child", b"", content_type=TEXT)
            status = 0 if before not in (client_of(StoreAddress.parse(s3_prefix)), store._client) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [info.name for info in store.list()] == ["child", "parent"]


# -- requests ---------------------------------------------------------------------------------------------------------


def test_big_uploads_are_multipart_and_keep_their_content_type(s3_prefix: str, s3_client: Any, tmp_path: Path) -> None:
    store = S3Store(StoreAddress.parse(s3_prefix))
    (tmp_path / "big").write_bytes(bytes(40 * 1024 * 1024))
    (tmp_path / "small").write_bytes(bytes(1024))
    for name in ("big", "small"):
        store.upload(name, tmp_path / name, content_type="application/x-sqlite3")
    bucket = s3_prefix.split("/")[2]
    heads = {name: s3_client.head_object(Bucket=bucket, Key=f"snap/{name}") for name in ("big", "small")}
    assert heads["big"]["ETag"].endswith('-3"')
    assert "-" not in heads["small"]["ETag"]
    assert {head["ContentType"] for head in heads.values()} == {"application/x-sqlite3"}
    store.create("pointer", b"{}", content_type="application/json")
    assert s3_client.head_object(Bucket=bucket, Key="snap/pointer")["ContentType"] == "application/json"


def test_a_failed_multipart_upload_is_aborted(s3_prefix: str, s3_client: Any, tmp_path: Path) -> None:
    """The file vanishes while it is uploaded: the error is ours, and no parts are left to be paid for."""
    store = S3Store(StoreAddress.parse(s3_prefix))
    file = tmp_path / "vanishing"
    file.write_bytes(bytes(20 * 1024 * 1024))
    bucket = s3_prefix.split("/")[2]

    def vanish(**_: object) -> None:
        file.unlink(missing_ok=True)

    events = client_of(StoreAddress.parse(s3_prefix)).meta.events
    events.register("before-send.s3.CreateMultipartUpload", vanish)
    try:
        with pytest.raises(StorageError, match="vanishing"):
            store.upload("big", file, content_type=TEXT)
    finally:
        events.unregister("before-send.s3.CreateMultipartUpload", vanish)
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=bucket)
    assert store.head("big") is None


def test_folder_markers_are_not_listed(s3_prefix: str, s3_client: Any) -> None:
    for key in ("snap/", "snap/runs/", "snap/runs/a"):
        s3_client.put_object(Bucket=s3_prefix.split("/")[2], Key=key, Body=b"")
    assert [info.name for info in S3Store(StoreAddress.parse(s3_prefix)).list()] == ["runs/a"]


def test_listing_goes_on_to_the_next_page(s3_prefix: str, s3_client: Any) -> None:
    bucket, names = s3_prefix.split("/")[2], [f"{i:03d}" for i in range(130)]
    for name in names:
        s3_client.put_object(Bucket=bucket, Key=f"snap/{name}", Body=b"")
    assert s3_client.list_objects_v2(Bucket=bucket)["IsTruncated"]
    assert [info.name for info in S3Store(StoreAddress.parse(s3_prefix)).list()] == names


def test_deletions_go_by_the_thousand(fake: FakeS3) -> None:
    fake.replies = [(200, "<DeleteResult></DeleteResult>")]
    fake.store().delete(str(i) for i in range(2_001))
    assert [(method, path) for method, path, _ in fake.requests] == [("POST", "/bucket?delete")] * 3


@pytest.mark.parametrize("status", [400, 501])
def test_deleting_one_by_one_where_bulk_requests_are_not_taken(fake: FakeS3, status: int) -> None:
    fake.fails(status, "MissingContentMD5")
    fake.replies.append((204, ""))
    fake.store().delete(["a", "b"])
    assert [request[0] for request in fake.requests] == ["POST", "DELETE", "DELETE"]


def test_errors_inside_a_bulk_reply_are_raised(fake: FakeS3) -> None:
    for code, error in {"AccessDenied": StoreAccessError, "InternalError": StoreUnavailableError}.items():
        fake.replies = [(200, f"<DeleteResult><Error><Key>snap/b</Key><Code>{code}</Code></Error></DeleteResult>")]
        with pytest.raises(error, match="s3://bucket/snap/b"):
            fake.store().delete(["a", "b"])


# -- errors -----------------------------------------------------------------------------------------------------------


def test_a_missing_bucket_is_not_an_empty_one(s3: str, tmp_path: Path) -> None:
    store = S3Store(StoreAddress.parse("s3://no-such-bucket-here/snap"))
    (tmp_path / "file").write_bytes(b"x")
    for action in (
        lambda: store.get("a"),
        lambda: store.head("a"),
        lambda: list(store.list()),
        lambda: store.create("a", b"", content_type=TEXT),
        lambda: store.upload("a", tmp_path / "file", content_type=TEXT),
        lambda: store.download("a", tmp_path / "copy"),
        lambda: store.delete(["a"]),
    ):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket-here/snap.* bucket does not exist") as caught:
            action()
        assert not isinstance(caught.value, ObjectNotFoundError)


def test_the_bucket_is_looked_for_once(fake: FakeS3) -> None:
    fake.replies = [(404, ""), (200, ""), (404, "")]
    store = fake.store()
    assert [store.head("a"), store.head("b")] == [None, None]
    assert [path for _, path, _ in fake.requests] == ["/bucket/snap/a", "/bucket", "/bucket/snap/b"]


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, "Unauthorized", StoreAccessError),
        (403, "AccessDenied", StoreAccessError),
        (400, "ExpiredToken", StoreAccessError),
        (404, "NoSuchKey", ObjectNotFoundError),
        (409, "ConditionalRequestConflict", StoreUnavailableError),
        (412, "PreconditionFailed", ObjectExistsError),
        (400, "RequestTimeout", StoreUnavailableError),
        (429, "TooManyRequests", StoreUnavailableError),
        (500, "InternalError", StoreUnavailableError),
        (503, "SlowDown", StoreUnavailableError),
        (501, "NotImplemented", UnsafeStoreError),
        (400, "InvalidArgument", StorageError),
    ],
)
def test_replies_of_the_store_become_our_errors(
    fake: FakeS3, status: int, code: str, error: type[StorageError]
) -> None:
    fake.fails(status, code)
    for write in (
        lambda: fake.store().create("commits/1", b"", content_type=TEXT),
        lambda: fake.store().replace("commits/1", b"", etag='"e"', content_type=TEXT),
    ):
        with pytest.raises(error, match=r"s3://bucket/snap/commits/1.*said the store") as caught:
            write()
        assert type(caught.value) is error
        assert caught.value.__cause__ is not None


def test_conditions_are_sent_as_headers(fake: FakeS3) -> None:
    store = fake.store()
    etag = store.create("a", b"", content_type=TEXT)
    store.replace("a", b"", etag=etag, content_type=TEXT)
    created, replaced = (headers for _, _, headers in fake.requests)
    assert (created["if-none-match"], created["content-type"]) == ("*", TEXT)
    assert replaced["if-match"] == etag == '"e"'


def test_the_number_of_attempts_is_ours(fake: FakeS3) -> None:
    fake.fails(503, "SlowDown")
    with pytest.raises(StoreUnavailableError):
        fake.store(max_attempts=2).get("a")
    assert len(fake.requests) == 2


def test_an_upload_that_is_refused(fake: FakeS3, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    fake.fails(403, "AccessDenied")
    with pytest.raises(StoreAccessError, match="s3://bucket/snap/a"):
        fake.store().upload("a", tmp_path / "file", content_type=TEXT)


def test_a_reply_that_breaks_off_is_told_with_its_cause(fake: FakeS3, tmp_path: Path) -> None:
    fake.replies, fake.cut_short = [(200, "half")], True
    with pytest.raises(StoreUnavailableError, match="s3://bucket/snap/a"):
        fake.store().get("a")
    fake.requests.clear()
    with pytest.raises(StoreUnavailableError, match=r"s3://bucket/snap/a.*IncompleteRead"):
        fake.store().download("a", tmp_path / "a")
    assert [method for method, _, _ in fake.requests] == ["GET", "GET"]


def test_a_dead_endpoint_is_named(tmp_path: Path) -> None:
    store = S3Store(
        StoreAddress.parse(
            "s3://bucket/snap",
            credential_provider=STATIC,
            options={"endpoint_url": "http://127.0.0.1:9", "max_attempts": 1, "connect_timeout": 0.5},
        )
    )
    (tmp_path / "file").write_bytes(b"x")
    for action in (
        lambda: store.get("a"),
        lambda: store.create("a", b"", content_type=TEXT),
        lambda: list(store.list("a")),
        lambda: store.upload("a", tmp_path / "file", content_type=TEXT),
        lambda: store.download("a", tmp_path / "copy"),
    ):
        with pytest.raises(StoreUnavailableError, match=r"s3://bucket/snap/a.*http://127\.0\.0\.1:9/"):
            action()


def test_a_silent_server_times_out(fake: FakeS3, tmp_path: Path) -> None:
    release, asked = threading.Event(), itertools.count()

    def keep_silent(_: object) -> None:
        next(asked)
        release.wait(10)

    fake.RequestHandlerClass.handle = keep_silent
    try:
        store = fake.store(read_timeout=0.2)
        with pytest.raises(StoreUnavailableError, match="s3://bucket/snap/a"):
            store.get("a")
        with pytest.raises(StoreUnavailableError, match=rf"s3://bucket/snap/a: .*Read ?[Tt]imeout.*{fake.url}"):
            store.download("a", tmp_path / "copy")
        assert next(asked) == 3
    finally:
        release.set()
        del fake.RequestHandlerClass.handle
