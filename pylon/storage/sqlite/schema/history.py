"""Schema history: the table `_pylon_schema_history`, and the list of indexes that Pylon made.

Every start and every `schema apply` adds a row to the history. `_pylon_meta` lists, under
`indexes`, the indexes that Pylon made: a start may drop those when they leave the manifest. In a
database of an earlier version `own_indexes` derives the list from the history.

Invariant: callers pass `refuse_newer` before they read anything else. Called by `plan`, `apply`,
`rewrite` and `manager`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import apsw
import orjson

from pylon.clock import Clock, SystemRandom
from pylon.errors import SchemaRefused
from pylon.manifest.model import FORMAT_VERSION, Manifest
from pylon.storage.sqlite import meta

SCHEMA_FORMAT: Final = 1  # of the system tables; a newer Pylon may write a higher one
_ID_BYTES: Final = 16


def has_table(conn: apsw.Connection, name: str) -> bool:
    """Whether the database has a table of this name."""
    found = conn.execute(
        "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (name,)
    ).get
    return found is not None


def refuse_newer(conn: apsw.Connection) -> None:
    """Refuse a database that a newer Pylon has written.

    Raises:
        SchemaRefused: its schema format or manifest version is higher than ours.
    """
    if has_table(conn, "_pylon_meta"):
        found = meta.get(conn, "schema_format") or "0"
        if not found.isdecimal() or int(found) > SCHEMA_FORMAT:
            raise _newer(f"schema format {found}", str(SCHEMA_FORMAT))
    if has_table(conn, "_pylon_schema_history"):
        newest: Any = conn.execute(
            "SELECT max(CAST(manifest_version AS INTEGER)) FROM _pylon_schema_history"
        ).get
        if newest is not None and newest > FORMAT_VERSION:
            raise _newer(f"manifest version {newest}", str(FORMAT_VERSION))


def _newer(what: str, ours: str) -> SchemaRefused:
    return SchemaRefused(
        f"the database was written by a newer Pylon: it has {what}, this one knows {ours}",
        hint="start the newer version, or restore a backup that was made before it",
    )


def row_count(conn: apsw.Connection) -> int:
    """Return the number of entries in the history."""
    return int(conn.execute("SELECT count(*) FROM _pylon_schema_history").get)


def record(
    conn: apsw.Connection, manifest: Manifest, baseline: str, steps: Sequence[str], clock: Clock
) -> None:
    """Add an entry, and note the number of entries: another server adds entries without that."""
    applied_at = datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)
    values: dict[str, object] = {
        "manifest_version": FORMAT_VERSION,
        "app_version": manifest.version,
        "applied_at": applied_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "operation_count": len(steps),
        "baseline": baseline,
        "plan_json": orjson.dumps(list(steps)).decode(),
    }
    id_type = conn.execute(
        "SELECT upper(type) FROM pragma_table_info('_pylon_schema_history') WHERE name = 'id'"
    ).get
    if id_type != "INTEGER":  # the history table of the Rust server may need an id
        values["id"] = SystemRandom().token_hex(_ID_BYTES)
    conn.execute(
        f"INSERT INTO _pylon_schema_history ({', '.join(values)}) "
        f"VALUES ({', '.join('?' * len(values))})",
        tuple(values.values()),
    )
    meta.put(conn, "history_rows", str(row_count(conn)))
    meta.put(conn, "schema_format", str(SCHEMA_FORMAT))


def entries(conn: apsw.Connection, limit: int) -> list[dict[str, Any]]:
    """Return the newest entries, newest first; `plan` is the decoded list of operations."""
    if not has_table(conn, "_pylon_schema_history"):
        return []
    rows = conn.execute(
        "SELECT id, manifest_version, app_version, applied_at, operation_count, baseline, "
        "plan_json FROM _pylon_schema_history ORDER BY rowid DESC LIMIT ?", (limit,)
    ).fetchall()
    return [
        {"id": row[0], "manifest_version": row[1], "app_version": row[2], "applied_at": row[3],
         "operation_count": row[4], "baseline": row[5], "plan": _decoded(row[6])}
        for row in rows
    ]


def own_indexes(conn: apsw.Connection) -> dict[str, str]:
    """Return the indexes that Pylon made for manifests: lower-case name to entity."""
    if not has_table(conn, "_pylon_meta"):
        return {}
    noted = meta.get(conn, "indexes")
    if noted is not None:
        return {str(k): str(v) for k, v in orjson.loads(noted).items()}
    if meta.get(conn, "lineage") is None:
        return {}
    found = {}
    for (text,) in conn.execute(
        "SELECT plan_json FROM _pylon_schema_history WHERE baseline = 'start'"
    ):
        for step in _decoded(text):
            if isinstance(step, str) and step.startswith("add_index "):
                entity, _, name = step.removeprefix("add_index ").partition(".")
                if not name.endswith("_unique"):  # most likely a field's; to keep it is harmless
                    found[name.lower()] = entity
    return found


def note_own_indexes(conn: apsw.Connection, own: dict[str, str]) -> None:
    """Set the result of `own_indexes`."""
    meta.put(conn, "indexes", orjson.dumps(own, option=orjson.OPT_SORT_KEYS).decode())


def _decoded(text: object) -> list[Any]:
    try:
        decoded = orjson.loads(str(text))
    except orjson.JSONDecodeError:  # another server may write any text
        return []
    return decoded if isinstance(decoded, list) else [decoded]
