"""Broken references of a PostgreSQL database, for `manager`. `pylon.storage.sql` has the SQL."""

from __future__ import annotations

from collections.abc import Iterable

from pylon.manifest.references import Reference
from pylon.storage.postgres.schema.live import introspect
from pylon.storage.postgres.schema.results import ask
from pylon.storage.postgres.statements import Session
from pylon.storage.schemas import BrokenReference
from pylon.storage.sql import broken_references


def find_broken(session: Session, references: Iterable[Reference]) -> list[BrokenReference]:
    """See `pylon.storage.sql.broken_references`."""
    return broken_references.find_broken(
        references, lambda names: introspect(session, names).tables,
        lambda text: ask(session, text),
    )
