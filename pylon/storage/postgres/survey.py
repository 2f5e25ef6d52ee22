"""Survey: what an operator should know of the database server, for `pylonctl doctor`.

It opens one plain connection and only reads. Called by `pylon.storage.factory`.
"""

from __future__ import annotations

import time
from typing import Final

import psycopg

from pylon.storage.postgres.connect import error_text, open_connection
from pylon.storage.records import DatabaseFacts

_SETTINGS: Final = (
    "server_version", "server_encoding", "fsync", "full_page_writes", "synchronous_commit",
    "default_transaction_read_only", "max_connections", "superuser_reserved_connections",
    "statement_timeout", "idle_session_timeout", "wal_level", "archive_mode",
)
_OLDEST: Final = (
    "SELECT extract(epoch FROM clock_timestamp() - xact_start)::float8, pid, application_name "
    "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
    "AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 1"
)
_UNUSED_SLOTS: Final = "SELECT slot_name FROM pg_replication_slots WHERE NOT active ORDER BY 1"


def survey_server(url: str) -> DatabaseFacts:
    """Connect and read the facts.

    Raises:
        ConnectionError: the server does not answer or refuses; with its text.
    """
    began_s = time.monotonic()
    try:
        with open_connection(url, "doctor", "", writes=False) as conn:
            connect_s = time.monotonic() - began_s
            # `true`: None for a setting that this version does not have.
            columns = ", ".join(f"current_setting('{name}', true)" for name in _SETTINGS)
            row = conn.execute(f"SELECT {columns}").fetchone() or ()
            began_s, wall_s = time.monotonic(), time.time()
            facts = conn.execute(
                "SELECT extract(epoch FROM clock_timestamp())::float8, pg_is_in_recovery(), "
                "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
                "coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)"
            ).fetchone()
            assert facts is not None
            answer_s = time.monotonic() - began_s
            oldest = conn.execute(_OLDEST).fetchone() or (0.0, 0, "")
            slots = conn.execute(_UNUSED_SLOTS).fetchall()
    except psycopg.Error as error:
        raise ConnectionError(error_text(error)) from error
    return DatabaseFacts(
        settings={name: str(value) for name, value in zip(_SETTINGS, row, strict=True)
                  if value is not None},
        connect_s=connect_s, answer_s=answer_s,
        clock_ahead_s=float(facts[0]) - wall_s - answer_s / 2,
        is_standby=bool(facts[1]), connections=int(facts[2]), is_encrypted=bool(facts[3]),
        oldest_transaction_s=float(oldest[0]),
        oldest_transaction=f"pid {oldest[1]}, {oldest[2] or 'without a name'}",
        unused_slots=tuple(str(name) for (name,) in slots),
    )
