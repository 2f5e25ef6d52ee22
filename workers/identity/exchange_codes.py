"""Exchange codes: what a native app gets from a sign-in with a provider, in place of a session.

Other apps of the device may register the same scheme, so a redirect to a native app carries no
session. It carries a code that is good once, for a minute, and only with the verifier whose SHA-256
the app has sent at the start (PKCE, RFC 7636). The app exchanges it for the session itself, and so
it also gets the question for a second factor.

Invariants: the record of a code (purpose `oauth_code` of `tokens`, by its hash) holds what the
provider has confirmed sealed. A wrong verifier uses the code up. Called by the flows of providers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Final

import msgspec

from pylon import limits
from pylon.auth.keys import hash_token
from pylon.auth.transactions import carry_out
from pylon.errors import InvalidCode, InvalidQuery, RecordConflict, SealBroken
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from workers.identity.identity import Identity
from workers.identity.providers.profiles import Profile
from workers.identity.providers.token_endpoint import Tokens
from workers.identity.trusted_devices import random_token

_PURPOSE: Final = "oauth_code"
_PREFIX: Final = "exc_"
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_\-]{43}", re.ASCII)
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~\-]{43,128}", re.ASCII)


class _Kept(msgspec.Struct, frozen=True):
    """What a code stands for."""

    challenge: str
    profile: Profile
    tokens: Tokens | None


def check_challenge(challenge: str) -> str:
    """Return the challenge that an app has sent at the start.

    Raises:
        InvalidQuery: it is no SHA-256 in base64url.
    """
    if _CHALLENGE.fullmatch(challenge) is None:
        raise InvalidQuery(
            '"challenge" is no SHA-256 in base64url of 43 characters',
            hint="Send BASE64URL(SHA256(verifier)) without padding (RFC 7636, S256)",
        )
    return challenge


def make_code(
    identity: Identity, challenge: str, profile: Profile, tokens: Tokens | None
) -> str:
    """Store what the provider has confirmed, and return its code.

    Args:
        tokens: those to keep for the user, if any.
    """
    code = _PREFIX + random_token(identity)
    now_s, hashed = identity.now_s(), hash_token(code)
    kept = msgspec.json.encode(_Kept(challenge, profile, tokens))
    carry_out(identity.writer.submit, [PutRecord("tokens", {
        "hash": hashed, "purpose": _PURPOSE, "attempts": 0, "created_at": now_s,
        "expires_at": now_s + limits.OAUTH_CODE_S,
        "data": identity.keys.seal("tokens", "data", hashed, kept),
    })])
    return code


def take_code(identity: Identity, code: str, verifier: str) -> tuple[Profile, Tokens | None]:
    """Use a code up, and return what it stands for.

    Raises:
        InvalidCode: it is unknown, used or too old, or the verifier is another one.
    """
    hashed, now_s = hash_token(code), identity.now_s()
    is_open = [
        Condition("hash", "=", hashed), Condition("purpose", "=", _PURPOSE),
        Condition("used_at", "null"), Condition("expires_at", ">", now_s),
    ]
    found = identity.store.point(lambda reader: reader.records("tokens", is_open))
    if not found:
        raise _invalid()
    try:
        carry_out(identity.writer.submit, [
            SetRecords("tokens", is_open, {"used_at": now_s, "data": None}, 1)
        ])
        kept = msgspec.json.decode(
            identity.keys.open("tokens", "data", hashed, str(found[0]["data"])), type=_Kept
        )
    except (RecordConflict, SealBroken):  # another request was first, or the key has changed
        raise _invalid() from None
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
    if _VERIFIER.fullmatch(verifier) is None or not hmac.compare_digest(
        digest.rstrip(b"="), kept.challenge.encode()
    ):
        raise _invalid()
    return kept.profile, kept.tokens


def _invalid() -> InvalidCode:
    return InvalidCode(
        "The code is unknown, was used, is too old, or belongs to another verifier",
        hint="Begin the sign-in again",
    )
