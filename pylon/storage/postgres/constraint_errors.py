"""Constraint errors of PostgreSQL: finds the fields of the constraint that a statement broke.

The server names the constraint, or the unique index, of a failure, and the column of a missing
value. Called by `table`.
"""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
from psycopg import errors

from pylon.manifest.model import Entity
from pylon.storage.core.transaction import ConstraintFailed
from pylon.storage.postgres.names import fitting_name
from pylon.storage.postgres.unique_keys import UniqueKey


class ConstraintErrors:
    """Translates the constraint failures of one entity."""

    __slots__ = ("_fields", "_unique")

    def __init__(self, entity: Entity, uniques: Iterable[UniqueKey]) -> None:
        self._fields = {field.name for field in entity.fields}
        self._unique = {unique.index: unique.fields for unique in uniques}
        self._unique[fitting_name(f"{entity.name}_pkey")] = ("id",)

    def translate(self, error: psycopg.Error) -> ConstraintFailed:
        """Return the failure as the core understands it."""
        if isinstance(error, errors.UniqueViolation):
            return ConstraintFailed("unique", self._unique.get(error.diag.constraint_name or ""))
        column = error.diag.column_name
        if isinstance(error, errors.NotNullViolation) and column in self._fields:
            return ConstraintFailed("not_null", (column or "",))
        return ConstraintFailed("other", None)
