"""Sessions of the writer: the statements on `_pylon_auth_sessions` and `_pylon_unused_guests`.

Each change also leaves a line in `_pylon_marks`, numbered in commit order, by which the other nodes
learn of it. The rules of sessions are in `pylon.storage.core.sessions`. The rows are
`pylon.storage.core.transaction.SessionRows`. Made by `transaction`; `maintenance` shares the
statements, under the writers' lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pylon.clock import NS_PER_S, Clock
from pylon.storage.auth_ops import Condition
from pylon.storage.postgres.batch import Batch
from pylon.storage.postgres.names import MARK_SEQUENCE
from pylon.storage.postgres.record_rows import DIALECT
from pylon.storage.postgres.system_reads import rows_of, text_of
from pylon.storage.records import SessionRow
from pylon.storage.sql import record_sql

_MADE: Final = "session_made"
_CHANGED: Final = "session_changed"
ENDED: Final = "session_ended"

_PUT: Final = (
    "INSERT INTO _pylon_auth_sessions "
    "(session_id, user_id, is_guest, created_at, expires_at, device, tenant_id, family, auth_time, "
    "methods, last_seen_at, token_hint) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) "
    "ON CONFLICT (session_id) DO UPDATE SET "
    "user_id = excluded.user_id, is_guest = excluded.is_guest, created_at = excluded.created_at, "
    "expires_at = excluded.expires_at, device = excluded.device, tenant_id = excluded.tenant_id, "
    "family = excluded.family, rotated_at = NULL, auth_time = excluded.auth_time, "
    "methods = excluded.methods, last_seen_at = excluded.last_seen_at, "
    "token_hint = excluded.token_hint"
)
_PUT_UNUSED: Final = (
    "INSERT INTO _pylon_unused_guests (session_id, created_at) VALUES ($1, $2) "
    "ON CONFLICT (session_id) DO UPDATE SET created_at = excluded.created_at"
)
_DROP: Final = "DELETE FROM _pylon_auth_sessions WHERE session_id = $1"
_DROP_UNUSED: Final = "DELETE FROM _pylon_unused_guests WHERE session_id = $1"
KNOWN: Final = "SELECT session_id FROM _pylon_auth_sessions WHERE session_id = ANY($1::text[])"
_MARK: Final = (
    "INSERT INTO _pylon_marks (number, kind, key, at) "
    f"VALUES (nextval('{MARK_SEQUENCE}'), $1, $2, $3)"
)
# Marks the end of a session that is about to be dropped, by its family.
_MARK_END: Final = (
    "INSERT INTO _pylon_marks (number, kind, key, at) "
    f"SELECT nextval('{MARK_SEQUENCE}'), $1, coalesce(family, session_id), $3 "
    "FROM _pylon_auth_sessions WHERE session_id = $2"
)
MARK_USED: Final = "DELETE FROM _pylon_unused_guests WHERE session_id = ANY($1::text[])"
# $1 now, $2 seen before, $3 prolong to, $4 max age, $5 ids (`SessionNote`).
NOTE_USED: Final = (
    "UPDATE _pylon_auth_sessions SET last_seen_at = $1, expires_at = CASE "
    "WHEN expires_at = 0 OR $3::bigint = 0 THEN expires_at "
    "WHEN $4::bigint = 0 THEN greatest(expires_at, $3) "
    "ELSE greatest(expires_at, least($3, created_at + $4)) END "
    "WHERE session_id = ANY($5::text[]) AND rotated_at IS NULL "
    "AND coalesce(last_seen_at, created_at) <= $2"
)
# Drops the sessions of $1, and marks them; how many were there.
DROP_ALL: Final = (
    "WITH ended AS (DELETE FROM _pylon_auth_sessions WHERE session_id = ANY($1::text[]) "
    "RETURNING coalesce(family, session_id) AS family), "
    "unused AS (DELETE FROM _pylon_unused_guests WHERE session_id = ANY($1::text[])), "
    "marked AS (INSERT INTO _pylon_marks (number, kind, key, at) "
    f"SELECT nextval('{MARK_SEQUENCE}'), $2, family, $3 FROM ended) "
    "SELECT count(*) FROM ended"
)
# The same for guests that were not seen since $4: one may have been seen meanwhile.
DROP_IDLE: Final = DROP_ALL.replace(
    "= ANY($1::text[]) RETURNING",
    "= ANY($1::text[]) AND is_guest AND coalesce(last_seen_at, created_at) < $4 RETURNING", 1,
)
LIST_AFTER: Final = (
    "SELECT session_id, is_guest AND coalesce(last_seen_at, created_at) < $2 "
    "FROM _pylon_auth_sessions WHERE session_id > $1 ORDER BY session_id LIMIT $3"
)
EXPIRED: Final = (
    "SELECT session_id FROM _pylon_auth_sessions WHERE expires_at > 0 AND expires_at <= $1 LIMIT $2"
)
UNUSED: Final = (
    "SELECT session_id FROM _pylon_unused_guests WHERE created_at < $1 ORDER BY created_at LIMIT $2"
)
COUNT_BY_KIND: Final = "SELECT is_guest, count(*) FROM _pylon_auth_sessions GROUP BY is_guest"


class PostgresSessions:
    """See the module."""

    __slots__ = ("_batch", "_clock")

    def __init__(self, batch: Batch, clock: Clock) -> None:
        self._batch = batch
        self._clock = clock

    def put_session(self, session: SessionRow) -> None:
        """See `SessionRows`."""
        batch, session_id = self._batch, session.session_id
        batch.gather(_PUT, (
            session_id, session.user_id, session.is_guest, session.created_at_s,
            session.expires_at_s, session.device, session.tenant_id, session.family,
            session.auth_time_s, session.methods, session.last_seen_at_s, session.token_hint,
        ))
        if session.is_unused:
            batch.gather(_PUT_UNUSED, (session_id, session.created_at_s))
        self._mark(_MADE, session_id)
        batch.overlay.put(batch.overlay.sessions, session_id, True)

    def drop_session(self, session_id: str) -> int:
        """See `SessionRows`."""
        batch = self._batch
        known = batch.overlay.sessions.get(session_id)
        if known is None:
            known = bool(batch.read(KNOWN, ([session_id],)).ntuples)
        batch.gather(_DROP_UNUSED, (session_id,))
        batch.gather(_MARK_END, (ENDED, session_id, self._now_s()))
        batch.changes_sessions = True
        batch.gather(_DROP, (session_id,))
        batch.overlay.put(batch.overlay.sessions, session_id, False)
        return int(known)

    def end_sessions(
        self, where: Sequence[Condition], keep: Sequence[str], limit: int | None
    ) -> list[str]:
        """See `SessionRows`."""
        batch = self._batch
        found = batch.scan(*record_sql.session_ids(DIALECT, where, keep, limit))
        families = {text_of(row[0]): text_of(row[1]) for row in rows_of(found)}
        ended = list(families)
        if ended:
            batch.gather(DROP_ALL, (ended, ENDED, self._clock.wall_ns() // NS_PER_S))
            batch.changes_sessions = True
        for session_id in ended:
            batch.overlay.put(batch.overlay.sessions, session_id, False)
        return list(families.values())

    def mark_changed(self) -> None:
        """Leave the mark of a change of sessions that stay."""
        self._mark(_CHANGED, "")

    def _mark(self, kind: str, session_id: str) -> None:
        self._batch.gather(_MARK, (kind, session_id, self._now_s()))
        self._batch.changes_sessions = True

    def _now_s(self) -> int:
        return self._clock.wall_ns() // NS_PER_S
