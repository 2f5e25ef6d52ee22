"""Broken references: finds rows whose field of type id(Entity) names a row that does not exist.

Called by the schema of each backend, for `pylonctl schema references` and for the rows of a seed
file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from pylon.manifest.references import Reference
from pylon.schema.live import LiveTable
from pylon.storage.core.names import quote
from pylon.storage.schemas import BrokenReference

_EXAMPLES: Final = 5


def find_broken(
    references: Iterable[Reference],
    find_tables: Callable[[tuple[str, ...]], dict[str, LiveTable]],
    run: Callable[[str], Sequence[Sequence[Any]]],
) -> list[BrokenReference]:
    """Return the references that do not hold, by entity and field. Missing tables have no rows.

    Args:
        find_tables: returns the live tables of entities, by their names in lower case.
        run: runs a query, and returns its rows.
    """
    found = []
    for reference in references:
        tables = find_tables((reference.entity, reference.target))
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
        ((rows,),) = run(f"SELECT count(*) {source}")
        if int(rows):
            examples = run(f"SELECT id, {field} {source} ORDER BY id LIMIT {_EXAMPLES}")
            found.append(BrokenReference(
                reference, int(rows), tuple((str(i), str(value)) for i, value in examples)
            ))
    return found
