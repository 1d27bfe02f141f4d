"""Secrets do not leave: neither by error messages, nor by what is stored or logged of them."""

from __future__ import annotations

import os
import pickle
import secrets
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion import masking
from shardyfusion.credentials import S3Credentials, StaticCredentialProvider
from shardyfusion.errors import ShardyfusionError, StorageError
from shardyfusion.masking import masked
from shardyfusion.storage import S3Store, StoreAddress

SECRET = "kQ9+/Zt7vTqXw3lB"


def with_secret(text: str) -> str:
    """In a URL's password a slash would not stand as it is."""
    return text.replace("SECRET", SECRET).replace("SAFE", SECRET.replace("/", "%2F"))


@pytest.mark.parametrize(
    "text",
    [
        "https://b.s3.amazonaws.com/k?X-Amz-Credential=SECRET%2F20261121&X-Amz-Expires=60&X-Amz-Signature=SECRET",
        "https://b.s3.amazonaws.com/k?AWSAccessKeyId=SECRET&Signature=SECRET&Expires=60",
        "GET /k?x-amz-security-token=SECRET HTTP/1.1",
        "Authorization: AWS4-HMAC-SHA256 Credential=SECRET/us-east-1, SignedHeaders=host, Signature=SECRET",
        "{'Authorization': b'Bearer SECRET', 'Host': 'x'}",
        'headers: {"authorization": "Basic SECRET", "host": "x"}',
        "cannot reach http://me:SAFE@proxy:3128/path",
        "postgresql://me:p@SAFE@db/users",
        "aws_secret_access_key = SECRET",
        "export AWS_ACCESS_KEY_ID=x AWS_SESSION_TOKEN='SECRET'",
        '{"SecretAccessKey": "SECRET", "SessionToken": "SECRET", "Expires": 5}',
        "<AWSAccessKeyId>SECRET</AWSAccessKeyId><Signature>SECRET</Signature>",
        "password: SECRET",
    ],
)
def test_what_looks_like_a_secret_is_cut_out(text: str) -> None:
    shown = masked(with_secret(text))
    assert "Zt7vTqXw3lB" not in shown
    assert "***" in shown
    assert masked(shown) == shown, "masking twice changes nothing more"
    error = ShardyfusionError(with_secret(text), url=with_secret(text))
    for said in (str(error), repr(error), error.message, str(pickle.loads(pickle.dumps(error)))):
        assert "Zt7vTqXw3lB" not in said


@pytest.mark.parametrize(
    "text",
    [
        "cannot read s3://bucket/snap/_CURRENT: there is no such object (HTTP 404 NoSuchKey: )",
        "no AWS credentials found for s3://b/p: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a profile",
        "http://127.0.0.1:9000/a@b, file:///data/me@home/x",
        "user@example.com at 12:30",
        "duplicate keys in shard 3: 2 different, for example 'password', b'signature'",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """What is made up here, such as eight zeros, must not be hidden in the messages of other tests."""
    known = list(masking._in_use)
    yield
    masking._in_use.clear()
    masking._in_use.extend(known)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40), st.text(), st.text())
def test_credentials_that_were_made_are_hidden_wherever_they_occur(secret: str, before: str, after: str) -> None:
    S3Credentials(access_key_id="AKIA", secret_access_key=secret, session_token=None)
    shown = masked(f"{before}{secret}{after}")
    assert secret not in shown or secret in "***"
    assert secret not in masked(f"https://x/?t={quote(secret, safe='')}") or secret in quote(secret, safe="")[:0]


def test_the_environment_s_secrets_are_hidden_as_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        value = secrets.token_urlsafe(24)
        assert value in masked(f"the store said {value}")
        monkeypatch.setenv(name, value)
        assert masked(f"the store said {value}") == "the store said ***"


def test_short_values_are_words_and_stay() -> None:
    S3Credentials(access_key_id="key", secret_access_key="secret", session_token="")
    assert masked("a secret of the store") == "a secret of the store"


def test_a_failed_request_tells_no_secret(s3_prefix: str, s3_client) -> None:
    """A refused request, a missing bucket, and a refused connection: with the environment's keys and with given ones."""
    secret, token = secrets.token_urlsafe(30), secrets.token_urlsafe(90)
    given_ones = StaticCredentialProvider("AKIAEXPLICIT", secret, token)
    for prefix, options in (
        ("s3://no-such-bucket-here/x", {"max_attempts": 1}),
        (s3_prefix, {"max_attempts": 1, "endpoint_url": "http://127.0.0.1:9"}),
    ):
        for provider in (None, given_ones):
            store = S3Store(StoreAddress.parse(prefix, credential_provider=provider, options=options))
            for act in (
                lambda store=store: store.get("a"),
                lambda store=store: store.create("a", b"", content_type="text/plain"),
                lambda store=store: list(store.list()),
                lambda store=store: list(store.pending_uploads()),
            ):
                with pytest.raises(StorageError) as caught:
                    act()
                said = f"{caught.value!r} {caught.value}"
                assert prefix in said
                for hidden in (secret, token, os.environ["AWS_SECRET_ACCESS_KEY"]):
                    assert hidden not in said
