"""Unfinished moves: the note that a move leaves in its target until all data are there.

Called by `target`, which keeps the note, and by the schema, so that no server starts on a part of
the data.
"""

from __future__ import annotations

from typing import Final

from pylon.errors import SchemaRefused
from pylon.storage.postgres.statements import Session

NOTE_TABLE: Final = "_pylon_migration"


def refuse_unfinished(session: Session) -> None:
    """Refuse a schema into which a move was not finished.

    Raises:
        SchemaRefused: there is one.
        psycopg.Error
    """
    found = session.execute(
        "SELECT to_regclass(quote_ident(current_schema()) || '.' || $1) IS NOT NULL", (NOTE_TABLE,)
    )
    if found.get_value(0, 0) == b"t":
        raise SchemaRefused(
            "a migration or a restore into this schema was not finished: it has a part of the data",
            hint="run pylonctl migrate sqlite-to-postgres, or pylonctl restore --replace, again; "
            "or drop the schema",
        )
