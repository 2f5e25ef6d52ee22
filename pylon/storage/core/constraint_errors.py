"""Constraint errors: the client's error for a row that broke a constraint of its table.

Called by `rows`, and by `SchemaManager.find_conflict` for the rows of a seed file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pylon.errors import (
    InternalError,
    NullNotAllowed,
    OptimisticIdConflict,
    PylonError,
    UniqueViolation,
)
from pylon.storage.core.transaction import ConstraintFailed
from pylon.values import shown

_ID = ("id",)


def constraint_error(
    entity: str, failure: ConstraintFailed, row: Mapping[str, Any], *, client_id_given: bool
) -> PylonError:
    """Return the error for a refused row.

    Args:
        row: the whole row.
        client_id_given: whether the client chose the id of the row.
    """
    fields = failure.fields
    if failure.kind == "not_null" and fields is not None:
        return NullNotAllowed(
            f"{entity}.{fields[0]} may not be null", entity=entity, field=fields[0], value=None
        )
    if failure.kind != "unique":
        return InternalError(f"{entity}: the database refused the row")
    if fields is None:  # the manifest does not name the index
        return UniqueViolation(f"{entity}: another row has these values", entity=entity)
    if fields == _ID and client_id_given:
        return OptimisticIdConflict(
            f"{entity}: the id {row['id']} is taken", entity=entity, row_id=row["id"]
        )
    if len(fields) == 1:
        return UniqueViolation(
            f"{entity}.{fields[0]} must be unique, and another row has this value",
            entity=entity, field=fields[0], value=shown(row.get(fields[0])),
        )
    return UniqueViolation(
        f"{entity}: {', '.join(fields)} must be unique together, "
        "and another row has these values",
        entity=entity, fields=list(fields), value=[shown(row.get(f)) for f in fields],
    )
