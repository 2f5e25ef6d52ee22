"""Accounts of providers: which user a provider's user is, and the tokens that are kept.

The rule of spec/identity.md §1.6:

    the provider's user is known                              their account
    the address is free                                       a new user
    the address is somebody's, the provider has not verified  refused
    ... verified by both                                      linked
    ... verified by the provider alone                        proof of the mailbox, then linked

Invariants: a provider's user belongs to one account at most. An address that the provider does not
vouch for never leads to an account that exists. Name and picture are taken when the user is made
and never again. Called by `workers.identity.flows.providers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from pylon.auth.audit import audit_step
from pylon.auth.email_address import EmailAddress, parse_email
from pylon.auth.revocation import announced, ended_families
from pylon.auth.transactions import Step, carry_out
from pylon.bus.identity import IdentityAnswer
from pylon.bus.messages import SessionRevoked
from pylon.errors import (
    AlreadyLinked,
    AuthRequired,
    InvalidEmail,
    OauthEmailNotVerified,
    RecordConflict,
    RecordExists,
    Unavailable,
    UniqueViolation,
)
from pylon.storage.auth_ops import CheckRecords, Condition, PutRecord
from workers.identity.accounts import (
    EMAIL,
    find_account,
    find_by_identity,
    has_credentials,
    new_user,
    prove_mailbox,
)
from workers.identity.identity import Call, Identity
from workers.identity.providers.client import Confirmed
from workers.identity.providers.profiles import Profile
from workers.identity.providers.token_endpoint import Tokens
from workers.identity.sign_in import finish_sign_in

T = TypeVar("T")

KIND_PREFIX: Final = "oauth:"
_TRIES: Final = 3


class StoredTokens(msgspec.Struct, frozen=True):
    """The sealed part of a record of `oauth_tokens`."""

    access_token: str
    refresh_token: str | None = None

    def __repr__(self) -> str:
        return "StoredTokens()"


class LinkedData(msgspec.Struct, frozen=True):
    """What an identity keeps of the profile, for the list of accounts."""

    email: str | None = None


def kind_of(provider: str) -> str:
    """Return the kind of the identities of a provider."""
    return KIND_PREFIX + provider


def sign_in_account(
    identity: Identity, call: Call, profile: Profile, tokens: Tokens | None
) -> IdentityAnswer:
    """Sign the user of a provider in.

    Args:
        tokens: to keep, if the settings say so; None: a native app has them.

    Raises:
        OauthEmailNotVerified: see the module.
        UserCreateFailed: the user entity takes no such user.
        TotpRequired, AccountLocked: of `finish_sign_in`.
        Unavailable: others change the same account again and again.
    """
    return _repeated(lambda: _sign_in(identity, call, profile, tokens))


def link_account(
    identity: Identity, call: Call, confirmed: Confirmed, user_id: str, family: str | None
) -> None:
    """Link the user of a provider to an account.

    Args:
        family: of the session that asked for it, which must still be there.

    Raises:
        AlreadyLinked: it is linked to another account, or the account has another one.
        AuthRequired: the session has ended, or the account is locked.
    """
    _repeated(lambda: _link(identity, call, confirmed, user_id, family))


def token_record(
    identity: Identity, provider: str, user_id: str, tokens: Tokens | StoredTokens, *,
    scope: str | None, lasts_s: int | None,
) -> PutRecord:
    """Return the step that keeps the tokens of a provider, sealed."""
    stored = StoredTokens(tokens.access_token, tokens.refresh_token)
    return PutRecord("oauth_tokens", {
        "provider": provider, "user_id": user_id, "scope": scope,
        "sealed": identity.keys.seal(
            "oauth_tokens", "sealed", user_id, msgspec.json.encode(stored)
        ),
        "expires_at": None if lasts_s is None else identity.now_s() + lasts_s,
    }, replace=True)


def _sign_in(
    identity: Identity, call: Call, profile: Profile, tokens: Tokens | None
) -> IdentityAnswer:
    kind = kind_of(profile.provider)
    extra: dict[str, Any] = {"provider": profile.provider}
    steps: list[Step]
    user_id = find_by_identity(identity, kind, profile.subject)
    if user_id is not None:
        steps = [CheckRecords("identities", [
            Condition("kind", "=", kind), Condition("subject", "=", profile.subject),
            Condition("user_id", "=", user_id),
        ], 1)]
    else:
        user_id, steps, was_dropped = _new_link(identity, profile)
        steps.append(_audit(identity, call, "oauth_link", user_id, profile))
        if was_dropped is not None:
            # On its own: afterwards the account has no second factor to ask for.
            _carry_out_proof(identity, profile, steps, was_dropped=was_dropped)
            steps = []
            extra |= {"credentials_dropped": True} if was_dropped else {}
    steps += _kept_tokens(identity, profile, tokens, user_id)
    return finish_sign_in(identity, call, user_id, kind, steps, extra=extra)


def _new_link(
    identity: Identity, profile: Profile
) -> tuple[str, list[Step], bool | None]:
    """Return the user that a new provider's user belongs to, the steps that link it, and whether
    the proof of the mailbox drops credentials (None: there is no such proof)."""
    email = _address_of(identity, profile)
    account = None if email is None else find_account(identity, email)
    if email is None or account is None:
        if email is not None:
            identity.disposable.refuse(email)
        user_id, steps = new_user(
            identity, email, is_verified=email is not None and profile.is_email_verified,
            name=profile.name, fields={"avatarUrl": profile.avatar_url},
        )
        return user_id, [*steps, _link_record(identity, profile, user_id)], None
    if not profile.is_email_verified:
        raise OauthEmailNotVerified(
            f"{profile.provider} has not verified this e-mail address, which belongs to an account",
            hint="Sign in to that account in another way, then link the provider",
        )
    link = _link_record(identity, profile, account.user_id)
    if account.is_verified:
        return account.user_id, [_email_check(email, account.user_id), link], None
    return (
        account.user_id, [*prove_mailbox(identity, account, email), link],
        has_credentials(identity, account.user_id),
    )


def _carry_out_proof(
    identity: Identity, profile: Profile, steps: list[Step], *, was_dropped: bool
) -> None:
    """Carry the proof of a mailbox out, close the sockets of the sessions that it ended, and tell
    the owner by mail."""
    email = _address_of(identity, profile)
    mails = identity.mails.notices("CREDENTIALS_DROPPED", email.text) if (
        was_dropped and email is not None
    ) else []
    replies = carry_out(identity.writer.submit, [*steps, *mails])
    for family in announced(ended_families(replies)):
        identity.send_signal(SessionRevoked(family))
    if mails:
        identity.wake_mail()


def _link(
    identity: Identity, call: Call, confirmed: Confirmed, user_id: str, family: str | None
) -> None:
    profile = confirmed.profile
    kind = kind_of(profile.provider)
    of_user = Condition("user_id", "=", user_id)
    if not identity.store.point(lambda reader: reader.count_records(
        "sessions", [of_user, Condition("family", "=", family)]
    )):
        raise AuthRequired("The session that asked for this has ended", hint="Sign in again")
    owner = find_by_identity(identity, kind, profile.subject)
    kept = _kept_tokens(identity, profile, confirmed.tokens, user_id)
    if owner == user_id:
        if kept:
            carry_out(identity.writer.submit, kept)
        return
    has_other = identity.store.point(
        lambda reader: reader.count_records("identities", [of_user, Condition("kind", "=", kind)])
    )
    if owner is not None or has_other:
        raise AlreadyLinked(
            f"This account of {profile.provider} belongs to another user" if owner is not None
            else f"Another account of {profile.provider} is linked to this user"
        )
    carry_out(identity.writer.submit, [
        CheckRecords("identities", [of_user, Condition("kind", "=", kind)], 0),
        CheckRecords("users", [of_user, Condition("locked_at", "not null")], 0),
        _link_record(identity, profile, user_id), *kept,
        _audit(identity, call, "oauth_link", user_id, profile),
    ])


def _link_record(identity: Identity, profile: Profile, user_id: str) -> PutRecord:
    now_s = identity.now_s()
    return PutRecord("identities", {
        "kind": kind_of(profile.provider), "subject": profile.subject, "user_id": user_id,
        "verified_at": now_s, "created_at": now_s,
        "data": msgspec.json.encode(LinkedData(profile.email)).decode(),
    })


def _email_check(email: EmailAddress, user_id: str) -> CheckRecords:
    return CheckRecords("identities", [
        Condition("kind", "=", EMAIL), Condition("subject", "=", email.key),
        Condition("user_id", "=", user_id), Condition("verified_at", "not null"),
    ], 1)


def _kept_tokens(
    identity: Identity, profile: Profile, tokens: Tokens | None, user_id: str
) -> list[Step]:
    provider = identity.providers[profile.provider]
    if tokens is None or not provider.settings.store_tokens:
        return []
    return [token_record(
        identity, provider.name, user_id, tokens, scope=tokens.scope, lasts_s=tokens.lasts_s
    )]


def _address_of(identity: Identity, profile: Profile) -> EmailAddress | None:
    """Return the address of a profile; an address that sign-in does not accept counts as none."""
    try:
        return None if profile.email is None else parse_email(
            profile.email, is_dev=identity.app.config.dev_mode
        )
    except InvalidEmail:
        return None


def _audit(
    identity: Identity, call: Call, action: str, user_id: str, profile: Profile
) -> PutRecord:
    return audit_step(
        action, identity.app.clock, identity.app.random, user_id=user_id, ip=call.facts.address,
        user_agent=call.facts.device, metadata={"provider": profile.provider},
    )


def _repeated(attempt: Callable[[], T]) -> T:
    """Decide again while others change what the decision rests on."""
    for _ in range(_TRIES):
        try:
            return attempt()
        except (RecordConflict, RecordExists, UniqueViolation):
            continue
    raise Unavailable("The account changes meanwhile", hint="Try again in a moment")
