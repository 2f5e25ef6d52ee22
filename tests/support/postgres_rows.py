"""Tables of PostgreSQL with given rows, without a writer: for tests of SQL alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from pylon.manifest.model import Entity, Manifest
from pylon.storage.core.names import quote
from pylon.storage.postgres.functions import FUNCTIONS
from pylon.storage.postgres.schema import ddl
from pylon.storage.postgres.wire import BlockingSession


def open_tables(url: str, manifest: Manifest) -> BlockingSession:
    """Open a session on a schema, and make the tables of the manifest and the functions in it."""
    session = BlockingSession(psycopg.connect(url, autocommit=True))
    for function in FUNCTIONS:
        session.execute_script(function)
    for entity in manifest.entities:
        session.execute_script(ddl.create_table(entity))
        for index in entity.indexes:
            session.execute_script(ddl.create_manifest_index(entity, index))
    return session


def statements_of(
    entity: Entity, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the statements that replace the rows of an entity's table."""
    names = ", ".join(map(quote, columns))
    marks = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    insert = f"INSERT INTO {quote(entity.name)} ({names}) VALUES ({marks})"
    return [(f"DELETE FROM {quote(entity.name)}", ()), *[(insert, tuple(row)) for row in rows]]
