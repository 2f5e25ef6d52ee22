"""Locks: the advisory locks that the nodes of a server share, and their keys.

A key is a number that depends on the purpose and on the schema (`search_path`), so that two apps
in one database do not wait for each other. The lock `WRITER` orders all commits: a transaction
takes it with `pg_advisory_xact_lock` before it writes rows. The lock `SCHEMA` belongs to the
session that changes the schema.

Called by the writer, the schema and the upkeep.
"""

from __future__ import annotations

from typing import Final

from pylon.storage.postgres.statements import Session

WRITER: Final = "pylon writer"  # K: of a transaction that commits changes
SCHEMA: Final = "pylon schema"  # of the session that migrates
UPKEEP: Final = "pylon upkeep"  # of the session that leads retention and repairs


def lock_key(session: Session, purpose: str) -> int:
    """Return the key of a lock: one round trip, the same number for all connections to a schema.

    Raises:
        psycopg.Error
    """
    result = session.execute(
        "SELECT hashtextextended($1 || ' ' || current_schema(), 0)", (purpose,)
    )
    return int(result.get_value(0, 0) or 0)
