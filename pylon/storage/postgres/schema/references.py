"""Broken references: finds rows whose field of type id(Entity) names a row that does not exist.

Called by `manager`, for `pylonctl schema references` and for the rows of a seed file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pylon.manifest.references import Reference
from pylon.storage.postgres.names import quote
from pylon.storage.postgres.schema.live import introspect
from pylon.storage.postgres.schema.results import ask, ask_number
from pylon.storage.postgres.wire import Session
from pylon.storage.schemas import BrokenReference

_EXAMPLES: Final = 5


def find_broken(session: Session, references: Iterable[Reference]) -> list[BrokenReference]:
    """Return the references that do not hold, by entity and field. Missing tables have no rows."""
    found = []
    for reference in references:
        tables = introspect(session, (reference.entity, reference.target)).tables
        table = tables.get(reference.entity.lower())
        if table is None or reference.field.lower() not in table.columns:
            continue
        field = quote(reference.field)
        where = f"{field} IS NOT NULL"
        if reference.target.lower() in tables:
            where += (
                f" AND NOT EXISTS (SELECT FROM {quote(reference.target)} AS named "
                f"WHERE named.id = {quote(reference.entity)}.{field})"
            )
        source = f"FROM {quote(reference.entity)} WHERE {where}"
        rows = ask_number(session, f"SELECT count(*) {source}")
        if rows:
            examples = ask(
                session, f"SELECT id, {field} {source} ORDER BY id LIMIT {_EXAMPLES}"
            )
            found.append(BrokenReference(
                reference, rows, tuple((str(row_id), str(value)) for row_id, value in examples)
            ))
    return found
