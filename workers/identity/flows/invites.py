"""Flows of invites: an address gets a link by mail, and its owner joins (spec/identity.md §1.9).

An invite is a row with the hash of its token. It is good for 7 days and once; a later invite of the
same address replaces it. The account that accepts must have the invited address, so a link that
somebody has passed on or read is of no use to another account.

The link came by mail, so who has it reads the mail of the address. If that was not proved before,
somebody else may have registered the address in advance: their credentials and sessions end, and
the answer has a new session (`workers.identity.accounts`).

Invariants: the acceptance and the membership are one transaction, so an invite makes one member. In
dev mode alone the answer has the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from pylon.api.identity.api_key_bodies import RevokedAnswer
from pylon.api.identity.mail_bodies import LinkBody
from pylon.api.identity.org_bodies import (
    AcceptedAnswer,
    InviteAnswer,
    InviteBody,
    ListedInvite,
)
from pylon.auth.email_address import EmailAddress, parse_email
from pylon.auth.keys import hash_token
from pylon.auth.redirects import with_parameters
from pylon.auth.transactions import Step, carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    AlreadyAccepted,
    AlreadyMember,
    Forbidden,
    InvalidEmail,
    InviteExpired,
    InviteNotFound,
    NotFound,
    PylonError,
    TotpRequired,
    UniqueViolation,
    WrongEmail,
)
from pylon.manifest.org_entities import OWNER, OrgEntities
from pylon.query.conditions import and_, equal
from pylon.storage.auth_ops import Condition
from pylon.storage.public_rows import whole_store
from workers.identity import orgs, rates
from workers.identity.accounts import Account, prove_mailbox
from workers.identity.identity import Call, Identity
from workers.identity.link_forms import link_page, require_own_form
from workers.identity.pages import message_page
from workers.identity.sign_in import finish_sign_in

LIFE_S: Final = 7 * 86_400
FORM_PATH: Final = "/api/auth/invites/accept"
_TITLE: Final = "Invitation"
_TOKEN_BYTES: Final = 16
_PREFIX_CHARS: Final = 8


def create(identity: Identity, call: Call) -> IdentityAnswer:
    """Invite an address."""
    body = call.decode(InviteBody)
    place = orgs.place_of(identity, call)
    place.require_manager()
    orgs.check_role(identity, body.role)
    if body.role == OWNER and not place.is_owner:
        raise Forbidden("Only owners can invite an owner")
    is_dev = identity.app.config.dev_mode
    email = parse_email(body.email, is_dev=is_dev)
    invite, now_s = place.entities.invite, identity.now_s()
    token = identity.app.random.token_hex(_TOKEN_BYTES)
    row_id, made = orgs.insert(identity, invite, {
        "orgId": place.org_id, "email": email.text, "role": body.role,
        "tokenPrefix": token[:_PREFIX_CHARS], "tokenHash": hash_token(token),
        "invitedBy": place.user_id, "createdAt": orgs.time_in(invite, "createdAt", now_s),
        "expiresAt": orgs.time_in(invite, "expiresAt", now_s + LIFE_S), "acceptedAt": None,
    })
    older = [row for row in _waiting(identity, place) if _key_of(row["email"]) == email.key]
    url = _accept_url(identity, token)
    steps: list[Step] = [
        *rates.take_rates(identity, (rates.INVITE_USER, place.user_id)),
        *(orgs.delete(invite, row["id"]) for row in older),
        made,
        orgs.audit(identity, call, "org_invite_send", place.org_id, role=body.role),
        identity.mails.put(
            "ORG_INVITE", email.text, LIFE_S, url=url,
            org_name=_name_of(identity, place.entities, place.org_id),
            inviter=_address_text(identity, place.user_id),
        ),
    ]
    carry_out(identity.writer.submit, steps)
    identity.wake_mail()
    return json_answer(InviteAnswer(
        id=row_id, email=email.text, role=body.role, expires_at=now_s + LIFE_S,
        accept_url=url if is_dev else None, token=token if is_dev else None,
    ))


def list_invites(identity: Identity, call: Call) -> IdentityAnswer:
    """List the invites of an organisation that wait."""
    place = orgs.place_of(identity, call)
    place.require_manager()
    return json_answer([
        ListedInvite(
            id=row["id"], email=row["email"], role=row["role"], token_prefix=row["tokenPrefix"],
            invited_by=row["invitedBy"], created_at=orgs.seconds_of(row["createdAt"]),
            expires_at=orgs.seconds_of(row["expiresAt"]),
        )
        for row in _waiting(identity, place)
    ])


def revoke(identity: Identity, call: Call) -> IdentityAnswer:
    """Take an invite back."""
    place = orgs.place_of(identity, call)
    place.require_manager()
    row_id = call.params["invite_id"]
    if all(row["id"] != row_id for row in _waiting(identity, place)):
        raise NotFound("There is no such invite of this organisation")
    carry_out(identity.writer.submit, [orgs.delete(place.entities.invite, row_id)])
    return json_answer(RevokedAnswer())


def accept(identity: Identity, call: Call) -> IdentityAnswer:
    """Join the organisation of an invite."""
    return _join(identity, call, call.params["token"])


def open_link(identity: Identity, call: Call) -> IdentityAnswer:
    """Show the page of the link in the mail; who has not signed in does that first."""
    token, config = call.params["token"], identity.app.config
    entities = orgs.entities_of(identity)
    if call.facts.session_id is None or call.facts.auth.is_guest:
        login = config.login_url
        return IdentityAnswer(
            status=302, location=with_parameters(login, {"next": _path(token)})
        )
    try:
        row = _find(identity, entities, token)
    except InviteNotFound as ex:
        return message_page(_TITLE, f"{ex.message}. {ex.hint}.", ex.status)
    name = _name_of(identity, entities, str(row["orgId"]))
    return link_page(
        identity, call, _TITLE,
        f"{row['email']} is invited to join {name} as {row['role']}.", f"Join {name}", FORM_PATH,
        token,
    )


def accept_by_form(identity: Identity, call: Call) -> IdentityAnswer:
    """Join by the form of that page, and go on to PYLON_DASHBOARD_URL."""
    body, target = call.decode(LinkBody), identity.app.config.dashboard_url
    try:
        require_own_form(call, body.nonce)
        answer = _join(identity, call, body.token)
    except TotpRequired:  # the address was proved, so all sessions of before have ended
        return message_page(_TITLE, "You have joined. Sign in again.")
    except PylonError as ex:
        return message_page(_TITLE, f"{ex.message}. {ex.hint or ''}".rstrip(), ex.status)
    return IdentityAnswer(
        status=302, location=target, session_token=answer.session_token, cookies=answer.cookies
    )


def _join(identity: Identity, call: Call, token: str) -> IdentityAnswer:
    user_id = orgs.user_of(call)
    entities = orgs.entities_of(identity)

    def attempt() -> tuple[Sequence[Step], IdentityAnswer]:
        row = _find(identity, entities, token)
        now_s, org_id = identity.now_s(), str(row["orgId"])
        if row.get("acceptedAt") is not None:
            raise AlreadyAccepted("This invite was accepted before")
        if orgs.seconds_of(row["expiresAt"]) <= now_s:
            raise InviteExpired("This invite has expired", hint="Ask for a new one")
        if _key_of(row["email"]) not in _keys_of(identity, user_id):
            raise WrongEmail(
                "This invite is for another address than that of your account",
                hint="Sign in with the account of the address that got the mail",
            )
        if orgs.member_of(identity, org_id, user_id) is not None:
            raise AlreadyMember("You are a member of this organisation already")
        member = entities.member
        _, joined = orgs.insert(identity, member, {
            "orgId": org_id, "userId": user_id, "role": row["role"],
            "joinedAt": orgs.time_in(member, "joinedAt", now_s),
        })
        email = _parse(row["email"])
        if email is not None and _is_unproved(identity, user_id, email):
            proves = prove_mailbox(identity, Account(user_id, is_verified=False), email)
        else:
            proves = []
        accepted = {"acceptedAt": orgs.time_in(entities.invite, "acceptedAt", now_s)}
        version = orgs.version_of(identity, entities.invite, row["id"])
        steps: list[Step] = [
            orgs.update(entities.invite, row["id"], accepted, version), joined,
            orgs.audit(identity, call, "org_invite_accept", org_id, role=row["role"]),
        ]
        answer = AcceptedAnswer(org_id=org_id, role=str(row["role"]))
        if not proves:
            return steps, json_answer(answer)
        signed_in = finish_sign_in(
            identity, call, user_id, "invite", [*proves, *steps],
            extra={"credentials_dropped": True, "org_id": answer.org_id, "role": answer.role},
        )
        return [], signed_in

    try:
        return orgs.carry_out_again(identity, attempt)
    except UniqueViolation:
        raise AlreadyMember("You are a member of this organisation already") from None


def _is_unproved(identity: Identity, user_id: str, email: EmailAddress) -> bool:
    """Whether nobody has proved yet that they read the mail of a user's address."""
    where = [
        Condition("kind", "=", "email"), Condition("subject", "=", email.key),
        Condition("user_id", "=", user_id), Condition("verified_at", "null"),
    ]
    return identity.store.point(lambda reader: reader.count_records("identities", where)) > 0


