"""Trial: a start's schema changes on a copy of the schema, without touching the database.

The plan is made on a read-only connection, so it sees the rows. Its steps are then carried out
on an empty database in memory that has the same tables, indexes, views and triggers: SQLite
itself says which of them it would refuse (too many columns, a name that a view has). Called by
`pylonctl check-config`.
"""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import apsw

from pylon.errors import PylonError, StartRefused
from pylon.manifest.model import Manifest
from pylon.storage.sqlite.connect import open_reader
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.schema.apply import carry_out
from pylon.storage.sqlite.schema.history import refuse_newer
from pylon.storage.sqlite.schema.plan import make_plan

_SCHEMA: Final = (
    "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' "
    "ESCAPE '\\' AND name NOT IN "
    "(SELECT name FROM pragma_table_list WHERE type IN ('virtual', 'shadow')) ORDER BY rowid"
)


def refuse_unreachable(path: Path | None, manifest: Manifest) -> None:
    """
    Args:
        path: the database file; None, or a file that is not there, for a new database.

    Raises:
        StartRefused: the database cannot be used, or a start could not bring it to `manifest`.
    """
    with closing(apsw.Connection(":memory:")) as copy:
        if path is None or not path.exists():
            plan = make_plan(copy, manifest)
            plan.check()
            carry_out(copy, plan)
            return
        try:
            with closing(open_reader(path)) as conn:
                refuse_newer(conn)
                with conn:  # one commit for all that is looked at
                    plan = make_plan(conn, manifest)
                    schema: list[Any] = conn.execute(_SCHEMA).fetchall()
        except StartRefused:
            raise
        except (apsw.Error, PylonError) as ex:
            raise StartRefused(f"the database {path} cannot be used: {error_text(ex)}") from ex
        plan.check()
        for (sql,) in schema:
            # Objects of another program may need functions or modules of its own.
            with suppress(apsw.Error):
                copy.execute(sql)
        carry_out(copy, plan)
