"""Live indexes: makes and drops indexes of the manifest while the server runs.

The writer does it between other writes. Reads continue meanwhile, and writes wait. The running
server keeps its manifest, so it can make only indexes over fields of that manifest. A restart
with the old manifest drops them again.

Called by `pylon.storage.sqlite.maintenance`, for `pylonctl schema apply --indexes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from pylon.clock import Clock
from pylon.errors import PylonError, SchemaRefused
from pylon.manifest.model import Manifest
from pylon.storage.core.index_specs import with_indexes
from pylon.storage.records import IndexSpec
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.schema import history
from pylon.storage.sqlite.schema.apply import note_indexes
from pylon.storage.sqlite.schema.catalogue import plan_for


def put_indexes(
    conn: apsw.Connection, manifest: Manifest, wanted: Sequence[IndexSpec], clock: Clock
) -> int:
    """Replace the indexes of the entities of `manifest` by the `wanted` ones.

    It runs within the open transaction and makes all changes or none.

    Returns: the number of indexes made or dropped.

    Raises:
        SchemaRefused: an index has an unknown entity or field, or rows violate its uniqueness.
    """
    changed = with_indexes(manifest, wanted)
    conn.execute("SAVEPOINT put_indexes")
    try:
        plan = plan_for(conn, changed)
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
