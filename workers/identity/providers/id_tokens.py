"""ID tokens: who the provider says has signed in (OpenID Connect Core 1.0 §3.1.3.7).

Invariants: a token counts only with a signature by a key of the provider, with one of four
asymmetric algorithms, for this client, of this sign-in (nonce), and within its time. The reasons of
`IdTokenInvalid` name the claim and never a value. Called by `workers.identity.providers.client`.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning

from workers.identity.providers.key_sets import ALGORITHMS, Key

_LEEWAY_S: Final = 60
_TOKEN_CHARS: Final = 65_536
_SUBJECT_CHARS: Final = 255

# joserfc warns of each EdDSA token, since RFC 9864 prefers the name Ed25519. Providers sign so.
warnings.filterwarnings("ignore", "EdDSA is deprecated", SecurityWarning)

FindKey = Callable[[str | None, str], Key | None]
Claims = dict[str, Any]


class IdTokenInvalid(Exception):
    """An ID token failed a check. The text is for the log."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a token must say.

    `issuer` returns the issuer for the claims (Microsoft's depends on the tenant); `client_ids` are
    the audiences; `nonce` None: the sign-in had none (native apps).
    """

    issuer: Callable[[Claims], str | None]
    client_ids: tuple[str, ...]
    nonce: str | None = field(repr=False)


def verify_id_token(token: str, expected: Expected, find_key: FindKey, now_s: float) -> Claims:
    """Check an ID token, and return its claims.

    Args:
        find_key: returns the key of a key id and an algorithm; None: there is none.
        now_s: seconds since the Unix epoch.

    Raises:
        IdTokenInvalid: a check failed.
        FetchFailed: the keys cannot be loaded; `find_key` raised it.
    """
    claims = _verify_signature(token, find_key)
    issuer = expected.issuer(claims)
    if issuer is None or claims.get("iss") != issuer:
        raise IdTokenInvalid("iss is not the issuer of the provider")
    _check_audience(claims, expected.client_ids)
    _check_times(claims, now_s)
    if expected.nonce is not None:
        nonce = claims.get("nonce")
        if not isinstance(nonce, str) or not hmac.compare_digest(
            nonce.encode(), expected.nonce.encode()
        ):
            raise IdTokenInvalid("nonce is not the one of this sign-in")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= _SUBJECT_CHARS:
        raise IdTokenInvalid("sub is no text of 1 to 255 characters")
    return claims


def check_native_nonce(claims: Claims, nonce: str | None) -> None:
    """Check that a token has the nonce of an app, or the SHA-256 of it, as Apple's tokens do.

    Raises:
        IdTokenInvalid
    """
    found = claims.get("nonce")
    if found is None and nonce is None:
        return
    accepted = [] if nonce is None else [nonce, hashlib.sha256(nonce.encode()).hexdigest()]
    if not isinstance(found, str) or not any(
        hmac.compare_digest(found.encode(), each.encode()) for each in accepted
    ):
        raise IdTokenInvalid("nonce is not the one of the app")


def _verify_signature(token: str, find_key: FindKey) -> Claims:
    if len(token) > _TOKEN_CHARS:
        raise IdTokenInvalid("it is too long")
    try:
        header = jws.extract_compact(token.encode()).headers()
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise IdTokenInvalid("its algorithm is not accepted")
        if kid is not None and not isinstance(kid, str):
            raise IdTokenInvalid("kid is no text")
        key = find_key(kid, algorithm)
        if key is None:
            raise IdTokenInvalid("no key of the provider has its kid and algorithm")
        payload = jws.deserialize_compact(token, key, algorithms=[algorithm]).payload
        claims = msgspec.json.decode(payload or b"")
    except (JoseError, ValueError, RecursionError) as ex:
        raise IdTokenInvalid(f"it is no valid signed token ({type(ex).__name__})") from None
    if not isinstance(claims, dict):
        raise IdTokenInvalid("its claims are no object")
    return claims


def _check_audience(claims: Claims, client_ids: tuple[str, ...]) -> None:
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(each, str) and each in client_ids for each in audiences):
        raise IdTokenInvalid("aud does not name this client")
    party = claims.get("azp")
    if len(audiences) > 1 and party is None:
        raise IdTokenInvalid("it has several audiences and no azp")
    if party is not None and party not in client_ids:
        raise IdTokenInvalid("azp does not name this client")


def _check_times(claims: Claims, now_s: float) -> None:
    for name in ("exp", "iat"):
        if not _is_time(claims.get(name)):
            raise IdTokenInvalid(f"{name} is no time")
    if claims["exp"] <= now_s - _LEEWAY_S:
        raise IdTokenInvalid("it has expired (exp)")
    if claims["iat"] > now_s + _LEEWAY_S:
        raise IdTokenInvalid("it is of the future (iat)")
    if "nbf" in claims and not (
        _is_time(claims["nbf"]) and claims["nbf"] <= now_s + _LEEWAY_S
    ):
        raise IdTokenInvalid("it is not valid yet (nbf)")


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
