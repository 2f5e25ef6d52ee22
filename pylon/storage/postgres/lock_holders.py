"""Lock holders: find a writer that stands still with the writers' lock, and end it.

A node may be stopped in the middle of a flush, while it holds the lock. No time limit of the server
acts then: it waits for the rest of the flush, as part of a statement. So who waits for the lock
looks at its holder about once a second. A holder that is another node's writer, waits for its
client, and has done nothing for `FROZEN_S`, is ended with `pg_terminate_backend`. Its node finds
out what became of its batch as after any lost connection.

Called by `writer_session`, outside of a transaction.
"""

from __future__ import annotations

import time
from typing import Final

from pylon import metrics
from pylon.log import get_logger
from pylon.storage.postgres.statements import Session

FROZEN_S: Final = 3.0
# A key of an advisory lock is in two halves. The name of a writer is its application_name.
_HOLDER: Final = """
    SELECT a.pid, a.application_name, concat_ws(' ', a.backend_start, a.xact_start, a.query_start)
    FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND ((l.classid::bigint << 32) | l.objid::bigint) = $1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND a.wait_event = 'ClientRead' AND a.application_name LIKE 'pylon-writer/%'"""
_END: Final = "SELECT pg_terminate_backend($1::int)"

_log: Final = get_logger("writer")


class LockHolders:
    """Watches the holder of one lock."""

    __slots__ = ("_key", "_seen", "_since_s")

    def __init__(self, key: int) -> None:
        """Args: `key`: of the advisory lock."""
        self._key = key
        self._seen: tuple[bytes, ...] | None = None
        self._since_s = 0.0

    def forget(self) -> None:
        """The lock was taken: its holder has ended its transaction."""
        self._seen = None

    def look(self, session: Session) -> bool:
        """Look at the holder; end it if it stands still. Return whether it was ended.

        Raises:
            psycopg.Error
        """
        now_s = time.monotonic()
        found = session.execute(_HOLDER, (self._key,))
        if not found.ntuples:
            self._seen = None
            return False
        seen = tuple(found.get_value(0, column) or b"" for column in range(3))
        if seen != self._seen:
            self._seen, self._since_s = seen, now_s
            return False
        if now_s - self._since_s < FROZEN_S:
            return False
        self._seen = None
        session.execute(_END, (int(seen[0]),))
        metrics.FROZEN_WRITERS.inc()
        _log.error("writer.frozen", pid=int(seen[0]), name=seen[1].decode(errors="replace"))
        return True
