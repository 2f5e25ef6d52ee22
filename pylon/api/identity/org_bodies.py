"""Bodies and answers of the routes of organisations (spec/identity.md §1.9).

Times are Unix seconds. Called by `pylon.api.identity.routes`, and by the flows of organisations.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pylon.body_types import BodyType, Refusal
from pylon.errors import BadRole, InvalidData, InvalidEmail, MissingName


class OrgBody(msgspec.Struct, frozen=True, kw_only=True):
    """The name of an organisation."""

    name: Annotated[str, Refusal(MissingName, InvalidData)]


class RoleBody(msgspec.Struct, frozen=True, kw_only=True):
    """The new role of a member."""

    role: Annotated[str, Refusal(BadRole)]


class InviteBody(msgspec.Struct, frozen=True, kw_only=True):
    """The address that is invited, and its role."""

    email: Annotated[str, Refusal(InvalidEmail)]
    role: Annotated[str, Refusal(BadRole)] = "member"


class SelectOrgBody(msgspec.Struct, frozen=True, kw_only=True):
    """The organisation to work in; null or an empty text: none."""

    orgId: Annotated[Any, Meta(  # noqa: N815  (the wire's own word)
        extra_json_schema={"anyOf": [{"type": "string"}, {"type": "null"}]},
    )] = msgspec.UNSET


class OrgAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An organisation, and the caller's role in it."""

    id: str
    name: str
    created_at: int
    role: str


class RenamedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An organisation with its new name."""

    id: str
    name: str


class DeletedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Something was deleted."""

    deleted: bool = True


class MemberAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A member of an organisation."""

    user_id: str
    role: str
    joined_at: int
    name: str | None
    email: str | None
    avatar_url: str | None


class RoleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A role that has changed."""

    role: str
    updated: bool = True


class RemovedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A member was removed."""

    removed: bool = True


class InviteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A new invite. Its token goes to the address by mail, and in dev mode also here."""

    id: str
    email: str
    role: str
    expires_at: int
    accept_url: str | None
    token: str | None


class ListedInvite(msgspec.Struct, frozen=True, kw_only=True):
    """An invite that waits."""

    id: str
    email: str
    role: str
    token_prefix: str
    invited_by: str
    created_at: int
    expires_at: int


class AcceptedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The organisation that the caller has joined."""

    org_id: str
    role: str


class TenantAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The organisation that the session works in."""

    tenantId: str | None  # noqa: N815  (the wire's own word)


ORG: Final = BodyType(OrgBody, '{"name": "Example Ltd"}')
ROLE: Final = BodyType(RoleBody, '{"role": "admin"}')
INVITE: Final = BodyType(InviteBody, '{"email": "ann@example.com", "role": "member"}')
SELECT_ORG: Final = BodyType(SelectOrgBody, '{"orgId": "..."}')
