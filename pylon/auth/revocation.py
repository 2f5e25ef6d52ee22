"""Revocation: the steps of a transaction that end sessions, and the families that they have ended.

A revocation ends whole families, since each token of a family stands for the same sign-in. Sessions
of servers before there were families have none, and count as a family of their own.

Every worker and node learns of an end within a second, by the store (`pylon.auth.session_cache`,
`workers.hub.sessions`). Signals (`SessionRevoked`) are faster. Called by the resources of sessions,
the flows of the identity workers, and `pylonctl`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pylon import limits
from pylon.storage.auth_ops import Condition, EndSessions, RecordOp, SetRecords
from pylon.storage.ops import WriteReply

_families = msgspec.json.Decoder(list[str])


def end_family(family: str) -> list[RecordOp]:
    """Return the steps that end a family of sessions."""
    return [
        EndSessions([Condition("family", "=", family)]),
        EndSessions([Condition("session_id", "=", family)]),
    ]


def end_sessions_of(user_id: str, *, keep_family: str | None = None) -> list[RecordOp]:
    """Return the steps that end the sessions of a user.

    Args:
        keep_family: the family that stays, if any.
    """
    of_user = Condition("user_id", "=", user_id)
    if keep_family is None:
        return [EndSessions([of_user])]
    return [
        EndSessions([of_user, Condition("family", "!=", keep_family)]),
        EndSessions([
            of_user, Condition("family", "null"), Condition("session_id", "!=", keep_family),
        ]),
    ]


def end_credentials_of(user_id: str, now_s: int) -> list[RecordOp]:
    """Return the steps that end all sessions of a user, and the JWTs made until now."""
    return [*end_sessions_of(user_id), void_jwts(user_id, now_s)]


def void_jwts(user_id: str, now_s: int) -> RecordOp:
    """Return the step that ends the JWTs of a user that were made until now."""
    return SetRecords(
        "users", [Condition("user_id", "=", user_id)], {"tokens_valid_from": now_s + 1}
    )


def ended_families(replies: Sequence[WriteReply]) -> list[str]:
    """Return the families that the replies of a transaction name, each once.

    The replies of other steps than `EndSessions` name none.
    """
    found: dict[str, None] = {}
    for reply in replies:
        if reply.row_id.startswith("["):
            found.update(dict.fromkeys(_families.decode(reply.row_id)))
    return list(found)


def announced(families: Sequence[str]) -> Sequence[str]:
    """Return the families to signal. Receivers look all of theirs up after a large revocation."""
    return families if len(families) <= limits.SESSIONS_ANNOUNCED else ()
