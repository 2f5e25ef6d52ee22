"""Organisations: what the flows of organisations, members and invites share.

Rows of three entities hold them (`pylon.manifest.org_entities`). A write of these flows is an
administrator's to the store, since policies let nobody write them; the flows check who may do what.

Invariant: an organisation with members has an owner, also if two owners leave at once: the
transaction that takes an owner away writes another one as owner (`keep_owner`), which fails if that
one has gone meanwhile. Called by the flows of organisations and invites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from pylon import limits
from pylon.auth.audit import audit_step
from pylon.auth.org_roles import find_member, holds_role
from pylon.auth.transactions import Step, carry_out
from pylon.auth_context import ADMIN as ADMINISTRATOR
from pylon.bus.identity import IdentityAnswer
from pylon.clock import NS_PER_S
from pylon.errors import (
    AuthRequired,
    BadRole,
    Forbidden,
    LastOwner,
    MissingTotp,
    NotFound,
    OrgNotConfigured,
    OrgNotFound,
    PreconditionFailed,
    RecordConflict,
    Unavailable,
)
from pylon.manifest.model import Entity, FieldType
from pylon.manifest.org_entities import ADMIN, OWNER, ROLES, OrgEntities, org_entities
from pylon.query.conditions import and_, equal
from pylon.query.predicate import Predicate
from pylon.query.rows import Query
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from pylon.storage.ops import DeleteRow, InsertRow, UpdateRow
from pylon.values.defaults import instant_text
from workers.identity.identity import Call, Identity

Row = dict[str, Any]

_ATTEMPTS: Final = 3
_CHANGED: Final = (PreconditionFailed, NotFound, RecordConflict)  # the rows are not as they were


@dataclass(frozen=True, slots=True)
class Place:
    """An organisation, and the caller's place in it."""

    entities: OrgEntities
    org_id: str
    user_id: str
    role: str

    @property
    def is_owner(self) -> bool:
        """Whether the caller owns the organisation."""
        return self.role == OWNER

    def require_manager(self) -> None:
        """Check that the caller is an owner or an admin.

        Raises:
            Forbidden
        """
        if self.role not in (OWNER, ADMIN):
            raise Forbidden("Insufficient role", hint="Ask an owner or an admin of it")


def entities_of(identity: Identity) -> OrgEntities:
    """Return the entities of organisations.

    Raises:
        OrgNotConfigured: the app has none.
    """
    found = org_entities(identity.app.manifest)
    if found is None:
        raise OrgNotConfigured(
            "This app has no organisations",
            hint='Add "org": {} to auth in the manifest, or the missing fields to its entities',
        )
    return found


def user_of(call: Call) -> str:
    """Return the caller's user id.

    Raises:
        AuthRequired: the caller is a guest.
    """
    auth = call.facts.auth
    if auth.user_id is None or auth.is_guest:
        raise AuthRequired("Login required", hint="Guests have no organisations: sign in")
    return auth.user_id


def place_of(identity: Identity, call: Call) -> Place:
    """Return the caller's place in the organisation of the path.

    Raises:
        OrgNotFound: the caller is no member of it.
        MissingTotp: the caller's role needs an authenticator app.
    """
    entities, user_id = entities_of(identity), user_of(call)
    org_id = call.params["org_id"]
    member = member_of(identity, org_id, user_id)
    if member is None:
        raise OrgNotFound("There is no such organisation of yours")
    role, manifest = str(member["role"]), identity.app.manifest
    if not identity.store.point(lambda reader: holds_role(reader, manifest, user_id, role)):
        raise MissingTotp(
            f'The role "{role}" needs an authenticator app', hint="Set one up, then try again"
        )
    return Place(entities, org_id, user_id, role)


def member_of(identity: Identity, org_id: str, user_id: str) -> Row | None:
    """Return the row of a member; None if the user is none."""
    manifest = identity.app.manifest
    return identity.store.point(lambda reader: find_member(reader, manifest, org_id, user_id))


def rows_of(identity: Identity, entity: Entity, where: Predicate) -> list[Row]:
    """Return the rows of an entity that meet a condition, at most `limits.ORG_ROWS`."""
    found = identity.store.scan(
        lambda reader: reader.rows(entity.name, Query(where, limit=limits.ORG_ROWS)),
        caller="organisations",
    )
    return [orjson.loads(row) for row in found]


