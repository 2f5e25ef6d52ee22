"""The end of an account: ``DELETE /api/auth/account``, and that of an administrator (identity.md
§1.10).

First the rows go that `auth.on_delete` names, or they lose the user's id, in writes of
`limits.ACCOUNT_STEP_ROWS` rows. Then one transaction removes the row of the user, all records of
the auth tables and all sessions, and leaves the audit record. A killed process leaves an account
with fewer rows, and the request may be repeated.

Rows that neither `auth.on_delete` nor `onDelete` of the field decides about stay. Where the store
checks these references, they refuse the end of the account (`ReferenceInUse`).

A user who is the only owner of an organisation with other members is refused. Two owners may leave
at once: each transaction also writes the row of another owner as it has read it, so the second one
is refused, and plans again. An organisation without other members ends with its owner.

Called by `workers.identity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import methodcaller
from typing import Final, NamedTuple

import msgspec
import orjson

from pylon import limits
from pylon.api.identity.account_bodies import AccountDeleted
from pylon.auth.audit import audit_step
from pylon.auth.revocation import announced, end_sessions_of, ended_families
from pylon.auth.transactions import Step, carry_out
from pylon.auth_context import ADMIN
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.bus.messages import SessionRevoked
from pylon.errors import (
    SHOWN_CHARS,
    LastOwner,
    NotFound,
    PreconditionFailed,
    ReferenceInUse,
    Unavailable,
)
from pylon.files.disk import FileFolder
from pylon.files.records import keys_of_owner
from pylon.manifest.model import Entity
from pylon.manifest.org_entities import OWNER, OrgEntities, org_entities
from pylon.manifest.owned_fields import org_fields, owned_fields
from pylon.query.conditions import and_, equal
from pylon.query.rows import Query
from pylon.storage.auth_ops import Condition, DropRecords, EndSessions
from pylon.storage.ops import DeleteRow, RowOp, UpdateRow
from workers.identity.identity import Call, Identity
from workers.identity.owned_rows import empty_rows

_TRIES: Final = 3
_ORGS: Final = 1_000  # of one user
_TABLES: Final = (
    "users", "passwords", "totp", "backup_codes", "passkeys", "tokens", "trusted_devices",
    "oauth_tokens",
)


class _Ended(NamedTuple):
    """The numbers of an ended account, and the families of its sessions."""

    counts: AccountDeleted
    families: list[str]


def delete_account(identity: Identity, call: Call) -> IdentityAnswer:
    """End the caller's account.

    Raises:
        LastOwner, ReferenceInUse, Unavailable
    """
    user_id = call.facts.auth.user_id
    assert user_id is not None, "the route needs a session"
    answer = json_answer(_end(identity, user_id, call))
    return msgspec.structs.replace(answer, clears_session=True)


def delete_account_of(identity: Identity, call: Call) -> IdentityAnswer:
    """End the account of the path, for an administrator.

    Raises:
        NotFound, LastOwner, ReferenceInUse, Unavailable
    """
    user_id = call.params["user_id"]
    require_account(identity, user_id)
    return json_answer(_end(identity, user_id, call))


def require_account(identity: Identity, user_id: str) -> None:
    """
    Raises:
        NotFound: nobody has this id: no row, no record of sign-in and no session.
    """
    mine = [Condition("user_id", "=", user_id)]
    if not _has_row(identity, user_id) and not any(
        identity.store.point(methodcaller("count_records", table, mine))
        for table in ("users", "identities", "sessions")
    ):
        raise NotFound(f'There is no user "{user_id[:SHOWN_CHARS]}"')


def _end(identity: Identity, user_id: str, call: Call) -> AccountDeleted:
    ended = end_account(identity, user_id, call)
    for family in announced(ended.families):
        identity.send_signal(SessionRevoked(family))
    return ended.counts


def end_account(identity: Identity, user_id: str, call: Call) -> _Ended:
    """Remove the rows and the records of a user.

    Raises:
        LastOwner: an organisation would have members and no owner.
        ReferenceInUse: rows that nothing decides about refer to the user.
        Unavailable: there are more rows; repeat it.
    """
    of_orgs = org_fields(identity.app.manifest)
    for attempt in range(_TRIES):
        steps = _leave_orgs(identity, user_id)  # refuses before anything is removed
        ending = _ending_orgs(identity, steps) if of_orgs else []
        _empty(identity, user_id)
        for org_id in ending:
            empty_rows(identity, of_orgs, org_id)
        files = list(keys_of_owner(identity.store, user_id))
        try:
            ended = _remove(identity, user_id, call)
        except (NotFound, PreconditionFailed, ReferenceInUse):
            if attempt == _TRIES - 1:
                raise
            continue
        folder = FileFolder(identity.app.config.files_folder)
        for key in files:
            folder.remove(key)
        _empty(identity, user_id)  # rows that came meanwhile, where no reference is checked
        for org_id in ending:
            empty_rows(identity, of_orgs, org_id)
        return ended
    raise Unavailable("The account is changing", hint="Send the request again")


def _remove(identity: Identity, user_id: str, call: Call) -> _Ended:
    mine = [Condition("user_id", "=", user_id)]
    facts = call.facts
    steps: list[Step] = [*_leave_orgs(identity, user_id)]
    has_row = _has_row(identity, user_id)
    if has_row:
        steps.append(DeleteRow(identity.app.manifest.auth.user_entity, user_id, ADMIN))
    keys = len(steps)
    steps.append(DropRecords("api_keys", mine))
    steps.append(DropRecords("identities", [*mine, Condition("kind", "!=", "email")]))
    steps += [
        DropRecords("tokens", [Condition("email_key", "=", key)])
        for key in _email_keys(identity, user_id)
    ]
    steps += [DropRecords(table, mine) for table in ("identities", *_TABLES)]
    steps.append(DropRecords("files", [Condition("owner", "=", user_id)]))
    steps += end_sessions_of(user_id)
    steps.append(audit_step(
        "account_delete", identity.app.clock, identity.app.random, user_id=user_id,
        actor_id=facts.auth.user_id, tenant_id=facts.auth.tenant_id, ip=facts.address,
        user_agent=facts.device,
    ))
    replies = carry_out(identity.writer.submit, steps)
    sessions = sum(
        reply.count for step, reply in zip(steps, replies, strict=True)
        if isinstance(step, EndSessions)
    )
    counts = AccountDeleted(has_row, sessions, replies[keys].count, replies[keys + 1].count)
    return _Ended(counts, ended_families(replies))


def _has_row(identity: Identity, user_id: str) -> bool:
    manifest = identity.app.manifest
    name = manifest.auth.user_entity
    return name in manifest.by_name and identity.store.point(
        lambda reader: reader.get(name, user_id)
    ) is not None


def _email_keys(identity: Identity, user_id: str) -> list[str]:
    where = [Condition("user_id", "=", user_id), Condition("kind", "=", "email")]
    records = identity.store.point(lambda reader: reader.records("identities", where))
    return [str(record["subject"]) for record in records]


# --- Rows ----------------------------------------------------------------------------------------


def _empty(identity: Identity, user_id: str) -> None:
    """Delete the rows of a user, or take the user's id from them.

    Raises:
        Unavailable, PylonError: as `empty_rows`.
    """
    manifest = identity.app.manifest
    orgs = org_entities(manifest)
    empty_rows(identity, [
        field for field in owned_fields(manifest)
        if orgs is None or field.entity is not orgs.member  # those leave with the account
    ], user_id)


def _find(identity: Identity, entity: Entity, query: Query) -> list[tuple[str, bytes]]:
    rows, _ = identity.store.scan(
        lambda reader: reader.rows_within(entity.name, query, limits.LIST_BYTES // 4)
    )
    return [(orjson.loads(row)["id"], row) for row in rows]


# --- Organisations -------------------------------------------------------------------------------


def _leave_orgs(identity: Identity, user_id: str) -> list[RowOp]:
    """Return the steps by which a user leaves all organisations.

    Raises:
        LastOwner
    """
    orgs = org_entities(identity.app.manifest)
    if orgs is None:
        return []
    steps: list[RowOp] = []
    query = Query(equal("userId", user_id), _ORGS)
    for row_id, row in _find(identity, orgs.member, query):
        membership = orjson.loads(row)
        steps += _leave(identity, orgs, row_id, membership["orgId"], membership["role"])
    return steps


def _ending_orgs(identity: Identity, steps: Sequence[RowOp]) -> list[str]:
    """Return the organisations that end with these steps."""
    orgs = org_entities(identity.app.manifest)
    return [] if orgs is None else [
        step.row_id for step in steps
        if isinstance(step, DeleteRow) and step.entity == orgs.org.name
    ]


def _leave(
    identity: Identity, orgs: OrgEntities, row_id: str, org_id: str, role: str
) -> list[RowOp]:
    leave: RowOp = DeleteRow(orgs.member.name, row_id, ADMIN)
    if role != OWNER:
        return [leave]
    of_org = equal("orgId", org_id)
    owners = _find(identity, orgs.member, Query(and_(of_org, equal("role", OWNER)), 2))
    other = next((owner_id for owner_id, _ in owners if owner_id != row_id), None)
    if other is None:
        members = _find(identity, orgs.member, Query(of_org, 2))
        if len(members) > 1:
            raise LastOwner(
                "You are the only owner of an organisation that has other members",
                hint="Make another member an owner first, or delete the organisation",
            )
        invites = _find(identity, orgs.invite, Query(of_org, limits.ACCOUNT_STEP_ROWS))
        return [
            *(DeleteRow(orgs.invite.name, invite_id, ADMIN) for invite_id, _ in invites),
            leave, DeleteRow(orgs.org.name, org_id, ADMIN),
        ]
    found = identity.store.point(lambda reader: reader.get_version(orgs.member.name, other))
    if found is None or found[1] is None:
        raise NotFound("The other owner has left meanwhile")
    stays = UpdateRow(orgs.member.name, other, {"role": OWNER}, ADMIN, if_match=found[1])
    return [stays, leave]