def _find(identity: Identity, entities: OrgEntities, token: str) -> orgs.Row:
    """Return the invite of a token.

    Raises:
        InviteNotFound
    """
    found = whole_store(identity.store).point(  # other readers do not know the hidden field
        lambda reader: reader.lookup(entities.invite.name, "tokenHash", hash_token(token))
    )
    if found is None:
        raise InviteNotFound("There is no such invite", hint="Ask for a new one")
    row: orgs.Row = orjson.loads(found)
    return row


def _waiting(identity: Identity, place: orgs.Place) -> list[orgs.Row]:
    """Return the invites of an organisation that nobody has accepted."""
    return orgs.rows_of(
        identity, place.entities.invite,
        and_(equal("orgId", place.org_id), equal("acceptedAt", None)),
    )


def _keys_of(identity: Identity, user_id: str) -> set[str]:
    """Return the e-mail keys of a user: of the identities, or without one of the row."""
    of_user = [Condition("kind", "=", "email"), Condition("user_id", "=", user_id)]
    found = identity.store.point(lambda reader: reader.records("identities", of_user))
    if found:
        return {str(record["subject"]) for record in found}
    key = _key_of(_row_address(identity, user_id))
    return set() if key is None else {key}


def _row_address(identity: Identity, user_id: str) -> object:
    entity = identity.app.manifest.by_name.get(identity.app.manifest.auth.user_entity)
    if entity is None:
        return None
    raw = identity.store.point(lambda reader: reader.get(entity.name, user_id))
    return None if raw is None else orjson.loads(raw).get("email")


def _address_text(identity: Identity, user_id: str) -> str:
    address = _row_address(identity, user_id)
    return address if isinstance(address, str) else "A member"


def _key_of(address: object) -> str | None:
    parsed = _parse(address)
    return None if parsed is None else parsed.key


def _parse(address: object) -> EmailAddress | None:
    if not isinstance(address, str):
        return None
    try:
        return parse_email(address, is_dev=True)
    except InvalidEmail:
        return None


def _name_of(identity: Identity, entities: OrgEntities, org_id: str) -> str:
    raw = identity.store.point(lambda reader: reader.get(entities.org.name, org_id))
    return "" if raw is None else str(orjson.loads(raw)["name"])


def _accept_url(identity: Identity, token: str) -> str:
    config = identity.app.config
    base = config.public_url or f"http://localhost:{config.port}"
    return f"{base}{_path(token)}"


def _path(token: str) -> str:
    return f"/api/auth/invites/{token}/accept"