def version_of(identity: Identity, entity: Entity, row_id: str) -> int | None:
    """Return the version of a row; None if it is not known, or if there is no such row."""
    found = identity.store.point(lambda reader: reader.get_version(entity.name, row_id))
    return None if found is None else found[1]


def check_role(identity: Identity, role: str) -> None:
    """Check that a role is one of the app.

    Raises:
        BadRole
    """
    roles = (*ROLES, *identity.app.manifest.auth.org_roles)
    if role not in roles:
        raise BadRole(f"role must be one of: {', '.join(roles)}")


def keep_owner(identity: Identity, place: Place, leaving_id: str) -> Step:
    """Return the step by which an owner remains when another one leaves.

    Args:
        leaving_id: the row of the member who is an owner no longer.

    Raises:
        LastOwner: there is no other owner.
    """
    member = place.entities.member
    owners = rows_of(
        identity, member, and_(equal("orgId", place.org_id), equal("role", OWNER))
    )
    for owner in owners:
        if owner["id"] != leaving_id:
            return UpdateRow(
                member.name, owner["id"], {"role": OWNER}, ADMINISTRATOR,
                if_match=version_of(identity, member, owner["id"]),
            )
    raise LastOwner(
        "The organisation would have no owner", hint="Make another member an owner first"
    )


def insert(
    identity: Identity, entity: Entity, body: Row
) -> tuple[str, InsertRow]:
    """Return the id of a new row, and the step that inserts it."""
    app = identity.app
    row_id = app.ids.new()
    filled = app.defaults[entity.name].fill(body, row_id, ADMINISTRATOR)
    encoded = app.codecs[entity.name].insert(filled, row_id)
    return row_id, InsertRow(entity.name, row_id, encoded.values, encoded.row_json)


def update(entity: Entity, row_id: str, patch: Row, version: int | None = None) -> UpdateRow:
    """Return the step that changes a row."""
    return UpdateRow(entity.name, row_id, patch, ADMINISTRATOR, if_match=version)


def delete(entity: Entity, row_id: str, version: int | None = None) -> DeleteRow:
    """Return the step that deletes a row."""
    return DeleteRow(entity.name, row_id, ADMINISTRATOR, if_match=version)


def leave_tenant(org_id: str, user_id: str | None = None) -> SetRecords:
    """Return the step by which sessions have the organisation as tenant no longer.

    Args:
        user_id: whose sessions; None: all.
    """
    where = [Condition("tenant_id", "=", org_id)]
    if user_id is not None:
        where.append(Condition("user_id", "=", user_id))
    return SetRecords("sessions", where, {"tenant_id": None})


def audit(
    identity: Identity, call: Call, action: str, org_id: str, *, about: str | None = None,
    **metadata: Any,
) -> PutRecord:
    """Return the step that records an event of an organisation.

    Args:
        about: the user that it is about; None: the caller.
    """
    facts = call.facts
    user_id = facts.auth.user_id
    return audit_step(
        action, identity.app.clock, identity.app.random,
        user_id=user_id if about is None else about, actor_id=user_id, tenant_id=org_id,
        ip=facts.address, user_agent=facts.device, metadata=metadata or None,
    )


def carry_out_again(
    identity: Identity, attempt: Callable[[], tuple[Sequence[Step], IdentityAnswer]]
) -> IdentityAnswer:
    """Carry out the steps of an attempt, which reads anew if rows have changed meanwhile.

    Raises:
        PylonError: of the attempt, or of a step.
        Unavailable: the rows change all the time.
    """
    for _ in range(_ATTEMPTS):
        try:
            steps, answer = attempt()
        except (PreconditionFailed, RecordConflict):
            continue  # of a sign-in, which carries its steps out itself
        try:
            if steps:
                carry_out(identity.writer.submit, steps)
        except _CHANGED:
            continue
        return answer
    raise Unavailable("Other requests change the organisation", hint="Try again in a moment")


def time_in(entity: Entity, field: str, now_s: int) -> Any:
    """Return a time as the value of a field."""
    if entity.by_name[field].type in (FieldType.INT, FieldType.FLOAT):
        return now_s
    return instant_text(now_s * NS_PER_S)


def seconds_of(value: Any) -> int:
    """Return the Unix seconds of a field that `time_in` has set; 0 for what is no time."""
    if isinstance(value, int | float):
        return int(value)
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return 0
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
