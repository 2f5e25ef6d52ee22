"""Flows of passkeys: registration, sign-in, and a user's list of them (spec/identity.md §1.7).

    register/begin --challenge--> the browser makes a key --register/finish--> stored
    login/begin    --challenge--> the browser signs it    --login/finish-----> session

Invariants: a challenge of a registration belongs to one session, whose sign-in is fresh, so nobody
adds a passkey to the account of somebody else. The last way to sign in stays. A sign-in by passkey
counts as two factors, since the authenticator has verified its user. Each change goes with its
audit record and a notice by mail. Called by `workers.identity.execution`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pylon import limits
from pylon.api.identity.passkey_bodies import (
    DeletedAnswer,
    PasskeyAnswer,
    RegisterBody,
    RegisteredAnswer,
    RegisterOptions,
    RenameBody,
    RenamedAnswer,
    SignInBody,
    SignInOptions,
)
from pylon.auth.display_names import clean_name
from pylon.auth.transactions import Step, carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    AuthRequired,
    LimitExceeded,
    MissingField,
    NotFound,
    PasskeyRegisterFailed,
    RecordConflict,
    RecordExists,
    Unavailable,
)
from pylon.storage.auth_ops import CheckRecords, Condition, DropRecords, PutRecord, SetRecords
from pylon.storage.auth_tables import Value
from workers.identity import passkeys
from workers.identity.identity import Call, Identity
from workers.identity.mailboxes import user_record
from workers.identity.passkey_proofs import (
    METHOD,
    PROVE,
    REGISTER,
    TABLE,
    new_challenge,
    open_challenge,
    prove,
    spend_challenge,
    use_challenge,
)
from workers.identity.rates import START_IP, VERIFY_IP, take_rates
from workers.identity.sign_in import audit_of, finish_sign_in, refuse_locked
from workers.identity.sign_in_ways import other_way
from workers.identity.stored_addresses import stored_address

_TRIES: Final = 3
_NO_NAME: Final = "Passkey"


def begin_registration(identity: Identity, call: Call) -> IdentityAnswer:
    """Store a challenge for a new passkey of the caller, and return the options of the browser.

    Raises:
        WebauthnNotConfigured, RateLimited
        LimitExceeded: the user has enough passkeys.
        AuthRequired: the caller is a guest.
    """
    user_id = _user_of(call)
    party = passkeys.relying_party(identity.app.config)
    known = [str(record["credential_id"]) for record in _records(identity, user_id)]
    _refuse_more(len(known))
    challenge, put = new_challenge(identity, REGISTER, user_id, call.facts.family)
    carry_out(identity.writer.submit, [
        *take_rates(identity, (START_IP, call.facts.address)), put
    ])
    name = stored_address(identity, user_id) or user_id
    options = passkeys.registration_options(
        party, identity.app.manifest.name, user_id, name, challenge, known
    )
    return json_answer(RegisterOptions(
        challenge, party.domain, options["user"]["id"], name, options
    ))


def finish_registration(identity: Identity, call: Call) -> IdentityAnswer:
    """Store the passkey that the browser has made.

    Raises:
        WebauthnNotConfigured, MissingField, InvalidName, RateLimited
        PasskeyRegisterFailed, LimitExceeded, AccountLocked
    """
    user_id, body = _user_of(call), call.decode(RegisterBody)
    party = passkeys.relying_party(identity.app.config)
    name = clean_name(body.name or call.facts.device or _NO_NAME)
    units = take_rates(identity, (VERIFY_IP, call.facts.address))
    if units:
        carry_out(identity.writer.submit, units)
    try:
        answer = passkeys.read_answer(body.credential or _as_credential(body.credential_id, {
            "clientDataJSON": body.client_data, "attestationObject": body.attestation,
        }))
    except ValueError:
        raise passkeys.register_failed() from None
    if body.challenge is not None and body.challenge.rstrip("=") != answer.challenge:
        raise passkeys.register_failed()
    is_open = open_challenge(
        identity, REGISTER, answer.challenge, user_id, call.facts.family
    )
    if is_open is None:
        raise passkeys.register_failed()
    try:
        made = passkeys.verify_new(party, answer)
    except PasskeyRegisterFailed:
        spend_challenge(identity, is_open)
        raise
    refuse_locked(identity, user_id)
    _store(identity, call, user_id, made, name, is_open)
    return json_answer(RegisteredAnswer(registered=True, id=made.credential_id, name=name))


def begin_sign_in(identity: Identity, call: Call) -> IdentityAnswer:
    """Store a challenge for a sign-in, and return the options of the browser.

    Raises:
        WebauthnNotConfigured, RateLimited
    """
    party = passkeys.relying_party(identity.app.config)
    challenge, put = new_challenge(identity, PROVE)
    carry_out(identity.writer.submit, [
        *take_rates(identity, (START_IP, call.facts.address)), put
    ])
    return json_answer(SignInOptions(
        challenge, party.domain, passkeys.sign_in_options(party, challenge)
    ))


def finish_sign_in_by_passkey(identity: Identity, call: Call) -> IdentityAnswer:
    """Sign in the user of a passkey.

    Raises:
        WebauthnNotConfigured, MissingField, PasskeyVerifyFailed, RateLimited, AccountLocked
    """
    body = call.decode(SignInBody)
    given = body.credential or _as_credential(body.credential_id, {
        "clientDataJSON": body.client_data, "authenticatorData": body.authenticator_data,
        "signature": body.signature,
    }, {"userHandle": body.user_handle})
    proof = prove(identity, call, given)
    try:
        return finish_sign_in(
            identity, call, proof.user_id, METHOD, proof.steps, is_two_factor=True
        )
    except RecordConflict:  # another request was faster with this answer, or the passkey has gone
        raise passkeys.verify_failed() from None


def list_passkeys(identity: Identity, call: Call) -> IdentityAnswer:
    """Return the passkeys of the caller, the oldest first."""
    return json_answer([
        PasskeyAnswer(
            id=str(record["credential_id"]), name=str(record["name"]),
            created_at=_int(record["created_at"]),
            last_used_at=None if record["last_used_at"] is None else _int(record["last_used_at"]),
            backed_up=bool(record["backed_up"]),
            transports=str(record["transports"] or "").split(),
        )
        for record in _records(identity, str(call.facts.auth.user_id))
    ])


def rename_passkey(identity: Identity, call: Call) -> IdentityAnswer:
    """Give a passkey of the caller another name.

    Raises:
        NotFound: the caller has no such passkey.
        InvalidName
    """
    user_id, name = _user_of(call), clean_name(call.decode(RenameBody).name)
    is_key = _is_key(call, user_id)
    try:
        carry_out(identity.writer.submit, [SetRecords(TABLE, is_key, {"name": name}, 1)])
    except RecordConflict:
        raise _not_found() from None
    return json_answer(RenamedAnswer(id=call.params["key_id"], name=name))


def delete_passkey(identity: Identity, call: Call) -> IdentityAnswer:
    """Remove a passkey of the caller.

    Raises:
        NotFound: the caller has no such passkey.
        LastSignInMethod: the caller could not sign in any more.
    """
    user_id = _user_of(call)
    is_key = _is_key(call, user_id)
    for _ in range(_TRIES):
        found = identity.store.point(lambda reader: reader.records(TABLE, is_key))
        if not found:
            raise _not_found()
        name = str(found[0]["name"])
        way = other_way(identity, user_id, without_passkey=call.params["key_id"])
        try:
            carry_out(identity.writer.submit, [
                way, DropRecords(TABLE, is_key, 1),
                audit_of(identity, call, "passkey_revoke", user_id, metadata={"name": name}),
                *_notices(identity, user_id, "PASSKEY_REMOVED", name),
            ])
        except RecordConflict:  # the other way has gone meanwhile, or the passkey
            continue
        identity.wake_mail()
        return json_answer(DeletedAnswer(deleted=True))
    raise Unavailable("The account changes meanwhile", hint="Try again in a moment")


def _store(
    identity: Identity, call: Call, user_id: str, made: passkeys.NewPasskey, name: str,
    is_open: list[Condition],
) -> None:
    """Store a passkey, and use its challenge up."""
    of_user = [Condition("user_id", "=", user_id)]
    is_same = [Condition("credential_id", "=", made.credential_id)]
    for _ in range(_TRIES):
        count = identity.store.point(lambda reader: reader.count_records(TABLE, of_user))
        _refuse_more(count)
        try:
            carry_out(identity.writer.submit, [
                use_challenge(identity, is_open),
                CheckRecords(
                    "sessions", [*of_user, Condition("session_id", "=", call.facts.session_id)], 1
                ),
                CheckRecords(TABLE, of_user, count), *user_record(identity, user_id),
                PutRecord(TABLE, {
                    "credential_id": made.credential_id, "user_id": user_id,
                    "public_key": made.public_key, "sign_count": made.sign_count,
                    "transports": " ".join(made.transports), "aaguid": made.aaguid,
                    "backed_up": int(made.is_backed_up), "name": name,
                    "created_at": identity.now_s(),
                }),
                audit_of(identity, call, "passkey_register", user_id, metadata={"name": name}),
                *_notices(identity, user_id, "PASSKEY_ADDED", name),
            ])
        except RecordExists:
            if identity.store.point(lambda reader: reader.count_records(TABLE, is_same)):
                spend_challenge(identity, is_open)
                raise passkeys.register_failed() from None
        except RecordConflict:
            if not identity.store.point(lambda reader: reader.count_records("tokens", is_open)):
                raise passkeys.register_failed() from None
        else:
            identity.wake_mail()
            return
    raise Unavailable("The account changes meanwhile", hint="Try again in a moment")


def _as_credential(
    credential_id: str | None, response: Mapping[str, str | None],
    optional: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Return the members of the published server's bodies as a browser's JSON.

    Raises:
        MissingField
    """
    given = {"credentialId": credential_id, **response}
    for name, value in given.items():
        if not value:
            raise MissingField(f'"{name}" is required', hint='Or send "credential"', field=name)
    return {
        "id": credential_id, "rawId": credential_id, "type": "public-key",
        "response": {
            **response,
            **{name: value for name, value in (optional or {}).items() if value is not None},
        },
    }


