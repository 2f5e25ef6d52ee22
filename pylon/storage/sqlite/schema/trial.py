"""Trial: tries the schema changes of a start on a copy of the schema, in memory.

It makes the plan on a read-only connection, so the plan sees the rows. Then it executes the steps
on an empty database in memory with the same tables, indexes, views and triggers. So SQLite itself
refuses impossible steps (too many columns, a name that a view has). Invariant: the database is not
changed. Called by `manager`, for `pylonctl check-config`.
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
from pylon.storage.sqlite.schema.apply import execute_steps
from pylon.storage.sqlite.schema.catalogue import plan_for
from pylon.storage.sqlite.schema.history import refuse_newer

_SCHEMA: Final = (
    "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' "
    "ESCAPE '\\' AND name NOT IN "
    "(SELECT name FROM pragma_table_list WHERE type IN ('virtual', 'shadow')) ORDER BY rowid"
)


def refuse_unreachable(path: Path | None, manifest: Manifest) -> None:
    """Refuse a database that a start could not use.

    Args:
        path: the database file; None, or a missing file, for a new database.

    Raises:
        StartRefused: the database cannot be used, or a start could not migrate it to `manifest`.
    """
    with closing(apsw.Connection(":memory:")) as copy:
        if path is None or not path.exists():
            plan = plan_for(copy, manifest)
            plan.check()
            execute_steps(copy, plan)
            return
        try:
            with closing(open_reader(path)) as conn:
                refuse_newer(conn)
                with conn:  # one snapshot for all reads
                    plan = plan_for(conn, manifest)
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
        execute_steps(copy, plan)
