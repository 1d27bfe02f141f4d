"""JSON with a digest of itself: no bit can change what is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyfusion.serde.checked_json import decode_checked, encode_checked

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
FIELDS = st.dictionaries(st.text().filter(lambda name: name != "sha256"), VALUES | st.lists(VALUES), max_size=5)


@given(FIELDS)
def test_what_is_encoded_is_decoded(fields):
    assert decode_checked(encode_checked(fields), required=True) == fields


def test_one_changed_bit_changes_nothing_or_is_an_error():
    fields = {"seq": 12, "ref": "file:///é/run-1", "at": 1.5, "list": [None, True], "none": None}
    body = encode_checked(fields)
    for bit in range(8 * len(body)):
        changed = bytearray(body)
        changed[bit // 8] ^= 1 << (bit % 8)
        try:
            found = decode_checked(bytes(changed), required=True)
        except (ValueError, TypeError):  # UnicodeDecodeError is one, and what is no object is the other
            continue
        assert found == fields, f"bit {bit}"


def test_without_a_digest():
    body = json.dumps({"seq": 1}).encode()
    assert decode_checked(body) == {"seq": 1}
    with pytest.raises(ValueError, match="no sha256"):
        decode_checked(body, required=True)
    with pytest.raises(ValueError, match="damaged"):
        decode_checked(b'{"seq":1,"sha256":"0"}')
