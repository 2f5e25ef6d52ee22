"""The manifest's indexes, changed while the server runs.

The writer makes and drops them between other writes; reads go on meanwhile, writes wait. The
running server keeps its manifest: only indexes over fields that it knows can be made, and a
restart with the old manifest takes them away again.

Called by `maintenance`; asked for by `pylonctl schema apply --indexes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import apsw

from pylon.clock import Clock
from pylon.errors import PylonError, SchemaRefused
from pylon.manifest.model import Index, Manifest
from pylon.storage.records import IndexSpec
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.schema import history
from pylon.storage.sqlite.schema.apply import note_indexes
from pylon.storage.sqlite.schema.plan import make_plan


def put_indexes(
    conn: apsw.Connection, manifest: Manifest, wanted: Sequence[IndexSpec], clock: Clock
) -> int:
    """Make the indexes of the entities of `manifest` the `wanted` ones, within the transaction
    that is open; all or nothing.

    Returns: how many were made or dropped.

    Raises:
        SchemaRefused: an index is over something unknown, or its rows are not unique.
    """
    changed = _with_indexes(manifest, wanted)
    conn.execute("SAVEPOINT put_indexes")
    try:
        plan = make_plan(conn, changed)
        plan.check()
        for step in plan.steps:
            conn.execute(step.sql)
        if plan.steps:
            note_indexes(conn, changed, plan)
            history.record(conn, changed, "indexes", [s.render() for s in plan.steps], clock)
    except (PylonError, apsw.ConstraintError, apsw.SQLError) as error:
        conn.execute("ROLLBACK TO put_indexes")
        conn.execute("RELEASE put_indexes")
        if isinstance(error, PylonError):
            raise
        raise SchemaRefused(f"the indexes are as they were: {error_text(error)}") from error
    conn.execute("RELEASE put_indexes")
    return len(plan.steps)


def _with_indexes(manifest: Manifest, wanted: Sequence[IndexSpec]) -> Manifest:
    by_entity: dict[str, list[Index]] = {e.name: [] for e in manifest.entities}
    for entity, name, fields, unique in wanted:
        known = manifest.by_name.get(entity)
        if known is None or not fields or not set(fields) <= set(known.columns):
            raise SchemaRefused(
                f"{entity}.{name}: the running server does not know {entity} "
                f"or one of {', '.join(fields) or 'no fields'}",
                hint="restart it with the new manifest, which makes the index too",
            )
        by_entity[entity].append(Index(name, fields, unique))
    return replace(manifest, entities=tuple(
        replace(e, indexes=tuple(by_entity[e.name])) for e in manifest.entities
    ))
