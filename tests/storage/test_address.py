"""What `s3_prefix` may be, and what becomes of it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from shardyfusion.credentials import StaticCredentialProvider
from shardyfusion.errors import ConfigValidationError
from shardyfusion.storage import LocalStore, MemoryStore, StoreAddress, open_store


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/snap", "s3://bucket/snap"),
        ("s3://bucket/a/b=1/%41//", "s3://bucket/a/b=1/%41"),
        ("file:///data/users/", "file:///data/users"),
        ("file://localhost/data/users", "file:///data/users"),
        ("file:////data/x/../a%20b", "file:///data/a b"),
        ("/data//users/", "file:///data/users"),
        ("memory://test/", "memory://test"),
        ("memory://test/a/b", "memory://test/a/b"),
    ],
)
def test_prefixes_are_normalised(given: str, url: str) -> None:
    assert StoreAddress.parse(given).url == url
    assert StoreAddress.parse(url).url == url


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert StoreAddress.parse("out/users").url == f"file://{tmp_path}/out/users"
    assert StoreAddress.parse(Path("out")).url == f"file://{tmp_path}/out"
    assert StoreAddress.parse("~/users").url == "file:///home/ada/users"
    assert StoreAddress.parse("out").path == tmp_path / "out"
    assert StoreAddress.parse("~no-such-user/out").url == f"file://{tmp_path}/~no-such-user/out"


@pytest.mark.parametrize("given", [None, b"/data/users", 5])
def test_what_is_no_text_is_refused(given: object) -> None:
    with pytest.raises(ConfigValidationError, match="must be a string or a path"):
        StoreAddress.parse(given)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("gs://bucket/x", "'gs'"),
        ("https://bucket/x", "'https'"),
        ("s3:/bucket/x", "lacks slashes"),
        ("s3://bucket", "needs a prefix"),
        ("s3://bucket/", "needs a prefix"),
        ("s3:///snap", "names no bucket"),
        ("s3://a b/snap", "no bucket name"),
        ("s3://bucket/a//b", "empty segments"),
        ("s3://bucket/a/../b", "'..'"),
        ("s3://bucket/a?b", "'?'"),
        ("s3://bucket/a#b", "'#'"),
        ("s3://bucket/a\nb", "control characters"),
        ("file://data/users", "three slashes"),
        ("file:///a?b", "'?'"),
        ("/a?b", "'?'"),
        ("/a%20b", "%-escapes"),
        ("file:///", "root of the file system"),
        ("/", "root of the file system"),
        ("memory://", "names no bucket"),
    ],
)
def test_other_prefixes_are_refused_with_a_hint(given: str, hint: str) -> None:
    with pytest.raises(ConfigValidationError) as caught:
        StoreAddress.parse(given)
    assert hint in str(caught.value)


def test_parts_of_an_address() -> None:
    address = StoreAddress.parse("s3://bucket/snaps/users")
    assert (address.kind, address.bucket, address.key_prefix) == ("s3", "bucket", "snaps/users")
    assert address.at("s3://bucket/other").key_prefix == "other"


def test_an_address_opens_its_kind_of_store(tmp_path: Path) -> None:
    local = open_store(StoreAddress.parse(tmp_path))
    assert isinstance(local, LocalStore)
    assert local.url == f"file://{tmp_path}"
    assert isinstance(open_store(StoreAddress.parse("memory://opened")), MemoryStore)


def test_an_address_travels_and_keeps_its_secrets_to_itself() -> None:
    provider = StaticCredentialProvider("AKIA", "top-secret", "secret-token")
    address = StoreAddress.parse("s3://bucket/snap", credential_provider=provider, options={"max_attempts": 2})
    assert pickle.loads(pickle.dumps(address)) == address
    for shown in (repr(address), repr(provider), repr(provider.resolve())):
        assert "top-secret" not in shown
        assert "secret-token" not in shown


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "http://x"},
        {"endpoint_url": "127.0.0.1:9000"},
        {"endpoint_url": "http://user:hidden@host"},
        {"endpoint_url": "user:hidden@host:9000"},
        {"endpoint_url": "http://[x"},
        {"endpoint_url": "http://host:port"},
        {"endpoint_url": "http://host:99999"},
        {"endpoint_url": 5},
        {"region_name": 5},
        {"verify_ssl": []},
        {"verify_ssl": ""},
        {"read_timeout": 0},
        {"read_timeout": "5"},
        {"connect_timeout": float("inf")},
        {"connect_timeout": float("nan")},
        {"max_attempts": 1.5},
        {"max_attempts": True},
        {"addressing_style": "dns"},
        {"addressing_style": []},
        {5: 5},
        "endpoint_url",
    ],
)
def test_wrong_connection_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigValidationError) as caught:
        StoreAddress.parse("s3://bucket/snap", options=options)
    assert "hidden" not in str(caught.value)


def test_an_option_of_none_is_not_set() -> None:
    address = StoreAddress.parse("s3://bucket/snap", options={"endpoint_url": None, "max_attempts": 2})
    assert address.options == {"max_attempts": 2}
