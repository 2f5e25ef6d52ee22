"""Legacy FTS: finds the text search of the Rust server, which would break our writes.

That server has an FTS5 table `<Entity>_fts` for each entity, with the entity's table as its
content, and triggers that update it (spec/http.md §2.7). If a row and its entry differ, every write
of the row fails with "malformed"; that happens when the index was made after the rows. The
triggers also run for our own columns. The index contains only data of the rows, so `plan` removes
it. Called by `plan`.
"""

from __future__ import annotations

from typing import Any

import apsw

from pylon.storage.sqlite.names import quote


def legacy_search_objects(conn: apsw.Connection, table: str) -> list[tuple[str, str]]:
    """Return (name, statement that drops it) of the search triggers and search table of `table`."""
    index = f"{table}_fts"
    found: list[tuple[str, str]] = []
    virtual: Any = conn.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND lower(name) = lower(?) "
        "AND lower(sql) LIKE 'create virtual table%using fts5%'", (index,)
    ).get
    triggers: list[Any] = conn.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' "
        "AND lower(tbl_name) = lower(?) ORDER BY name", (table,)
    ).fetchall()
    for name, sql in triggers:
        if index.lower() in sql.lower():
            found.append((name, f"DROP TRIGGER {quote(name)}"))
    if virtual is not None:
        found.append((virtual, f"DROP TABLE {quote(virtual)}"))
    return found
