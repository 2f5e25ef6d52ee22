"""Linked accounts: the providers that sign a user in, and the tokens that are kept of them.

Invariants: the last way to sign in stays. That is checked in the transaction that unlinks, by a
record of another way that must still be there. A provider's token leaves the server only to its own
user. Called by `workers.identity.execution`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pylon.api.identity.provider_bodies import AccessTokenAnswer, LinkedAccount, UnlinkedAnswer
from pylon.auth.audit import audit_step
from pylon.auth.transactions import carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    AccountNotFound,
    NoRefreshToken,
    ProviderNotConfigured,
    RecordConflict,
    Unavailable,
)
from pylon.storage.auth_ops import Condition, DropRecords
from pylon.storage.auth_tables import Value
from workers.identity.identity import Call, Identity
from workers.identity.provider_accounts import (
    KIND_PREFIX,
    LinkedData,
    StoredTokens,
    kind_of,
    token_record,
)
from workers.identity.sign_in_ways import other_way

_TRIES: Final = 3
_FRESH_S: Final = 60  # a stored access token that lasts longer is given again
_KINDS_LISTED: Final = 100


def list_accounts(identity: Identity, call: Call) -> IdentityAnswer:
    """Return the accounts of providers that sign the caller in, the oldest first."""
    found = identity.store.point(lambda reader: reader.records(
        "identities", [_of(call)], ("created_at",), _KINDS_LISTED
    ))
    return json_answer([
        LinkedAccount(
            str(record["kind"]).removeprefix(KIND_PREFIX), str(record["subject"]),
            _email_in(record), _int(record["created_at"]),
        )
        for record in found if str(record["kind"]).startswith(KIND_PREFIX)
    ])


def unlink_account(identity: Identity, call: Call) -> IdentityAnswer:
    """Unlink a provider from the caller's account, and drop its tokens.

    Raises:
        AccountNotFound: it is not linked.
        LastSignInMethod: the caller could not sign in any more.
    """
    provider = call.params["provider"]
    linked = [_of(call), Condition("kind", "=", kind_of(provider))]
    for _ in range(_TRIES):
        if not identity.store.point(lambda reader: reader.count_records("identities", linked)):
            raise AccountNotFound("No account of this provider is linked")
        try:
            carry_out(identity.writer.submit, [
                other_way(
                    identity, str(call.facts.auth.user_id), without_provider=provider
                ),
                DropRecords("identities", linked),
                DropRecords("oauth_tokens", [_of(call), Condition("provider", "=", provider)]),
                audit_step(
                    "oauth_unlink", identity.app.clock, identity.app.random,
                    user_id=call.facts.auth.user_id, ip=call.facts.address,
                    user_agent=call.facts.device, metadata={"provider": provider},
                ),
            ])
        except RecordConflict:  # the other way has gone meanwhile
            continue
        return json_answer(UnlinkedAnswer(unlinked=True, provider=provider))
    raise Unavailable("The account changes meanwhile", hint="Try again in a moment")


def give_access_token(identity: Identity, call: Call) -> IdentityAnswer:
    """Return an access token of the provider for the caller; a new one if the stored one ends soon.

    Raises:
        ProviderNotConfigured, AccountNotFound, NoRefreshToken, RefreshFailed
    """
    name = call.params["provider"]
    provider = identity.providers.get(name)
    if provider is None or not provider.settings.store_tokens:
        raise ProviderNotConfigured(
            "This server keeps no tokens of this provider",
            hint="Set PYLON_OAUTH_<NAME>_STORE_TOKENS=true, and sign in again",
        )
    where = [_of(call), Condition("provider", "=", name)]
    found = identity.store.point(lambda reader: reader.records("oauth_tokens", where))
    if not found:
        raise AccountNotFound("No account of this provider is linked, or its tokens are not kept")
    user_id, record = str(call.facts.auth.user_id), found[0]
    sealed = str(record["sealed"])
    stored = msgspec.json.decode(
        identity.keys.open("oauth_tokens", "sealed", user_id, sealed), type=StoredTokens
    )
    scope, expires_at = record["scope"], record["expires_at"]
    if expires_at is None or _int(expires_at) > identity.now_s() + _FRESH_S:
        return _token_answer(name, stored.access_token, expires_at, scope)
    if stored.refresh_token is None:
        raise NoRefreshToken(
            "The provider gave no refresh token", hint="Sign in with the provider again"
        )
    tokens = provider.refresh(stored.refresh_token)
    kept = StoredTokens(tokens.access_token, tokens.refresh_token or stored.refresh_token)
    put = token_record(
        identity, name, user_id, kept, scope=tokens.scope or _text(scope), lasts_s=tokens.lasts_s
    )
    carry_out(identity.writer.submit, [put])
    return _token_answer(name, tokens.access_token, put.values["expires_at"], put.values["scope"])


def _of(call: Call) -> Condition:
    return Condition("user_id", "=", call.facts.auth.user_id)


def _email_in(record: dict[str, Value]) -> str | None:
    data = record["data"]
    return None if data is None else msgspec.json.decode(str(data), type=LinkedData).email


def _token_answer(
    provider: str, token: str, expires_at: Value, scope: Value
) -> IdentityAnswer:
    return json_answer(AccessTokenAnswer(
        token, None if expires_at is None else _int(expires_at), _text(scope), provider
    ))


def _int(value: Value) -> int:
    return int(value) if isinstance(value, int | str) else 0


def _text(value: Value) -> str | None:
    return None if value is None else str(value)
