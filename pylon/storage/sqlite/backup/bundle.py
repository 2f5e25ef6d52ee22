"""SQLite's part of a bundle: the facts of a database file, and its integrity check.

Called by the modules of this package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import apsw

from pylon.errors import BackupInvalid
from pylon.storage.bundle.contents import DATA_FILES, SQLITE, Facts, TableEntry
from pylon.storage.sqlite import log, meta

DATABASE: Final = DATA_FILES[SQLITE]


def read_facts(conn: apsw.Connection) -> Facts:
    """Return head seq, lineage and schema hash of the database of `conn`, which may lack some of
    Pylon's tables."""
    tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type='table'")}
    lineage = meta.get(conn, "lineage") if "_pylon_meta" in tables else None
    digest = hashlib.sha256()
    for row in conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2, 3"):
        digest.update(repr(row).encode())
    return Facts(log.find_head_seq(conn, tables), lineage or "", digest.hexdigest())


def check_integrity(conn: apsw.Connection) -> None:
    """Run SQLite's integrity check.

    Raises:
        BackupInvalid: the database is damaged; the text has SQLite's first complaint.
    """
    for (verdict,) in conn.execute("PRAGMA integrity_check(1)"):
        if verdict != "ok":
            raise BackupInvalid(f"the database in the bundle is damaged: {verdict}")


def check_copy(path: Path) -> Facts:
    """Run the integrity check on a database file that no process writes, and return its facts.

    Raises:
        BackupInvalid: it is damaged.
    """
    with open_unchanging(path) as conn:
        check_integrity(conn)
        tables = {name: TableEntry(rows, "") for name, rows in count_rows(conn).items()}
        return replace(
            read_facts(conn), server_version=apsw.sqlite_lib_version(), tables=tables
        )


def count_rows(conn: apsw.Connection) -> dict[str, int]:
    """Return the number of rows of each table, without those that SQLite or FTS5 keep."""
    names = [str(name) for (name,) in conn.execute(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' "
        "AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY name"
    )]
    counts: dict[str, int] = {}
    for name in names:
        quoted = name.replace('"', '""')
        found: Any = conn.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()
        counts[name] = found[0]
    return counts


@contextmanager
def open_unchanging(path: Path) -> Iterator[apsw.Connection]:
    """Open a database file that no process writes, without making a WAL or SHM file."""
    uri = path.absolute().as_uri() + "?mode=ro&immutable=1"
    conn = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        yield conn
    finally:
        conn.close()
