"""Audit routes: the newest records of a user, of an organisation, and of all (http.md §3.11.9).

Users read their own records. Owners and admins of an organisation read the records of the members
while they had it selected. Administrators read all, and page by `before` (Unix seconds).

Bound: `limits.AUDIT_LISTED` records an answer, the newest first. Called by `workers.identity`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pylon import limits
from pylon.api.identity.account_bodies import AuditEntry
from pylon.auth.audit import audit_json
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import SHOWN_CHARS, Forbidden, InvalidQuery, NoActiveTenant
from pylon.manifest.org_entities import ADMIN, OWNER
from pylon.storage.auth_ops import Condition
from workers.identity.identity import Call, Identity

_LIMIT = 100  # of a request that names none
_DIGITS = 10


def list_own(identity: Identity, call: Call) -> IdentityAnswer:
    """Return the records of the caller's account."""
    return _listed(identity, call, [Condition("user_id", "=", call.facts.auth.user_id)])


def list_of_tenant(identity: Identity, call: Call) -> IdentityAnswer:
    """Return the records of the caller's organisation.

    Raises:
        NoActiveTenant, Forbidden
    """
    auth = call.facts.auth
    if auth.tenant_id is None:
        raise NoActiveTenant("No organisation is selected")
    if not {OWNER, ADMIN}.intersection(auth.roles):
        raise Forbidden("Only owners and admins of an organisation read its audit log")
    return _listed(identity, call, [Condition("tenant_id", "=", auth.tenant_id)])


def list_all(identity: Identity, call: Call) -> IdentityAnswer:
    """Return the records of all accounts, or those that the parameters select."""
    where = [
        Condition(name, "=", call.params[name])
        for name in ("user_id", "tenant_id", "action") if name in call.params
    ]
    before_s = _number(call, "before")
    if before_s is not None:
        where.append(Condition("created_at", "<", before_s))
    return _listed(identity, call, where)


def _listed(identity: Identity, call: Call, where: Sequence[Condition]) -> IdentityAnswer:
    limit = _number(call, "limit")
    wanted = _LIMIT if limit is None else min(limit, limits.AUDIT_LISTED)
    records = identity.store.point(
        lambda reader: reader.records("audit", where, ("-created_at", "-id"), wanted)
    )
    entries = [audit_json(record) for record in records]
    return json_answer(msgspec.convert(entries, list[AuditEntry]))


def _number(call: Call, name: str) -> int | None:
    """Return a parameter that is a whole number; None if it is absent.

    Raises:
        InvalidQuery
    """
    text = call.params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise InvalidQuery(
            f'The parameter {name} is "{text[:SHOWN_CHARS]}"',
            hint="send a whole number, such as 100",
        )
    return int(text)
