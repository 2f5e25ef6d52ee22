"""JWTs: minting, and the checks of a token that need no store (spec/identity.md §1.8).

There are two kinds, and the algorithm of the header decides which: HS256 by PYLON_JWT_SECRET, of
this server or of a backend that shares the secret; RS256 and ES256 by the keys of the foreign
issuer that the claim `iss` names (`pylon.auth.jwt_issuers`). A secret verifies HS256 only, and a
public key never does, so no token is verified by a key of the other kind. During a change of the
secret, PYLON_JWT_SECRET_PREVIOUS verifies too, and the header of new tokens names their secret
(`kid`).

Invariants: the keys of the issuer are fetched by `providers.fetch` (https, public addresses only,
bounded), kept for an hour, and fetched again for an unknown `kid` at most once a minute. Nothing in
a header chooses a URL or a key of another place. No reason of a refusal leaves this module but to
the log, and no token at all. Called by the flows of JWTs; one for each process.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from pylon import limits
from pylon.auth.jwt_issuers import read_issuers
from pylon.auth.jwts import (
    READONLY,
    ROLES,
    SCOPES,
    TENANT,
    JwtClaims,
    invalid_jwt,
    may_be_subject,
)
from pylon.clock import Clock
from pylon.config import Config
from pylon.errors import Unavailable
from workers.identity.providers.documents import CachedDocument
from workers.identity.providers.fetch import Fetcher, FetchFailed
from workers.identity.providers.key_sets import KeySet, load_key_set

_OWN: Final = "HS256"
_FOREIGN: Final = ("RS256", "ES256")
_KID_CHARS: Final = 16
_SUBJECT_CHARS: Final = 200
_ROLES: Final = 32
_ROLE_CHARS: Final = 64
_LEEWAY_S: Final = 60  # of the clocks of two machines
_LATEST_S: Final = 2 ** 53

Claims = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Secret:
    kid: str
    key: OctKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Issuer:
    """A foreign issuer."""

    name: str
    audiences: tuple[str, ...]
    keys: CachedDocument[KeySet]


@dataclass(frozen=True, slots=True)
class Jwts:
    """The keys of this server's JWTs and of the foreign issuers."""

    issuer: str
    lifetime_s: int
    secrets: tuple[_Secret, ...]  # the newest first; none: this server mints none
    foreign: Mapping[str, _Issuer]  # by name

    @property
    def can_mint(self) -> bool:
        """Return whether this server has a secret."""
        return bool(self.secrets)

    def mint(self, claims: Claims) -> str:
        """Return a token with these claims, and the issuer."""
        secret = self.secrets[0]
        header = {"alg": _OWN, "typ": "JWT"}
        if len(self.secrets) > 1:
            header["kid"] = secret.kid
        payload = msgspec.json.encode({"iss": self.issuer, **claims})
        return jws.serialize_compact(header, payload, secret.key, algorithms=[_OWN])

    def verify(self, token: str, now_s: float) -> JwtClaims:
        """Return what a token says.

        Raises:
            InvalidJwt: a check has failed.
            Unavailable: the keys of the issuer cannot be fetched.
        """
        if len(token) > limits.JWT_CHARS:
            raise invalid_jwt()
        try:
            header = jws.extract_compact(token.encode()).headers()
            algorithm, kid = header.get("alg"), header.get("kid")
            if kid is not None and not isinstance(kid, str):
                raise invalid_jwt()
            is_own = algorithm == _OWN
            issuer = None if is_own else self._issuer_of(token)
            payload = (
                self._own_payload(token, kid) if issuer is None
                else _foreign_payload(issuer, token, kid, algorithm)
            )
            claims = msgspec.json.decode(payload, type=dict[str, Any])
        except (JoseError, ValueError, RecursionError):
            raise invalid_jwt() from None
        self._check_issuer(claims, issuer)
        return _read_claims(claims, now_s, is_own=is_own)

    def _own_payload(self, token: str, kid: str | None) -> bytes:
        for secret in self.secrets:
            if kid is not None and not hmac.compare_digest(kid.encode(), secret.kid.encode()):
                continue
            try:
                return jws.deserialize_compact(token, secret.key, algorithms=[_OWN]).payload or b""
            except JoseError:
                continue
        raise invalid_jwt()

    def _issuer_of(self, token: str) -> _Issuer:
        """Return the issuer whose keys must verify a token: the one that it names itself. A false
        name only chooses keys that do not verify it."""
        unverified = jws.extract_compact(token.encode()).payload or b""
        name = msgspec.json.decode(unverified, type=dict[str, Any]).get("iss")
        issuer = self.foreign.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise invalid_jwt()
        return issuer

    def _check_issuer(self, claims: Claims, issuer: _Issuer | None) -> None:
        if issuer is None:
            # This server names no audience: a token with one is meant for somebody else.
            if claims.get("iss") != self.issuer or "aud" in claims:
                raise invalid_jwt()
            return
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != issuer.name or not any(
            isinstance(each, str) and each in issuer.audiences for each in audiences
        ):
            raise invalid_jwt()


