"""Flows of JWTs: minting, and the check that other workers ask for (spec/identity.md §1.8).

Invariants: a JWT has no more rights than the session that asks for it, and lasts no longer than
PYLON_JWT_LIFETIME_SECS. Nothing of it is stored; the audit log notes that it was made
(`jwt_mint`). `verify` has no route: HTTP and socket workers call it over the bus.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pylon.api.identity.jwt_bodies import AdminJwtBody, JwtAnswer, MintJwtBody
from pylon.auth.api_keys import may_own_keys
from pylon.auth.audit import audit_step
from pylon.auth.jwts import READONLY, ROLES, SCOPES, TENANT, may_be_subject
from pylon.auth.transactions import carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import AuthRequired, InvalidData, JwtNotConfigured, UserNotFound
from pylon.key_scopes import parse_scopes
from workers.identity.identity import Call, Identity
from workers.identity.sign_in import refuse_locked

_ID_BYTES: Final = 16


def mint(identity: Identity, call: Call) -> IdentityAnswer:
    """Make a JWT of the caller.

    Raises:
        JwtNotConfigured, InvalidScope, InvalidData, LimitExceeded, AccountLocked
        AuthRequired: the caller is a guest.
    """
    auth = call.facts.auth
    if auth.user_id is None or auth.is_guest:
        raise AuthRequired("Login required", hint="JWTs belong to accounts")
    refuse_locked(identity, auth.user_id)
    claims: dict[str, Any] = {}
    if auth.tenant_id is not None:
        claims[TENANT] = auth.tenant_id
    if auth.roles:
        claims[ROLES] = list(auth.roles)
    return _mint(identity, call, auth.user_id, call.decode(MintJwtBody), claims)


def admin_mint(identity: Identity, call: Call) -> IdentityAnswer:
    """Make a JWT of any user.

    Raises:
        JwtNotConfigured, InvalidScope, InvalidData, LimitExceeded
        UserNotFound: there is no such user, or the user is locked.
    """
    body = call.decode(AdminJwtBody)
    manifest, user_id = identity.app.manifest, body.user_id
    if not may_be_subject(user_id) or not identity.store.point(
        lambda reader: may_own_keys(reader, manifest, user_id)
    ):
        raise UserNotFound("There is no such user, or the user is locked")
    return _mint(identity, call, user_id, body, {})


def verify(identity: Identity, call: Call) -> IdentityAnswer:
    """Return what the JWT says that is the body of the call.

    Raises:
        InvalidJwt
        Unavailable: the keys of its issuer cannot be fetched.
    """
    claims = identity.jwts().verify(
        call.body.decode("utf-8", "replace"), identity.app.clock.wall_ns() / 1e9
    )
    return IdentityAnswer(msgspec.msgpack.encode(claims))


def _mint(
    identity: Identity, call: Call, user_id: str, body: MintJwtBody, claims: dict[str, Any]
) -> IdentityAnswer:
    jwts = identity.jwts()
    if not jwts.can_mint:
        raise JwtNotConfigured("This server makes no JWTs", hint="Set PYLON_JWT_SECRET")
    lifetime_s = jwts.lifetime_s if body.expires_in is None else body.expires_in
    if lifetime_s > jwts.lifetime_s:
        raise InvalidData(
            f"expires_in is {lifetime_s}, and a JWT lasts at most {jwts.lifetime_s} seconds",
            hint="PYLON_JWT_LIFETIME_SECS sets the most", field="expires_in",
        )
    scopes = parse_scopes(body.scopes, identity.app.manifest.by_name)
    now_s = identity.now_s()
    if scopes is not None:
        claims[SCOPES] = scopes
    if body.readonly:
        claims[READONLY] = True
    token_id = identity.app.random.token_hex(_ID_BYTES)
    token = jwts.mint({
        "sub": user_id, "iat": now_s, "exp": now_s + lifetime_s, "jti": token_id, **claims,
    })
    carry_out(identity.writer.submit, [audit_step(
        "jwt_mint", identity.app.clock, identity.app.random, user_id=user_id,
        actor_id=call.facts.auth.user_id, tenant_id=call.facts.auth.tenant_id,
        ip=call.facts.address, user_agent=call.facts.device,
        metadata={"jti": token_id, "scopes": scopes, "readonly": body.readonly},
    )])
    return json_answer(JwtAnswer(token, now_s + lifetime_s))
