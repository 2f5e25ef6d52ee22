"""What a constraint of SQLite's means to the client whose write it stopped.

SQLite names the columns in its message. Names may hold any character, so the message is not
taken apart: each entity's possible messages are made beforehand and looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import apsw

from pylon.errors import (
    InternalError,
    NullNotAllowed,
    OptimisticIdConflict,
    PylonError,
    UniqueViolation,
)
from pylon.manifest.model import Entity
from pylon.values import shown


class ConstraintErrors:
    """Translates the constraint failures of one entity."""

    __slots__ = ("_entity", "_not_null", "_unique")

    def __init__(self, entity: Entity) -> None:
        self._entity = entity
        uniques: list[tuple[str, ...]] = [("id",)]
        uniques += [(f.name,) for f in entity.fields if f.unique]
        uniques += [i.fields for i in entity.indexes if i.unique]
        self._unique = {
            "unique constraint failed: "
            + ", ".join(f"{entity.name}.{c}" for c in columns).lower(): columns
            for columns in uniques
        }
        self._not_null = {
            f"not null constraint failed: {entity.name}.{f.name}".lower(): f.name
            for f in entity.fields
        }

    def of(
        self, error: apsw.ConstraintError, row: Mapping[str, Any], client_id_given: bool
    ) -> PylonError:
        """
        Args:
            row: the row that was to be written.
            client_id_given: its id was chosen by the client.
        """
        message = str(error).lower()
        name = self._entity.name
        columns = self._unique.get(message)
        if columns == ("id",) and client_id_given:
            return OptimisticIdConflict(
                f"{name}: the id {row['id']} is taken", entity=name, row_id=row["id"]
            )
        if columns is not None and len(columns) == 1:
            value = shown(row.get(columns[0]))
            return UniqueViolation(
                f"{name}.{columns[0]} must be unique, and another row has this value",
                entity=name, field=columns[0], value=value,
            )
        if columns is not None:
            return UniqueViolation(
                f"{name}: {', '.join(columns)} must be unique together, "
                "and another row has these values",
                entity=name, fields=list(columns), value=[shown(row.get(c)) for c in columns],
            )
        field = self._not_null.get(message)
        if field is not None:
            return NullNotAllowed(
                f"{name}.{field} may not be null", entity=name, field=field, value=None
            )
        if message.startswith("unique constraint failed"):
            # A unique index that the manifest does not know: made by hand or by another server.
            return UniqueViolation(f"{name}: another row has these values", entity=name)
        return InternalError(f"{name}: the database refused the row")
