"""Constraint errors of SQLite: finds the fields of the constraint that a statement broke.

SQLite names the columns in its message. Names may contain any character, so parsing the message
would be ambiguous. Instead each entity has a map of its possible messages.

Called by `table`, and by `pylon.storage.sqlite.schema.manager` for the rows of a seed file.
"""

from __future__ import annotations

import apsw

from pylon.manifest.model import Entity
from pylon.schema.columns import fold_column, fold_fields
from pylon.storage.core.transaction import ConstraintFailed


class ConstraintErrors:
    """Translates the constraint failures of one entity."""

    __slots__ = ("_not_null", "_unique")

    def __init__(self, entity: Entity) -> None:
        uniques: list[tuple[str, ...]] = [("id",)]
        uniques += [(f.name,) for f in entity.fields if f.unique]
        uniques += [i.fields for i in entity.indexes if i.unique]
        self._unique = {
            "unique constraint failed: "
            + ", ".join(f"{entity.name}.{c}" for c in columns).lower(): columns
            for columns in uniques
        }
        self._unique |= {
            f"unique constraint failed: {entity.name}.{fold_column(f)}".lower(): (f.name,)
            for f in fold_fields(entity)
        }
        self._not_null = {
            f"not null constraint failed: {entity.name}.{f.name}".lower(): f.name
            for f in entity.fields
        }

    def translate(self, error: apsw.ConstraintError) -> ConstraintFailed:
        """Return the failure as the core understands it."""
        message = str(error).lower()
        fields = self._unique.get(message)
        if fields is not None:
            return ConstraintFailed("unique", fields)
        field = self._not_null.get(message)
        if field is not None:
            return ConstraintFailed("not_null", (field,))
        if message.startswith("unique constraint failed"):
            # The manifest does not name the index: an operator or another server made it.
            return ConstraintFailed("unique", None)
        return ConstraintFailed("other", None)
