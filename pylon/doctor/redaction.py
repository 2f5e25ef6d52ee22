"""Redaction: removes secrets from texts that leave the machine.

`Redaction` knows the values of all secret settings, of the sign-in providers and of the key files,
and removes them wherever they stand, also in URLs and in base64. It also removes what looks like a
secret: tokens, API keys, JWTs, passwords in URLs, private keys, cookies. Called by
`pylonctl support-bundle`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from pylon.config import Loaded
from pylon.data_dir import KEY_FILE
from pylon.settings import SETTINGS

REMOVED: Final = "[removed]"
_SHORTEST_CHARS: Final = 6  # a shorter value would be found in innocent words
_FILE_BYTES: Final = 65_536
_BUCKET_SECRETS: Final = frozenset({
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
})
_LOOKS: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|AGE-SECRET-KEY-1[0-9A-Z]+"
    r"|\bpylon_[0-9a-f]{32,}"  # session tokens
    r"|\bpk\.[A-Za-z0-9._~-]{16,}"  # API keys
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*",  # JWTs
    re.DOTALL,
)
# The group `kept` stays.
_NAMED: Final = re.compile(
    r"(?P<kept>\bBearer\s+|\bBasic\s+|://[^/\s:@\"']*:(?=[^/\s@\"']+@)"
    r"|(?:^|[?&\s\"';,{])[\w.-]*(?:token|secret|passw(?:or)?d|pwd|passphrase|authorization|cookie"
    r"|api_?key|private_?key|credential|code)[\w.-]*[\"']?\s*[=:]\s*[\"']?)"
    r"(?!\[removed\]|\[redacted\]|\*{8}|null\b|true\b|false\b|Bearer\b|Basic\b)"
    r"(?P<value>[^\s\"'&,;}@<>]+)", re.IGNORECASE,
)
_INNOCENT: Final = re.compile(r"[A-Z][A-Z_]+|-?\d{1,3}|[a-z]+")  # error codes, statuses, words


class Redaction:
    """The secrets of one server."""

    def __init__(self, loaded: Loaded) -> None:
        values = {form for secret in _secrets_of(loaded) for form in _forms_of(secret)}
        ordered = sorted(values, key=len, reverse=True)  # a secret may begin with another one
        self._values = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def clean(self, text: str) -> str:
        """Return a text without secrets."""
        if self._values is not None:
            text = self._values.sub(REMOVED, text)
        return _NAMED.sub(_without_value, _LOOKS.sub(REMOVED, text))


def _without_value(match: re.Match[str]) -> str:
    kept, value = match["kept"], match["value"]
    if "code" in kept.lower() and _INNOCENT.fullmatch(value):
        return kept + value
    return kept + REMOVED


def _secrets_of(loaded: Loaded) -> Iterator[str]:
    for setting in SETTINGS:
        value = loaded.raw.get(setting.env)
        if setting.secret and value:
            yield value
            if "://" in value:
                yield from _password_of(value)
    for name, value in loaded.config.bucket_access.items():
        if name in _BUCKET_SECRETS:
            yield value
    for provider in loaded.config.sign_in_providers:
        yield from filter(None, (provider.client_secret, provider.private_key))
    files = [loaded.config.data_dir / KEY_FILE]
    if loaded.config.secret_key_file is not None:
        files.append(Path(loaded.config.secret_key_file))
    for path in files:
        with suppress(OSError), path.open(errors="replace") as file:
            yield from file.read(_FILE_BYTES).split()


def _password_of(url: str) -> Iterator[str]:
    with suppress(ValueError):
        password = urlsplit(url).password
        if password:
            yield password
            yield unquote(password)


def _forms_of(secret: str) -> Iterator[str]:
    """Yield a secret as logs and requests may have it."""
    if len(secret) < _SHORTEST_CHARS:
        return
    yield secret
    yield quote(secret, safe="")
    yield secret.replace("\n", "\\n")
    for line in secret.splitlines():
        if len(line) >= 4 * _SHORTEST_CHARS:
            yield line
    yield base64.b64encode(secret.encode()).decode().rstrip("=")
    with suppress(ValueError):  # a key in hex may be shown in base64, and the other way round
        raw = bytes.fromhex(secret)
        yield base64.b64encode(raw).decode().rstrip("=")
        yield base64.urlsafe_b64encode(raw).decode().rstrip("=")
