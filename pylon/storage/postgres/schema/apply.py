"""Additive migration: makes and completes the tables of a PostgreSQL database at a start.

`prepare_store` is called by `pylon.storage.postgres.backend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pylon.clock import Clock, SystemRandom
from pylon.manifest import references
from pylon.manifest.model import Entity, Manifest
from pylon.storage.postgres import meta
from pylon.storage.postgres.schema import ddl
from pylon.storage.postgres.transfer.unfinished import refuse_unfinished
from pylon.storage.postgres.wire import BlockingSession

_LINEAGE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Prepared:
    """The result of `prepare_store`.

    `retained_columns` has, for each entity, the columns that the manifest no longer names and that
    need a value in each row, with the value that inserts give them.
    """

    created: bool  # the database had no lineage: Pylon has not opened it before
    epoch_opened: bool
    lineage: str
    retained_columns: dict[str, dict[str, object]]


def prepare_store(session: BlockingSession, manifest: Manifest, clock: Clock) -> Prepared:
    """Make the tables of an empty database.

    Raises:
        SchemaRefused: a move of data into it was not finished.
        psycopg.Error: the database cannot be used.
    """
    refuse_unfinished(session)
    session.execute_script("BEGIN")
    try:
        for statement in ddl.SYSTEM_TABLES:
            session.execute_script(statement)
        lineage = meta.get(session, "lineage")
        created = lineage is None
        if lineage is None:
            meta.put(session, references.FACT, "check")
            lineage = SystemRandom().token_hex(_LINEAGE_BYTES)
            meta.put(session, "lineage", lineage)
        wanted = references.with_reference_indexes(manifest, by_default=True)
        for entity in wanted.entities:
            if not _has_table(session, entity):
                _make_table(session, entity)
        session.execute_script("COMMIT")
    finally:
        if session.is_in_transaction:
            session.execute_script("ROLLBACK")
    return Prepared(created, False, lineage, {})


def _make_table(session: BlockingSession, entity: Entity) -> None:
    session.execute_script(ddl.create_table(entity))
    for index in entity.indexes:
        session.execute_script(ddl.create_manifest_index(entity, index))
    for field in entity.fields:
        if field.nocase:
            session.execute_script(ddl.create_fold_index(entity, field))
    for name in entity.search.sortable if entity.search is not None else ():
        if name != "id":
            session.execute_script(ddl.create_sort_index(entity, name))


def _has_table(session: BlockingSession, entity: Entity) -> bool:
    result = session.execute(
        "SELECT 1 FROM pg_class WHERE relname = $1 AND relkind = 'r' "
        "AND relnamespace = current_schema()::regnamespace", (entity.name,)
    )
    return bool(result.ntuples)
