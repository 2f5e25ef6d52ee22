"""Schema history: the table `_pylon_schema_history`, and the list of indexes that Pylon made.

Every start and every `schema apply` adds a row to the history. `_pylon_meta` lists, under
`indexes`, the indexes that Pylon made: a start may drop those when they leave the manifest. In a
database of an earlier version `own_indexes` derives the list from the history.

Invariant: callers pass `refuse_newer` before they read anything else. Called by `plan`, `apply`,
`rewrite` and `manager`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import apsw
import orjson

from pylon.clock import Clock, SystemRandom
from pylon.manifest.model import Manifest
from pylon.schema import history
from pylon.storage.sqlite import meta

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
    schema_format = manifest_version = None
    if has_table(conn, "_pylon_meta"):
        schema_format = meta.get(conn, "schema_format")
    if has_table(conn, "_pylon_schema_history"):
        manifest_version = conn.execute(
            "SELECT max(CAST(manifest_version AS INTEGER)) FROM _pylon_schema_history"
        ).get
    history.refuse_newer(schema_format, manifest_version)


def row_count(conn: apsw.Connection) -> int:
    """Return the number of entries in the history."""
    return int(conn.execute("SELECT count(*) FROM _pylon_schema_history").get)


def record(
    conn: apsw.Connection, manifest: Manifest, baseline: str, steps: Sequence[str], clock: Clock
) -> None:
    """Add an entry, and note the number of entries: another server adds entries without that."""
    values = history.entry_values(manifest, baseline, steps, clock)
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
    reads_from, _ = history.formats_after(meta.get(conn, "schema_format"), None)
    meta.put(conn, "schema_format", reads_from)


def entries(conn: apsw.Connection, limit: int) -> list[dict[str, Any]]:
    """Return the newest entries, newest first; `plan` is the decoded list of operations."""
    if not has_table(conn, "_pylon_schema_history"):
        return []
    rows: list[Any] = conn.execute(
        f"SELECT id, {', '.join(history.COLUMNS)} FROM _pylon_schema_history "
        "ORDER BY rowid DESC LIMIT ?", (limit,)
    ).fetchall()
    return [history.entry_of(row) for row in rows]


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
        for step in history.decoded(text):
            if isinstance(step, str) and step.startswith("add_index "):
                entity, _, name = step.removeprefix("add_index ").partition(".")
                if not name.endswith("_unique"):  # most likely a field's; to keep it is harmless
                    found[name.lower()] = entity
    return found


def note_own_indexes(conn: apsw.Connection, own: dict[str, str]) -> None:
    """Set the result of `own_indexes`."""
    meta.put(conn, "indexes", history.own_text(own))
