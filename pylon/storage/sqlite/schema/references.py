"""Broken references: finds rows whose field of type id(Entity) names a row that does not exist.

Called by `manager`, for `pylonctl schema references` and for the rows of a seed file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import apsw

from pylon.manifest.references import Reference
from pylon.storage.schemas import BrokenReference
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema.live import introspect

_EXAMPLES: Final = 5


def find_broken(conn: apsw.Connection, references: Iterable[Reference]) -> list[BrokenReference]:
    """Return the references that do not hold, by entity and field. Missing tables have no rows."""
    found = []
    for reference in references:
        tables = introspect(conn, (reference.entity, reference.target)).tables
        table = tables.get(reference.entity.lower())
        if table is None or reference.field.lower() not in table.columns:
            continue
        field = quote(reference.field)
        where = f"{field} IS NOT NULL"
        if reference.target.lower() in tables:
            where += (
                f" AND NOT EXISTS (SELECT 1 FROM {quote(reference.target)} AS named "
                f"WHERE named.id = {quote(reference.entity)}.{field})"
            )
        source = f"FROM {quote(reference.entity)} WHERE {where}"
        rows = int(conn.execute(f"SELECT count(*) {source}").get)
        if rows:
            examples: list[Any] = conn.execute(
                f"SELECT id, {field} {source} ORDER BY id LIMIT ?", (_EXAMPLES,)
            ).fetchall()
            found.append(BrokenReference(reference, rows, tuple(examples)))
    return found
