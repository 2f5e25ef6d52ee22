"""`_pylon_auth_sessions`: who is signed in.

Rows are written by the engine and read by whoever resolves tokens and watches sockets. Functions
on a connection; apsw's errors are the caller's to translate.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import apsw

from pylon.bus.messages import PutSession
from pylon.storage.contract import SessionRow


def put(conn: apsw.Connection, session: PutSession) -> None:
    """Keep a session."""
    conn.execute(
        "INSERT OR REPLACE INTO _pylon_auth_sessions (session_id, user_id, is_guest, "
        "created_at, expires_at, device, tenant_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (session.session_id, session.user_id, int(session.is_guest), session.created_at_s,
         session.expires_at_s, session.device, session.tenant_id),
    )


def drop(conn: apsw.Connection, session_id: str) -> int:
    """End a session; how many there were (0 or 1)."""
    conn.execute("DELETE FROM _pylon_auth_sessions WHERE session_id = ?", (session_id,))
    return conn.changes()


def drop_expired(conn: apsw.Connection, now_s: int, limit: int) -> int:
    """Forget sessions that are over, `limit` at most; how many there were."""
    conn.execute(
        "DELETE FROM _pylon_auth_sessions WHERE session_id IN "
        "(SELECT session_id FROM _pylon_auth_sessions "
        "WHERE expires_at > 0 AND expires_at <= ? LIMIT ?)",
        (now_s, limit),
    )
    return conn.changes()


def count_by_kind(conn: apsw.Connection) -> dict[str, int]:
    """How many sessions are stored, of guests and of users; a scan of the table."""
    counts = {"guest": 0, "user": 0}
    for is_guest, count in conn.execute(
        "SELECT is_guest <> 0, count(*) FROM _pylon_auth_sessions GROUP BY 1"
    ):
        counts["guest" if is_guest else "user"] = count
    return counts


def find(conn: apsw.Connection, session_id: str) -> SessionRow | None:
    """A session, over or not."""
    row = conn.execute(
        "SELECT session_id, user_id, is_guest, created_at, expires_at, device, tenant_id "
        "FROM _pylon_auth_sessions WHERE session_id = ?",
        (session_id,),
    ).fetchone()
    if row is None:
        return None
    found, user_id, is_guest, created_at_s, expires_at_s, device, tenant_id = row
    return SessionRow(
        found, user_id, bool(is_guest), created_at_s, expires_at_s, device, tenant_id
    )


def ends(conn: apsw.Connection, session_ids: Sequence[str]) -> dict[str, int]:
    """When each of the sessions ends, in unix seconds (0: never); without those that are gone."""
    return dict(conn.execute(
        "SELECT session_id, expires_at FROM _pylon_auth_sessions "
        "WHERE session_id IN (SELECT value FROM json_each(?))",
        (json.dumps(session_ids),),
    ))
