"""Protected fields: those that no client receives, and those that clients may not write.

*Hidden* fields leave the server on no path, whatever policies say: those marked `serverOnly`, and
by their name the secrets of the user entity and of the invite entity (spec/identity.md §2.3).
*Managed* fields of the user entity belong to sign-in: clients read them, and only the server and
administrators write them. A hidden field is read-only, too. So is each field of the entities of
members and invites of organisations, if the app has organisations, and the fields of an
organisation that its routes write; clients neither insert nor delete rows of these.

The names live here only. `build` marks the fields of the model with them (`Field.server_only`,
`Field.is_managed`); whoever reads or writes rows looks at the model. `email` is not in the table:
it is managed from the moment the row has an identity, which only the transaction of a write can
tell. That check belongs into `pylon.storage.core.rows.RowWrites.update`, beside the one of the
field names, with the identities of the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

_DEFAULT_USER: Final = "User"
_DEFAULT_ORG: Final = "Org"
_DEFAULT_MEMBER: Final = "OrgMember"
_DEFAULT_INVITE: Final = "OrgInvite"
_SECRETS_OF_USERS: Final = frozenset({"passwordHash"})
_SECRET_PREFIXES_OF_USERS: Final = ("totp",)
_SECRETS_OF_INVITES: Final = frozenset({"tokenHash"})
_MANAGED: Final = frozenset({
    "emailVerified", "phone", "phoneVerified", "walletAddress", "isAnonymous",
})
_MANAGED_PREFIXES: Final = ("scim",)
_MANAGED_OF_ORGS: Final = frozenset({"name", "createdAt", "createdBy"})


class ProtectedNames(msgspec.Struct, frozen=True):
    """The entities with protected fields, as one manifest calls them."""

    user_entity: str = _DEFAULT_USER
    invite_entity: str = _DEFAULT_INVITE
    admin_field: str | None = None
    org_entities: tuple[str, str, str] | None = None  # org, member, invite; None: there are none

    def is_secret(self, entity: str, field: str) -> bool:
        """Whether a field is hidden because of its name."""
        if entity == self.user_entity:
            return field in _SECRETS_OF_USERS or field.startswith(_SECRET_PREFIXES_OF_USERS)
        return entity == self.invite_entity and field in _SECRETS_OF_INVITES

    def is_managed(self, entity: str, field: str) -> bool:
        """Whether sign-in manages a field."""
        if self.org_entities is not None and entity in self.org_entities:
            return entity != self.org_entities[0] or field in _MANAGED_OF_ORGS
        return entity == self.user_entity and (
            field in _MANAGED or field == self.admin_field or field.startswith(_MANAGED_PREFIXES)
        )

    def is_managed_entity(self, entity: str) -> bool:
        """Whether clients may neither insert nor delete rows of an entity."""
        return self.org_entities is not None and entity in self.org_entities


def protected_names(source: object) -> ProtectedNames:
    """Return the names of a manifest's document, which may have errors."""
    auth = _object(source, "auth")
    user, org = _object(auth, "user"), _object(auth, "org")
    invite = _text(org, "invite_entity") or _DEFAULT_INVITE
    has_orgs = isinstance(auth.get("org"), Mapping) and not org.get("disabled")
    return ProtectedNames(
        _text(user, "entity") or _DEFAULT_USER, invite, _text(user, "admin_field"),
        (
            _text(org, "entity") or _DEFAULT_ORG, _text(org, "member_entity") or _DEFAULT_MEMBER,
            invite,
        ) if has_orgs else None,
    )


def _object(source: object, key: str) -> Mapping[str, Any]:
    found = source.get(key) if isinstance(source, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _text(source: Mapping[str, Any], key: str) -> str | None:
    found = source.get(key)
    return found if isinstance(found, str) and found else None
