"""Sessions of the writer: the statements on `_pylon_auth_sessions` and `_pylon_unused_guests`.

Each change also leaves a line in `_pylon_marks`, numbered in commit order, by which the other nodes
learn of it. The rules of sessions are in `pylon.storage.core.sessions`. Called by `transaction` and
`maintenance`, under the writers' lock.
"""

from __future__ import annotations

from typing import Final

from pylon.storage.postgres.names import MARK_SEQUENCE

MADE: Final = "session_made"
ENDED: Final = "session_ended"

PUT: Final = (
    "INSERT INTO _pylon_auth_sessions "
    "(session_id, user_id, is_guest, created_at, expires_at, device, tenant_id) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (session_id) DO UPDATE SET "
    "user_id = excluded.user_id, is_guest = excluded.is_guest, created_at = excluded.created_at, "
    "expires_at = excluded.expires_at, device = excluded.device, tenant_id = excluded.tenant_id"
)
PUT_UNUSED: Final = (
    "INSERT INTO _pylon_unused_guests (session_id, created_at) VALUES ($1, $2) "
    "ON CONFLICT (session_id) DO UPDATE SET created_at = excluded.created_at"
)
DROP: Final = "DELETE FROM _pylon_auth_sessions WHERE session_id = $1"
DROP_UNUSED: Final = "DELETE FROM _pylon_unused_guests WHERE session_id = $1"
KNOWN: Final = "SELECT session_id FROM _pylon_auth_sessions WHERE session_id = ANY($1::text[])"
MARK: Final = (
    "INSERT INTO _pylon_marks (number, kind, key, at) "
    f"VALUES (nextval('{MARK_SEQUENCE}'), $1, $2, $3)"
)
MARK_USED: Final = "DELETE FROM _pylon_unused_guests WHERE session_id = ANY($1::text[])"
# Drops the sessions of $1, and marks them; how many were there.
DROP_ALL: Final = (
    "WITH ended AS (DELETE FROM _pylon_auth_sessions WHERE session_id = ANY($1::text[]) "
    "RETURNING session_id), "
    "unused AS (DELETE FROM _pylon_unused_guests WHERE session_id = ANY($1::text[])), "
    "marked AS (INSERT INTO _pylon_marks (number, kind, key, at) "
    f"SELECT nextval('{MARK_SEQUENCE}'), $2, session_id, $3 FROM ended) "
    "SELECT count(*) FROM ended"
)
EXPIRED: Final = (
    "SELECT session_id FROM _pylon_auth_sessions WHERE expires_at > 0 AND expires_at <= $1 LIMIT $2"
)
UNUSED: Final = (
    "SELECT session_id FROM _pylon_unused_guests WHERE created_at < $1 ORDER BY created_at LIMIT $2"
)
COUNT_BY_KIND: Final = "SELECT is_guest, count(*) FROM _pylon_auth_sessions GROUP BY is_guest"