def make_jwts(config: Config, clock: Clock, fetcher: Fetcher | None = None) -> Jwts:
    """Return the keys that the settings name."""
    secrets = [each for each in (config.jwt_secret, config.jwt_secret_previous) if each]
    foreign = {}
    for issuer in read_issuers(config):
        load = partial(
            load_key_set, issuer.jwks_url, fetcher or Fetcher(allows_private=config.dev_mode)
        )
        foreign[issuer.name] = _Issuer(
            issuer.name, issuer.audiences, CachedDocument(load, clock)
        )
    return Jwts(
        config.jwt_issuer, config.jwt_lifetime_s, tuple(_secret(each) for each in secrets), foreign
    )


def _foreign_payload(
    issuer: _Issuer, token: str, kid: str | None, algorithm: object
) -> bytes:
    if algorithm not in _FOREIGN:
        raise invalid_jwt()
    try:
        key = issuer.keys.get().find(kid, str(algorithm))
        if key is None and kid is not None:
            key = issuer.keys.get_newer().find(kid, str(algorithm))
    except FetchFailed:
        raise Unavailable(
            "The keys of the issuer of JWTs cannot be fetched", hint="Try again in a moment"
        ) from None
    if key is None:
        raise invalid_jwt()
    return jws.deserialize_compact(token, key, algorithms=[str(algorithm)]).payload or b""


def _secret(text: str) -> _Secret:
    kid = hmac.new(text.encode(), b"pylon jwt kid", hashlib.sha256).hexdigest()[:_KID_CHARS]
    return _Secret(kid, OctKey.import_key(text.encode()))


def _read_claims(claims: Claims, now_s: float, *, is_own: bool) -> JwtClaims:
    """Return the claims that count.

    Raises:
        InvalidJwt: one is missing, of another type, or not of now.
    """
    issued_at, ends_at = _time_of(claims, "iat"), _time_of(claims, "exp")
    if ends_at <= now_s or issued_at > now_s + _LEEWAY_S or ends_at > _LATEST_S:
        raise invalid_jwt()
    if "nbf" in claims and _time_of(claims, "nbf") > now_s + _LEEWAY_S:
        raise invalid_jwt()
    user_id = claims.get("sub")
    if not _is_text(user_id, _SUBJECT_CHARS) or not may_be_subject(str(user_id)):
        raise invalid_jwt()
    tenant, roles = claims.get(TENANT), claims.get(ROLES, [])
    scopes, readonly = claims.get(SCOPES), claims.get(READONLY, False)
    if (
        (tenant is not None and not _is_text(tenant, _SUBJECT_CHARS))
        or not isinstance(roles, list) or len(roles) > _ROLES
        or not all(_is_text(role, _ROLE_CHARS) for role in roles)
        or (scopes is not None and not _is_text(scopes, limits.KEY_SCOPES_CHARS))
        or not isinstance(readonly, bool)
    ):
        raise invalid_jwt()
    return JwtClaims(
        user_id=str(user_id), issued_at_s=math.floor(issued_at), ends_at_s=math.floor(ends_at),
        is_own=is_own, tenant_id=tenant, roles=tuple(roles), scopes=scopes, readonly=readonly,
    )


def _time_of(claims: Claims, name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise invalid_jwt()
    if value < 0:
        raise invalid_jwt()
    return float(value)


def _is_text(value: object, most_chars: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most_chars and value.isprintable()
