"""Schema history: the table `_pylon_schema_history`, and the list of indexes that Pylon made.

See `pylon.schema.history`. Every start and every `schema apply` adds a row. Before a start changes
a table, it notes the steps in `_pylon_meta` under `unfinished`; it removes the note when all are
done. So the next start knows, and says, that it continues the plan of another one.

Invariant: callers pass `refuse_newer` before they read anything else. Called by the modules of this
package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from pylon.clock import Clock
from pylon.errors import SchemaRefused
from pylon.manifest.model import Manifest
from pylon.schema import history
from pylon.storage.postgres import meta
from pylon.storage.postgres.registry import OLDER
from pylon.storage.postgres.schema.live import has_table
from pylon.storage.postgres.schema.results import ask, ask_one
from pylon.storage.postgres.statements import Session

# Keys of `_pylon_meta`. Builds before `WRITES` refuse a database whose `READS_FROM` is above their
# own format, so it has the name that they know.
READS_FROM: Final = "schema_format"
WRITES: Final = "schema_writes"
_UNFINISHED: Final = "unfinished"
_TABLE: Final = "_pylon_schema_history"


def refuse_newer(session: Session) -> None:
    """Refuse a database that a newer Pylon has written.

    Raises:
        SchemaRefused: this build is older than the database's reads-from number, or its manifest
            version is higher than ours.
    """
    reads_from = newest = None
    if has_table(session, "_pylon_meta"):
        reads_from = meta.get(session, READS_FROM)
    if has_table(session, _TABLE):
        newest = ask_one(session, f"SELECT max(manifest_version) FROM {_TABLE}")
    history.refuse_newer(reads_from, None if newest is None else int(newest))


def refuse_older_nodes(session: Session) -> None:
    """Refuse to raise the reads-from number of a database on which nodes live that are older.

    Raises:
        SchemaRefused: the text names them.
    """
    noted = meta.get(session, READS_FROM)
    if noted is not None and int(noted) >= history.READS_FROM:
        return
    nodes = [str(node) for (node,) in ask(session, OLDER, (history.READS_FROM,))]
    if nodes:
        raise SchemaRefused(
            f"nodes of an older Pylon live, which could not read what this one writes: "
            f"{', '.join(nodes)}",
            hint="replace them by a version in between first, or stop them",
        )


def record(
    session: Session, manifest: Manifest, baseline: str, steps: Sequence[str], clock: Clock
) -> None:
    """Add an entry."""
    values = history.entry_values(manifest, baseline, steps, clock)
    marks = ", ".join(f"${place}" for place in range(1, len(values) + 1))
    session.execute(
        f"INSERT INTO {_TABLE} ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
    )
    reads_from, writes = history.formats_after(
        meta.get(session, READS_FROM), meta.get(session, WRITES)
    )
    meta.put(session, READS_FROM, reads_from)
    meta.put(session, WRITES, writes)


def entries(session: Session, limit: int) -> list[dict[str, Any]]:
    """Return the newest entries, newest first; `plan` is the decoded list of operations."""
    if not has_table(session, _TABLE):
        return []
    rows = ask(
        session,
        f"SELECT id, {', '.join(history.COLUMNS)} FROM {_TABLE} ORDER BY id DESC LIMIT $1",
        (limit,),
    )
    numbers = (0, 1, 4)  # the places of id, manifest_version and operation_count
    return [
        history.entry_of([
            int(value or 0) if place in numbers else value for place, value in enumerate(row)
        ])
        for row in rows
    ]


def own_indexes(session: Session) -> dict[str, str]:
    """Return the indexes that Pylon made for manifests: lower-case name to entity."""
    if not has_table(session, "_pylon_meta"):
        return {}
    noted = meta.get(session, "indexes")
    return {} if noted is None else {str(k): str(v) for k, v in orjson.loads(noted).items()}


def note_own_indexes(session: Session, own: Mapping[str, str]) -> None:
    """Set the result of `own_indexes`."""
    meta.put(session, "indexes", history.own_text(own))


def unfinished_steps(session: Session) -> list[str]:
    """Return the steps that a start has begun, and none has finished."""
    noted = meta.get(session, _UNFINISHED)
    return [] if noted is None else [str(step) for step in orjson.loads(noted)]


def note_unfinished(session: Session, steps: Sequence[str]) -> None:
    """Note the steps that begin now; none: all are done."""
    if steps:
        meta.put(session, _UNFINISHED, orjson.dumps(list(steps)).decode())
    else:
        meta.remove(session, _UNFINISHED)
