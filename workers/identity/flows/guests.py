"""``POST /api/auth/upgrade``: makes a guest's session a user's, for developers and admins.

The token stays, and the guest's rows become the user's (`carry_over`). The session gets a family of
its own, so the sockets of the guest close with 4401, and come back as the user.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pylon.api.identity.guest_bodies import UpgradeBody
from pylon.auth.revocation import ended_families
from pylon.auth.tokens import is_session_token, session_id_of
from pylon.auth.transactions import Step, carry_out
from pylon.auth_context import AuthContext
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.bus.messages import SessionRevoked
from pylon.errors import (
    Forbidden,
    NotFound,
    RecordConflict,
    UniqueViolation,
    UpgradeFailed,
)
from pylon.storage.auth_ops import Condition, SetRecords
from pylon.storage.records import SessionRow
from workers.identity.carry_over import plan_carry
from workers.identity.identity import Call, Identity

_TRIES: Final = 3
_FAMILY_BYTES: Final = 32


def upgrade(identity: Identity, call: Call) -> IdentityAnswer:
    """Carry out the flow.

    Raises:
        Forbidden: the caller is no administrator, and the server is not in dev mode.
        UpgradeFailed: there is no session of a guest.
    """
    facts = call.facts
    if not identity.app.config.dev_mode and not facts.auth.is_admin:
        raise Forbidden("/api/auth/upgrade requires admin auth in non-dev mode")
    body = call.decode(UpgradeBody)
    guest = _guest_of(identity, call, body.token)
    of_guest = msgspec.structs.replace(facts, auth=AuthContext(
        user_id=guest.user_id, is_guest=True, tenant_id=guest.tenant_id
    ))
    for tries_left in reversed(range(_TRIES)):
        carry = plan_carry(
            identity, of_guest, body.user_id, moves_rows=tries_left > 0,
            keep_sessions=[guest.session_id],
        )
        assert carry is not None, "the session is a guest's"
        steps: list[Step] = [SetRecords(
            "sessions",
            [Condition("session_id", "=", guest.session_id), Condition("rotated_at", "null")],
            {"user_id": body.user_id, "is_guest": 0,
             "family": identity.app.random.token_hex(_FAMILY_BYTES)},
            1,
        ), *carry.steps]
        try:
            replies = carry_out(identity.writer.submit, steps)
        except RecordConflict:
            raise UpgradeFailed("The guest's session has ended or was refreshed") from None
        except (NotFound, UniqueViolation):
            continue  # a row has changed since it was read: plan again
        for family in {guest.family, *ended_families(replies)}:
            identity.send_signal(SessionRevoked(family))
        return json_answer({"upgraded": True, "user_id": body.user_id, **carry.extra()})
    raise AssertionError("the last try moves no rows, so none can have changed")


def _guest_of(identity: Identity, call: Call, token: str | None) -> SessionRow:
    """Return the session to upgrade: that of the token, or else of the caller."""
    session_id = call.facts.session_id
    if token is not None:
        session_id = session_id_of(token) if is_session_token(token) else None
    row = None
    if session_id is not None:
        found_id = session_id
        row = identity.store.point(lambda reader: reader.session(found_id))
    if row is None or not row.is_guest:
        raise UpgradeFailed(
            "There is no session of a guest to upgrade",
            hint="Send the guest's token in the Authorization header, or as `token`",
        )
    return row
