"""Verified JWTs: remembers what the identity process has found in a token, for each worker.

A signature does not change, so a token that was verified once need not be verified again. What may
change is read with each look-up of the caller (`pylon.auth.jwts.caller_of_jwt`): its end, whether
its user is locked, and from when on the user's tokens count. Keys change too: a key that its issuer
has withdrawn verifies no longer than `limits.JWT_CLAIMS_S` after the last fetch.

Invariants: only a token that verifies is kept, and by its SHA-256, so the cache holds no token.
Bound: `limits.JWT_CLAIMS_ENTRIES` entries. The cache is cleared when it is full, and on the first
look-up after the oldest entry has expired. Called by `session_cache`; one for each process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from pylon import limits
from pylon.auth.jwts import JwtClaims
from pylon.clock import Clock


class VerifiedJwts:
    """The cache of one process."""

    __slots__ = ("_clock", "_known", "_stale_s", "_verify")

    def __init__(self, verify: Callable[[str], JwtClaims], clock: Clock) -> None:
        """Args: `verify` has the identity process check a token; it may switch greenlets."""
        self._verify = verify
        self._clock = clock
        self._known: dict[bytes, JwtClaims] = {}
        self._stale_s = 0.0  # monotonic

    def verify(self, token: str) -> JwtClaims:
        """Return what a token says. Its end has not been checked now.

        Raises:
            InvalidJwt: a check has failed.
            Unavailable: it cannot be checked now.
        """
        # PERF: 1 us for a token of 400 characters; a call of the identity process costs 1 ms.
        key = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        now_s = self._clock.monotonic_s()
        if now_s >= self._stale_s:
            self._known.clear()
            self._stale_s = now_s + limits.JWT_CLAIMS_S
        claims = self._known.get(key)
        if claims is not None:
            return claims
        claims = self._verify(token)
        if len(self._known) >= limits.JWT_CLAIMS_ENTRIES:
            self._known.clear()
        self._known[key] = claims
        return claims
