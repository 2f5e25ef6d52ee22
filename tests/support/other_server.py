"""A database file as the other server leaves it, made from spec/http.md §2.7 and §2.9.

Rowid tables without our columns; indexes under both names; for each entity with text an FTS5
table over its content with triggers, made (as that server makes it) when rows may be there
already; the tables of its search, CRDTs and history; its change log, with times as text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apsw

_TYPES = {"int": "INTEGER", "float": "REAL", "bool": "INTEGER"}
_LOG = """
    CREATE TABLE _pylon_change_log (seq INTEGER PRIMARY KEY, entity TEXT NOT NULL,
        row_id TEXT NOT NULL, kind TEXT NOT NULL, data TEXT, prev_data TEXT,
        timestamp TEXT NOT NULL);
    CREATE TABLE _pylon_change_seq (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL);
"""
_SIDE_TABLES = """
    CREATE TABLE _pylon_crdt_snapshots (entity TEXT NOT NULL, row_id TEXT NOT NULL,
        snapshot BLOB NOT NULL, updated_at TEXT NOT NULL, PRIMARY KEY (entity, row_id));
    CREATE TABLE _facet_bitmap (entity TEXT NOT NULL, facet TEXT NOT NULL, value TEXT NOT NULL,
        bitmap BLOB NOT NULL, row_count INTEGER NOT NULL, PRIMARY KEY (entity, facet, value));
    CREATE TABLE _pylon_schema_history (id TEXT PRIMARY KEY NOT NULL,
        manifest_version INTEGER NOT NULL, app_version TEXT NOT NULL, applied_at TEXT NOT NULL,
        operation_count INTEGER NOT NULL, baseline TEXT NOT NULL, plan_json TEXT NOT NULL);
    INSERT INTO _pylon_schema_history VALUES ('h1', 1, '0.1.0', '2026-01-01T00:00:00Z', 2, 'dev',
        '{"operations":[{"op":"create_entity","entity":"Note"}]}');
"""
FIRST_SEQ = 1_001


def make_database(
    path: Path,
    manifest: dict[str, Any],
    rows: dict[str, list[dict[str, Any]]],
    change_log: bool = True,
    indexed_rows: int = 1,
) -> None:
    """
    Args:
        rows: of each entity, with ids; booleans are stored as 0 and 1.
        change_log: whether that server kept one; the rows' inserts are in it.
        indexed_rows: how many rows of each entity its text search knows. The first search of
            a database that had rows already knows none of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    conn = apsw.Connection(str(path))
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute(_SIDE_TABLES)
    if change_log:
        conn.execute(_LOG)
    seq = FIRST_SEQ
    for entity in manifest["entities"]:
        _make_entity(conn, entity)
        found = rows.get(entity["name"], [])
        for position, row in enumerate(found):
            if position == len(found) - indexed_rows:
                _make_search(conn, entity)
            _insert(conn, entity["name"], row)
            conn.execute("INSERT INTO _pylon_crdt_snapshots VALUES (?, ?, x'00', 'now')",
                         (entity["name"], row["id"]))
            if change_log:
                conn.execute(
                    "INSERT INTO _pylon_change_log VALUES (?, ?, ?, 'insert', ?, NULL, ?)",
                    (seq, entity["name"], row["id"], json.dumps(row), f"{1714700000 + seq}Z"),
                )
            seq += 1
        _make_search(conn, entity)
    if change_log:
        conn.execute("INSERT INTO _pylon_change_seq VALUES (1, ?)", (seq - 1,))
    conn.close()


def _make_entity(conn: apsw.Connection, entity: dict[str, Any]) -> None:
    name = entity["name"]
    columns = ["id TEXT PRIMARY KEY NOT NULL"]
    for field in entity["fields"]:
        column = f'"{field["name"]}" {_TYPES.get(field["type"], "TEXT")}'
        column += "" if field["optional"] else " NOT NULL"
        column += " UNIQUE" if field["unique"] else ""
        columns.append(column)
    conn.execute(f'CREATE TABLE "{name}" ({", ".join(columns)})')
    for index in entity["indexes"]:
        fields = ", ".join(f'"{f}"' for f in index["fields"])
        kind = "UNIQUE INDEX" if index["unique"] else "INDEX"
        for index_name in (f"{name}_{index['name']}", index["name"]):
            conn.execute(f'CREATE {kind} "{index_name}" ON "{name}" ({fields})')


def _make_search(conn: apsw.Connection, entity: dict[str, Any]) -> None:
    """The FTS5 table over the entity's texts, and its triggers; nothing is indexed yet."""
    name = entity["name"]
    texts = [f["name"] for f in entity["fields"] if f["type"] in ("string", "richtext")]
    if not texts:
        return
    columns = ", ".join(f'"{t}"' for t in texts)
    new, old = (", ".join(f'{which}."{t}"' for t in texts) for which in ("new", "old"))
    add = f'INSERT INTO "{name}_fts" (rowid, {columns}) VALUES (new.rowid, {new});'
    drop = (f'INSERT INTO "{name}_fts" ("{name}_fts", rowid, {columns}) '
            f"VALUES ('delete', old.rowid, {old});")
    conn.execute(f"""
        CREATE VIRTUAL TABLE IF NOT EXISTS "{name}_fts" USING fts5({columns},
            content="{name}", content_rowid="rowid");
        CREATE TRIGGER IF NOT EXISTS "{name}_fts_ai" AFTER INSERT ON "{name}" BEGIN {add} END;
        CREATE TRIGGER IF NOT EXISTS "{name}_fts_ad" AFTER DELETE ON "{name}" BEGIN {drop} END;
        CREATE TRIGGER IF NOT EXISTS "{name}_fts_au" AFTER UPDATE ON "{name}"
            BEGIN {drop} {add} END;
    """)


def _insert(conn: apsw.Connection, entity: str, row: dict[str, Any]) -> None:
    columns = ", ".join(f'"{c}"' for c in row)
    conn.execute(
        f'INSERT INTO "{entity}" ({columns}) VALUES ({", ".join("?" * len(row))})',
        tuple(int(v) if isinstance(v, bool) else v for v in row.values()),
    )