def _notices(identity: Identity, user_id: str, kind: str, name: str) -> list[Step]:
    address = stored_address(identity, user_id)
    return [] if address is None else [*identity.mails.notices(kind, address, name=name)]


def _records(identity: Identity, user_id: str) -> list[dict[str, Value]]:
    where = [Condition("user_id", "=", user_id)]
    return identity.store.point(lambda reader: reader.records(
        TABLE, where, ("created_at", "credential_id"), limits.PASSKEYS_OF_USER
    ))


def _refuse_more(count: int) -> None:
    if count >= limits.PASSKEYS_OF_USER:
        raise LimitExceeded(
            f"A user may have {limits.PASSKEYS_OF_USER} passkeys", hint="Delete one of yours"
        )


def _is_key(call: Call, user_id: str) -> list[Condition]:
    return [
        Condition("credential_id", "=", call.params["key_id"]), Condition("user_id", "=", user_id)
    ]


def _user_of(call: Call) -> str:
    user_id = call.facts.auth.user_id
    if user_id is None or call.facts.auth.is_guest:
        raise AuthRequired("Login required", hint="Passkeys belong to accounts")
    return user_id


def _not_found() -> NotFound:
    return NotFound("You have no such passkey")


def _int(value: Value) -> int:
    return int(value) if isinstance(value, int | str) else 0
