"""What must not be shown: secrets are cut out of every text that this library shows, logs or stores.

Messages of other libraries and of stores end up in our errors, and nobody knows what they hold. Every
`ShardyfusionError` passes through here, so whatever is made of one is clean.
"""

from __future__ import annotations

import os
import re
from collections import deque
from urllib.parse import quote

HIDDEN = "***"

_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_SHORTEST = 8
"""Shorter values are words: to hide each of their occurrences would only spoil the text."""

_in_use: deque[str] = deque(maxlen=64)
"""Secrets that this process has been given. (Appending and copying are atomic.)"""

_NAMES = (
    r"x-amz-signature|x-amz-credential|x-amz-security-token|awsaccesskeyid|signature|credential"
    r"|(?:aws_?)?secret_?access_?key|(?:aws_?)?session_?token|(?:aws_?)?security_?token|password"
)
_RULES = (
    # A whole header, up to the end of the line or of the quotes around it.
    (re.compile(r"""(\bauthorization["']?\s*[:=]\s*b?["']?)[^"'\r\n]+""", re.IGNORECASE), rf"\1{HIDDEN}"),
    # name=value and name: value, as in presigned URLs, configuration files and dumps of dicts.
    (
        re.compile(rf"""((?<![a-z0-9])(?:{_NAMES})(?:["']?\s*[:=]\s*b?["']?|%3d))[^\s"'&;,<>)\]}}]+""", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (re.compile(rf"(<(?:{_NAMES})>)[^<]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    # user:password@ in a URL; a raw @ in the password belongs to it.
    (re.compile(r"(://[^\s/:@]*:)[^\s/]+(?=@)"), rf"\1{HIDDEN}"),
)


def remember_secret(value: object) -> None:
    """From now on `masked` hides this text wherever it occurs; the latest 64 are kept."""
    if isinstance(value, str) and len(value) >= _SHORTEST and value not in _in_use:
        _in_use.append(value)


def masked(text: str) -> str:
    """`text` without the secrets in it: those of AWS' variables, those remembered, and what looks like one."""
    for secret in (*tuple(_in_use), *(os.environ.get(name, "") for name in _ENVIRONMENT)):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN).replace(quote(secret, safe=""), HIDDEN)
    for pattern, shown in _RULES:
        text = pattern.sub(shown, text)
    return text
