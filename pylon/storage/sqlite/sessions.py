"""Sessions in SQL: `_pylon_auth_sessions`, and `_pylon_unused_guests` (tokens never presented).

Sessions that are older than the second table count as used. The rules of sessions are in
`pylon.storage.core.sessions`.

Functions on a connection; the caller translates apsw's errors. Called by `transaction`, `reader`
and `maintenance`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import apsw

from pylon.storage.auth_ops import Condition
from pylon.storage.records import SessionRow
from pylon.storage.sql import record_sql
from pylon.storage.sqlite.records import DIALECT


def put(conn: apsw.Connection, session: SessionRow) -> None:
    """Store a session; it replaces one with the same id."""
    conn.execute(
        "INSERT OR REPLACE INTO _pylon_auth_sessions (session_id, user_id, is_guest, "
        "created_at, expires_at, device, tenant_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (session.session_id, session.user_id, int(session.is_guest), session.created_at_s,
         session.expires_at_s, session.device, session.tenant_id),
    )
    if session.is_unused:
        conn.execute(
            "INSERT OR REPLACE INTO _pylon_unused_guests (session_id, created_at) VALUES (?, ?)",
            (session.session_id, session.created_at_s),
        )


def drop(conn: apsw.Connection, session_id: str) -> int:
    """Remove a session. Return how many were removed (0 or 1)."""
    conn.execute("DELETE FROM _pylon_unused_guests WHERE session_id = ?", (session_id,))
    conn.execute("DELETE FROM _pylon_auth_sessions WHERE session_id = ?", (session_id,))
    return conn.changes()


def end(
    conn: apsw.Connection, where: Sequence[Condition], keep: Sequence[str], limit: int | None
) -> list[str]:
    """Remove the sessions that fulfil all conditions, but those of `keep`. Return their ids."""
    text, parameters = record_sql.session_ids(DIALECT, where, keep, limit)
    ended = [str(session_id) for (session_id,) in conn.execute(text, parameters)]
    for table in ("_pylon_unused_guests", "_pylon_auth_sessions"):
        conn.execute(
            f"DELETE FROM {table} WHERE session_id IN (SELECT value FROM json_each(?))",
            (json.dumps(ended),),
        )
    return ended


def mark_used(conn: apsw.Connection, session_ids: Sequence[str]) -> int:
    """Mark sessions as used. Return how many of them were unused before."""
    conn.execute(
        "DELETE FROM _pylon_unused_guests WHERE session_id IN (SELECT value FROM json_each(?))",
        (json.dumps(session_ids),),
    )
    return conn.changes()


def expired(conn: apsw.Connection, now_s: int, limit: int) -> list[str]:
    """Return the ids of at most `limit` expired sessions."""
    return _ids(
        conn,
        "SELECT session_id FROM _pylon_auth_sessions "
        "WHERE expires_at > 0 AND expires_at <= ? LIMIT ?",
        now_s, limit,
    )


def unused(conn: apsw.Connection, made_before_s: int, limit: int) -> list[str]:
    """Return the ids of at most `limit` unused guests made before that time."""
    return _ids(
        conn,
        "SELECT session_id FROM _pylon_unused_guests WHERE created_at < ? "
        "ORDER BY created_at LIMIT ?",
        made_before_s, limit,
    )


def _ids(conn: apsw.Connection, query: str, *params: int) -> list[str]:
    return [str(session_id) for (session_id,) in conn.execute(query, params)]


def count_by_kind(conn: apsw.Connection) -> dict[str, int]:
    """Return the number of stored sessions of guests and of users; a scan of the table."""
    counts = {"guest": 0, "user": 0}
    for is_guest, count in conn.execute(
        "SELECT is_guest <> 0, count(*) FROM _pylon_auth_sessions GROUP BY 1"
    ):
        counts["guest" if is_guest else "user"] = count
    return counts


def find(conn: apsw.Connection, session_id: str) -> SessionRow | None:
    """Return a session, also an expired one, or None."""
    row = conn.execute(
        "SELECT session_id, user_id, is_guest, created_at, expires_at, device, tenant_id, "
        "is_guest AND EXISTS (SELECT 1 FROM _pylon_unused_guests AS u "
        "WHERE u.session_id = s.session_id) "
        "FROM _pylon_auth_sessions AS s WHERE session_id = ?",
        (session_id,),
    ).fetchone()
    if row is None:
        return None
    found, user_id, is_guest, created_at_s, expires_at_s, device, tenant_id, is_unused = row
    return SessionRow(
        found, user_id, bool(is_guest), created_at_s, expires_at_s, device, tenant_id,
        bool(is_unused),
    )


def ends(conn: apsw.Connection, session_ids: Sequence[str]) -> dict[str, int]:
    """Return the end of each stored session in Unix seconds (0: never)."""
    return dict(conn.execute(
        "SELECT session_id, expires_at FROM _pylon_auth_sessions "
        "WHERE session_id IN (SELECT value FROM json_each(?))",
        (json.dumps(session_ids),),
    ))
