"""Sessions in SQL: `_pylon_auth_sessions`, and `_pylon_unused_guests` (tokens never presented).

Sessions that are older than the second table count as used. The rules of sessions are in
`pylon.storage.core.sessions`.

Functions on a connection; the caller translates apsw's errors. Called by `transaction`, `reader`
and `maintenance`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import apsw

from pylon.storage.auth_ops import Condition
from pylon.storage.records import SessionNote, SessionRow
from pylon.storage.sql import record_sql
from pylon.storage.sqlite.records import DIALECT

_LAST_END: Final = "CASE WHEN min(expires_at) = 0 THEN 0 ELSE max(expires_at) END"


def put(conn: apsw.Connection, session: SessionRow) -> None:
    """Store a session; it replaces one with the same id."""
    conn.execute(
        "INSERT OR REPLACE INTO _pylon_auth_sessions (session_id, user_id, is_guest, "
        "created_at, expires_at, device, tenant_id, family, auth_time, methods, last_seen_at, "
        "token_hint) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (session.session_id, session.user_id, int(session.is_guest), session.created_at_s,
         session.expires_at_s, session.device, session.tenant_id, session.family,
         session.auth_time_s, session.methods, session.last_seen_at_s, session.token_hint),
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
    """Remove the sessions that fulfil all conditions, but those of `keep`. Return the family of
    each."""
    text, parameters = record_sql.session_ids(DIALECT, where, keep, limit)
    families = {str(row[0]): str(row[1]) for row in conn.execute(text, parameters)}
    ended = list(families)
    for table in ("_pylon_unused_guests", "_pylon_auth_sessions"):
        conn.execute(
            f"DELETE FROM {table} WHERE session_id IN (SELECT value FROM json_each(?))",
            (json.dumps(ended),),
        )
    return list(families.values())


def note_used(conn: apsw.Connection, session_ids: Sequence[str], note: SessionNote) -> int:
    """Note the use of sessions. Return how many have changed."""
    ids = json.dumps(session_ids)
    conn.execute(
        "DELETE FROM _pylon_unused_guests WHERE session_id IN (SELECT value FROM json_each(?))",
        (ids,),
    )
    changed = conn.changes()
    conn.execute(
        "UPDATE _pylon_auth_sessions SET last_seen_at = ?1, expires_at = CASE "
        "WHEN expires_at = 0 OR ?3 = 0 THEN expires_at "
        "WHEN ?4 = 0 THEN max(expires_at, ?3) "
        "ELSE max(expires_at, min(?3, created_at + ?4)) END "
        "WHERE session_id IN (SELECT value FROM json_each(?5)) AND rotated_at IS NULL "
        "AND coalesce(last_seen_at, created_at) <= ?2",
        (note.now_s, note.seen_before_s, note.prolong_to_s, note.max_age_s, ids),
    )
    return changed + conn.changes()


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


def list_after(
    conn: apsw.Connection, after_id: str, limit: int, seen_before_s: int
) -> list[tuple[str, bool]]:
    """Return sessions in the order of ids, and whether each is a guest that was last seen before
    that time."""
    found = conn.execute(
        "SELECT session_id, is_guest <> 0 AND coalesce(last_seen_at, created_at) < ? "
        "FROM _pylon_auth_sessions WHERE session_id > ? ORDER BY session_id LIMIT ?",
        (seen_before_s, after_id, limit),
    )
    return [(str(session_id), bool(is_idle)) for session_id, is_idle in found]


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
        "WHERE u.session_id = s.session_id), coalesce(family, session_id), "
        "coalesce(rotated_at, 0), coalesce(auth_time, created_at), coalesce(methods, ''), "
        "coalesce(last_seen_at, created_at), coalesce(token_hint, '') "
        "FROM _pylon_auth_sessions AS s WHERE session_id = ?",
        (session_id,),
    ).fetchone()
    if row is None:
        return None
    found, user_id, is_guest, created_at_s, expires_at_s, device, tenant_id, is_unused, *rest = row
    return SessionRow(
        found, user_id, bool(is_guest), created_at_s, expires_at_s, device, tenant_id,
        bool(is_unused), *rest,
    )


def family_ends(conn: apsw.Connection, families: Sequence[str]) -> dict[str, int]:
    """Return the end of each stored family in Unix seconds (0: never)."""
    ids = json.dumps(families)
    return dict(conn.execute(
        f"SELECT family, {_LAST_END} FROM _pylon_auth_sessions "
        "WHERE family IN (SELECT value FROM json_each(?1)) AND rotated_at IS NULL GROUP BY family "
        # Sessions of servers before there were families.
        "UNION ALL SELECT session_id, expires_at FROM _pylon_auth_sessions "
        "WHERE session_id IN (SELECT value FROM json_each(?1)) AND family IS NULL",
        (ids,),
    ))
