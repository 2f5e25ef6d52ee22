"""The text search of another server, which would break our writes (spec/http.md §2.7).

The other server keeps, for each entity, an FTS5 table `<Entity>_fts` whose content is the
entity's table, current by triggers. Such an index fails every write with "malformed" as soon
as a row is not in it as it was, which happens when it was made after the rows; and its
triggers run for each column of ours. It holds nothing that the rows do not. So it goes.

Called by `plan`.
"""

from __future__ import annotations

from typing import Any

import apsw

from pylon.storage.sqlite.names import quote


def foreign_search(conn: apsw.Connection, table: str) -> list[tuple[str, str]]:
    """(name, SQL that removes it) of the search triggers and the search table of `table`."""
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
