"""Flows of organisations and their members (spec/identity.md §1.9).

Owners and admins manage members; only owners make or unmake owners. Anybody may leave, but the last
owner. Clients see the outcome as changes of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from pylon.api.identity.org_bodies import (
    DeletedAnswer,
    MemberAnswer,
    OrgAnswer,
    OrgBody,
    RemovedAnswer,
    RenamedAnswer,
    RoleAnswer,
    RoleBody,
    SelectOrgBody,
    TenantAnswer,
)
from pylon.auth.display_names import clean_name
from pylon.auth.transactions import Step, carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.bus.messages import SessionRevoked
from pylon.errors import Forbidden, MissingName, MissingOrgId, NoMember, OrgNotFound
from pylon.manifest.org_entities import OWNER
from pylon.manifest.owned_fields import org_fields
from pylon.query.conditions import equal
from pylon.storage.auth_ops import Condition, SetRecords
from workers.identity import orgs
from workers.identity.identity import Call, Identity
from workers.identity.owned_rows import empty_rows


def create(identity: Identity, call: Call) -> IdentityAnswer:
    """Make an organisation, whose owner the caller is."""
    name = _name_of(call)
    entities, user_id, now_s = orgs.entities_of(identity), orgs.user_of(call), identity.now_s()
    org, member = entities.org, entities.member
    org_id, made = orgs.insert(identity, org, {
        "name": name, "createdAt": orgs.time_in(org, "createdAt", now_s), "createdBy": user_id,
    })
    _, joined = orgs.insert(identity, member, {
        "orgId": org_id, "userId": user_id, "role": OWNER,
        "joinedAt": orgs.time_in(member, "joinedAt", now_s),
    })
    carry_out(
        identity.writer.submit,
        [made, joined, orgs.audit(identity, call, "org_create", org_id, name=name)],
    )
    return json_answer(OrgAnswer(id=org_id, name=name, created_at=now_s, role=OWNER))


def list_orgs(identity: Identity, call: Call) -> IdentityAnswer:
    """List the organisations of the caller."""
    entities, user_id = orgs.entities_of(identity), orgs.user_of(call)
    found = [
        _org_answer(identity, str(member["orgId"]), str(member["role"]))
        for member in orgs.rows_of(identity, entities.member, equal("userId", user_id))
    ]
    return json_answer([org for org in found if org is not None])


def get(identity: Identity, call: Call) -> IdentityAnswer:
    """Return an organisation of the caller."""
    place = orgs.place_of(identity, call)
    found = _org_answer(identity, place.org_id, place.role)
    if found is None:
        raise OrgNotFound("There is no such organisation of yours")
    return json_answer(found)


def rename(identity: Identity, call: Call) -> IdentityAnswer:
    """Change the name of an organisation."""
    name = _name_of(call)
    place = orgs.place_of(identity, call)
    place.require_manager()
    carry_out(identity.writer.submit, [
        orgs.update(place.entities.org, place.org_id, {"name": name}),
        orgs.audit(identity, call, "org_rename", place.org_id, name=name),
    ])
    return json_answer(RenamedAnswer(id=place.org_id, name=name))


def delete(identity: Identity, call: Call) -> IdentityAnswer:
    """Delete an organisation with its members, its invites, and its rows as `auth.org.on_delete`
    says."""
    place = orgs.place_of(identity, call)
    if not place.is_owner:
        raise Forbidden("Insufficient role", hint="Only owners delete an organisation")
    fields = org_fields(identity.app.manifest)
    empty_rows(identity, fields, place.org_id)
    steps: list[Step] = [orgs.leave_tenant(place.org_id)]
    for entity in (place.entities.invite, place.entities.member):
        if entity.by_name["orgId"].on_delete != "cascade":
            rows = orgs.rows_of(identity, entity, equal("orgId", place.org_id))
            steps += [orgs.delete(entity, row["id"]) for row in rows]
    steps.append(orgs.delete(place.entities.org, place.org_id))
    steps.append(orgs.audit(identity, call, "org_delete", place.org_id))
    carry_out(identity.writer.submit, steps)
    empty_rows(identity, fields, place.org_id)  # rows that came meanwhile
    return json_answer(DeletedAnswer())


def list_members(identity: Identity, call: Call) -> IdentityAnswer:
    """List the members of an organisation of the caller."""
    place = orgs.place_of(identity, call)
    found = orgs.rows_of(identity, place.entities.member, equal("orgId", place.org_id))
    return json_answer([_member_answer(identity, row) for row in found])


def set_role(identity: Identity, call: Call) -> IdentityAnswer:
    """Give a member another role."""
    role = call.decode(RoleBody).role

    def attempt() -> tuple[Sequence[Step], IdentityAnswer]:
        place = orgs.place_of(identity, call)
        place.require_manager()
        orgs.check_role(identity, role)
        if role == OWNER and not place.is_owner:
            raise Forbidden("Only owners can promote a member to owner")
        row = _target(identity, place, call)
        steps = _without_owner(identity, place, row) if role != OWNER else []
        version = orgs.version_of(identity, place.entities.member, row["id"])
        return [
            *steps, orgs.update(place.entities.member, row["id"], {"role": role}, version),
            orgs.audit(
                identity, call, "org_role_change", place.org_id, about=str(row["userId"]),
                role=role,
            ),
        ], json_answer(RoleAnswer(role=role))

    return orgs.carry_out_again(identity, attempt)


def remove_member(identity: Identity, call: Call) -> IdentityAnswer:
    """Remove a member, or leave."""

    def attempt() -> tuple[Sequence[Step], IdentityAnswer]:
        place = orgs.place_of(identity, call)
        user_id = call.params["user_id"]
        if user_id != place.user_id:
            place.require_manager()
        row = _target(identity, place, call)
        version = orgs.version_of(identity, place.entities.member, row["id"])
        return [
            *_without_owner(identity, place, row),
            orgs.delete(place.entities.member, row["id"], version),
            orgs.leave_tenant(place.org_id, user_id),
            orgs.audit(identity, call, "org_member_remove", place.org_id, about=user_id),
        ], json_answer(RemovedAnswer())

    return orgs.carry_out_again(identity, attempt)


def select(identity: Identity, call: Call) -> IdentityAnswer:
    """Have the session work in an organisation of the caller, or in none.

    The sockets of the session close, since they act for the tenant before.
    """
    wanted = call.decode(SelectOrgBody).orgId
    if wanted is not None and not isinstance(wanted, str):
        raise MissingOrgId("orgId must be the id of an organisation, or null")
    facts, org_id = call.facts, wanted or None
    orgs.entities_of(identity)
    if org_id is not None and orgs.member_of(identity, org_id, orgs.user_of(call)) is None:
        refusal = NoMember("You are no member of this organisation")
        return json_answer(refusal.body(), 403)
    family = facts.family or facts.session_id
    carry_out(identity.writer.submit, [
        SetRecords("sessions", [Condition("family", "=", family)], {"tenant_id": org_id}),
        SetRecords(
            "sessions", [Condition("session_id", "=", facts.session_id)], {"tenant_id": org_id}
        ),
    ])
    if org_id != facts.auth.tenant_id and family is not None:
        identity.send_signal(SessionRevoked(family))
    return json_answer(TenantAnswer(tenantId=org_id))


def _name_of(call: Call) -> str:
    name = call.decode(OrgBody).name
    if not name.strip():
        raise MissingName("name is required")
    return clean_name(name)


def _target(identity: Identity, place: orgs.Place, call: Call) -> orgs.Row:
    """Return the row of the member of the path, whom the caller may change.

    Raises:
        NoMember, Forbidden
    """
    row = orgs.member_of(identity, place.org_id, call.params["user_id"])
    if row is None:
        raise NoMember("This user is no member of the organisation")
    if row["role"] == OWNER and not place.is_owner:
        raise Forbidden("Insufficient role", hint="Only owners change an owner")
    return row


def _without_owner(identity: Identity, place: orgs.Place, row: orgs.Row) -> list[Step]:
    """Return the step that keeps an owner, if the member is one."""
    return [orgs.keep_owner(identity, place, row["id"])] if row["role"] == OWNER else []


def _org_answer(identity: Identity, org_id: str, role: str) -> OrgAnswer | None:
    entity = orgs.entities_of(identity).org
    raw = identity.store.point(lambda reader: reader.get(entity.name, org_id))
    if raw is None:
        return None
    row = orjson.loads(raw)
    return OrgAnswer(
        id=org_id, name=str(row["name"]), created_at=orgs.seconds_of(row["createdAt"]), role=role
    )


def _member_answer(identity: Identity, row: orgs.Row) -> MemberAnswer:
    user = _user_row(identity, str(row["userId"]))
    return MemberAnswer(
        user_id=str(row["userId"]), role=str(row["role"]),
        joined_at=orgs.seconds_of(row["joinedAt"]),
        name=_text(user, "displayName") or _text(user, "name"), email=_text(user, "email"),
        avatar_url=_text(user, "avatarUrl"),
    )


def _user_row(identity: Identity, user_id: str) -> dict[str, Any]:
    entity = identity.app.manifest.by_name.get(identity.app.manifest.auth.user_entity)
    if entity is None:
        return {}
    raw = identity.store.point(lambda reader: reader.get(entity.name, user_id))
    found: dict[str, Any] = {} if raw is None else orjson.loads(raw)
    return found


def _text(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    return value if isinstance(value, str) else None
