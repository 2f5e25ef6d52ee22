"""Tokens: their form, their hash, their comparison, and the header that carries them.

A session token is `pylon_` and 64 hex characters (spec/http.md §4.2). The database, the bus and the
log get its SHA-256 only, so a reader of those cannot sign in. A hash without salt suffices, because
the token has 256 random bits.

`UnprivilegedToken` marks the tokens that browsers send unasked or that logs contain. Credentials of
other kinds (API keys `pk.…`, JWTs `ey…`) count in the Authorization header only, and a bad one is a
401 there: a client with a revoked key must not go on as nobody.

Called by `sessions`, by the API and by the handshakes of the socket workers.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from pylon.clock import RandomSource

_PREFIX: Final = "pylon_"
_FORM: Final = re.compile(r"pylon_[0-9a-f]{64}")
_HINT_CHARS: Final = 8
_BEARER: Final = "bearer"
_JWT: Final = re.compile(r"ey[^.]*\.[^.]*\.[^.]*")


class UnprivilegedToken(str):
    """A token from a cookie, a URL or a message, which never gives admin rights.

    Browsers send cookies unasked, and URLs get into logs and histories.
    """

    __slots__ = ()


def new_session_token(random: RandomSource) -> str:
    """Return a new session token: `pylon_` and 64 hex characters."""
    return _PREFIX + random.token_hex(32)


def token_hint(token: str) -> str:
    """Return the first characters of a token, which lists of sessions show."""
    return token[:_HINT_CHARS]


def is_session_token(token: str) -> bool:
    """Whether the text has the form of a session token; other texts need no look-up."""
    return _FORM.fullmatch(token) is not None


def session_id_of(token: str) -> str:
    """Return the session id of a token: its SHA-256 as 64 hex characters."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def bearer_token(authorization: str | None) -> str | None:
    """Return the token of an `Authorization: Bearer …` header.

    Returns:
        None without the header, or if it has another scheme. An empty string for an empty token,
        which must not fall back to a cookie (§4.1).
    """
    if authorization is None:
        return None
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == _BEARER else None


def is_jwt(token: str) -> bool:
    """Whether a token has the form of a JWT."""
    return _JWT.fullmatch(token) is not None


def same_token(given: str, expected: str | None) -> bool:
    """Whether the tokens are equal, compared in constant time.

    An absent or empty `expected` equals no token.
    """
    if not expected:
        return False
    return hmac.compare_digest(
        given.encode("utf-8", "surrogateescape"), expected.encode("utf-8", "surrogateescape")
    )
