"""Broken references of a SQLite database, for `manager`. `pylon.storage.sql` has the SQL."""

from __future__ import annotations

from collections.abc import Iterable

import apsw

from pylon.manifest.references import Reference
from pylon.storage.schemas import BrokenReference
from pylon.storage.sql import broken_references
from pylon.storage.sqlite.schema.live import introspect


def find_broken(conn: apsw.Connection, references: Iterable[Reference]) -> list[BrokenReference]:
    """See `pylon.storage.sql.broken_references`."""
    return broken_references.find_broken(
        references, lambda names: introspect(conn, names).tables,
        lambda text: list(conn.execute(text)),
    )
