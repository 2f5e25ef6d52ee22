"""Tokens: how they are made, how they travel, how they are compared and what is stored.

A session token is `pylon_` and 64 hex characters (spec/http.md §4.2). Only its SHA-256 ever
reaches the database, the bus or a log: whoever reads those cannot sign in with what they find.
A plain hash is enough, since the token is 256 random bits and cannot be guessed.

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
_BEARER: Final = "bearer"


class CookieToken(str):
    """A token that a cookie carried. A browser sends cookies by itself, so such a token stands
    for a session and never for the admin."""

    __slots__ = ()


def new_session_token(random: RandomSource) -> str:
    """A fresh session token: `pylon_` and 64 hex characters."""
    return _PREFIX + random.token_hex(32)


def is_session_token(token: str) -> bool:
    """Whether the text has the form of a session token, so that a look-up is worth it."""
    return _FORM.fullmatch(token) is not None


def session_id_of(token: str) -> str:
    """What a token is stored and known as: its SHA-256, 64 hex characters."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def bearer_token(authorization: str | None) -> str | None:
    """The token of an `Authorization: Bearer …` header.

    Returns None where there is no such header or its scheme is another one; the empty string
    where the header is there and holds nothing, which must not fall back to a cookie (§4.1).
    """
    if authorization is None:
        return None
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == _BEARER else None


def same_token(given: str, expected: str | None) -> bool:
    """Whether the tokens are equal, in a time that says nothing about where they differ.

    An `expected` that is absent or empty equals nothing.
    """
    if not expected:
        return False
    return hmac.compare_digest(
        given.encode("utf-8", "surrogateescape"), expected.encode("utf-8", "surrogateescape")
    )
