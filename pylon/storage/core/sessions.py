"""Session rules: decide which stored sessions are unused, and drop old ones.

Any client may make guest sessions, and a guest session lasts as long as any other. So a new guest
counts as unused until a worker has received its token. Maintenance drops unused guests long before
they expire.

Called by `engine`, within its transaction.
"""

from __future__ import annotations

from pylon.storage.core.transaction import MaintenanceRows, SessionRows
from pylon.storage.ops import PutSession
from pylon.storage.records import GuestStep, SessionRow


def put_session(rows: SessionRows, op: PutSession) -> None:
    """Store a session. A guest counts as unused, unless it has used an earlier token."""
    family = op.family or op.session_id
    auth_time_s = op.auth_time_s or op.created_at_s
    is_first = family == op.session_id
    rows.put_session(SessionRow(
        op.session_id, op.user_id, op.is_guest, op.created_at_s, op.expires_at_s, op.device,
        op.tenant_id, is_unused=op.is_guest and is_first, family=family, auth_time_s=auth_time_s,
        methods=op.methods, last_seen_at_s=op.last_seen_at_s or op.created_at_s,
        token_hint=op.token_hint,
    ))


def prune_guests(rows: MaintenanceRows, after_id: str, limit: int, seen_before_s: int) -> GuestStep:
    """Drop the guests that were last seen before a Unix time among the next `limit` sessions after
    an id."""
    found = rows.list_sessions(after_id, limit, seen_before_s)
    idle = [session_id for session_id, is_idle in found if is_idle]
    dropped = sum(rows.drop_session(session_id) for session_id in idle)
    return GuestStep(dropped, found[-1][0] if len(found) == limit else "")


def prune_sessions(rows: MaintenanceRows, limit: int, now_s: int, unused_before_s: int) -> int:
    """Drop at most `limit` expired sessions and at most `limit` unused guests.

    Args:
        unused_before_s: guests made before this Unix time are dropped.

    Returns: how many were dropped in all.
    """
    ended = rows.expired_sessions(now_s, limit)
    dropped = [rows.drop_session(session_id) for session_id in ended]
    unused = rows.unused_sessions(unused_before_s, limit)
    dropped += [rows.drop_session(session_id) for session_id in unused]
    return len(dropped)
