"""Schema history: entries of `_pylon_schema_history` as values, for all backends.

Every start and every `schema apply` adds an entry. `_pylon_meta` lists, under `indexes`, the
indexes that Pylon made: a start may drop those when they leave the manifest. Called by the
`history` modules of the backends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from pylon.clock import Clock
from pylon.errors import SchemaRefused
from pylon.manifest import references
from pylon.manifest.model import FORMAT_VERSION, Manifest
from pylon.schema.columns import index_name
from pylon.schema.database import Database
from pylon.schema.plan import columns_to_fill
from pylon.schema.steps import Plan

# The format of the system tables. A build writes `WRITES_FORMAT`; builds of `READS_FROM` and later
# can run on what it writes. An addition that older builds may ignore raises the first alone.
WRITES_FORMAT: Final = 2
READS_FROM: Final = 1
COLUMNS: Final = (
    "manifest_version", "app_version", "applied_at", "operation_count", "baseline", "plan_json",
)


def refuse_newer(reads_from: str | None, manifest_version: int | None) -> None:
    """Refuse a database that a newer Pylon has written in a way that this one cannot read.

    Args:
        reads_from: the noted one (`schema_format` in `_pylon_meta`); None: nothing is noted.
        manifest_version: the highest one of the history; None: there is no history.

    Raises:
        SchemaRefused: this build is older than `reads_from`, or the manifest version is higher
            than ours.
    """
    found = reads_from or "0"
    if not found.isdecimal() or int(found) > WRITES_FORMAT:
        raise _newer(f"schema format {found}", str(WRITES_FORMAT))
    if manifest_version is not None and manifest_version > FORMAT_VERSION:
        raise _newer(f"manifest version {manifest_version}", str(FORMAT_VERSION))


def formats_after(reads_from: str | None, writes: str | None) -> tuple[str, str]:
    """Return what to note after a start of this build: reads-from and writes, neither lower than
    another build has noted them."""
    return (
        str(max(READS_FROM, _number_of(reads_from))), str(max(WRITES_FORMAT, _number_of(writes)))
    )


def _number_of(noted: str | None) -> int:
    return int(noted) if noted is not None and noted.isdecimal() else 0


def _newer(what: str, ours: str) -> SchemaRefused:
    return SchemaRefused(
        f"the database was written by a newer Pylon: it has {what}, this one knows {ours}",
        hint="start the newer version, or restore a backup that was made before it",
    )


def entry_values(
    manifest: Manifest, baseline: str, steps: Sequence[str], clock: Clock
) -> dict[str, Any]:
    """Return the values of a new entry, by column; the id is the backend's."""
    applied_at = datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)
    return dict(zip(COLUMNS, (
        FORMAT_VERSION, manifest.version,
        applied_at.isoformat(timespec="seconds").replace("+00:00", "Z"), len(steps), baseline,
        orjson.dumps(list(steps)).decode(),
    ), strict=True))


def entry_of(row: Sequence[Any]) -> dict[str, Any]:
    """Return an entry from the id and `COLUMNS`; `plan` is the decoded list of operations."""
    return {
        "id": row[0], "manifest_version": row[1], "app_version": row[2], "applied_at": row[3],
        "operation_count": row[4], "baseline": row[5], "plan": decoded(row[6]),
    }


def decoded(text: object) -> list[Any]:
    """Return the operations of an entry."""
    try:
        found = orjson.loads(str(text))
    except orjson.JSONDecodeError:  # another server may write any text
        return []
    return found if isinstance(found, list) else [found]


def own_text(own: Mapping[str, str]) -> str:
    """Return the note of the indexes that Pylon made."""
    return orjson.dumps(dict(own), option=orjson.OPT_SORT_KEYS).decode()


def own_after(database: Database, manifest: Manifest, plan: Plan) -> dict[str, str]:
    """Return which indexes Pylon made, after the steps of a plan."""
    own = dict(database.own_indexes())
    manifest = references.with_reference_indexes(
        manifest, by_default=database.references_by_default()
    )
    wanted = {
        database.fitting_name(index_name(e, i)).lower()
        for e in manifest.entities for i in e.indexes
    }
    for step in plan.steps:
        if step.kind == "remove_index":
            own.pop(step.name.lower(), None)
        elif step.kind == "add_index" and step.name.lower() in wanted:
            own[step.name.lower()] = step.entity
    return own


def retained_columns(
    database: Database, manifest: Manifest, fill_values: Mapping[str, object]
) -> dict[str, dict[str, object]]:
    """Return, for each entity, the columns that the manifest no longer names and that need a value
    in each row, with that value.

    Args:
        fill_values: by type of column; the empty text for other types.
    """
    live = database.introspect([e.name for e in manifest.entities])
    found: dict[str, dict[str, object]] = {}
    for entity in manifest.entities:
        columns = columns_to_fill(database, entity, live.tables[entity.name.lower()])
        if columns:
            found[entity.name] = {c.name: fill_values.get(c.type, "") for c in columns}
    return found
