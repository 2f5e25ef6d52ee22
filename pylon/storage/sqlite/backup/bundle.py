"""Backup bundle: a folder with the database, the app's manifest and their hashes.

    VERSION         version of Pylon that made it
    pylon.db        the SQLite database, one file, at one commit (sessions are in it)
    manifest.json   the app's manifest
    MANIFEST.json   sizes and SHA-256 of the other files; head seq, lineage, schema hash, time

Invariants: a folder under its final name is complete, because `create` syncs all files before it
renames the folder. `MANIFEST.json` is written last. `create` writes bundles; `verify` and `restore`
read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw
import msgspec

from pylon.errors import BackupInvalid

FORMAT: Final = 1
DATABASE: Final = "pylon.db"
APP_MANIFEST: Final = "manifest.json"
VERSION_FILE: Final = "VERSION"
CONTENTS: Final = "MANIFEST.json"

_CHUNK_BYTES: Final = 1024 * 1024


class FileEntry(msgspec.Struct, frozen=True):
    """One file of the bundle."""

    size_bytes: int
    sha256: str


class Contents(msgspec.Struct, frozen=True):
    """`MANIFEST.json`: the files of the bundle, and the commit of its database."""

    format: int
    version: str  # of Pylon
    created_at: str  # ISO 8601, UTC
    seq: int  # head of the change log
    lineage: str  # names the database's history; "" for one that Pylon has never opened
    schema_hash: str
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that identify the state of a database."""

    seq: int
    lineage: str
    schema_hash: str


def read_facts(conn: apsw.Connection) -> Facts:
    """Return head seq, lineage and schema hash of the database of `conn`.

    The head is that of `pylon.storage.sqlite.log.head_seq`. This function also works in a database
    that Pylon has never opened and that lacks some of the tables.
    """
    tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type='table'")}
    seq = 0
    if "_pylon_change_log" in tables:
        seq = _scalar(conn, "SELECT max(seq) FROM _pylon_change_log") or 0
    if "_pylon_change_seq" in tables:
        seq = max(seq, _scalar(conn, "SELECT max(value) FROM _pylon_change_seq") or 0)
    if "_pylon_epochs" in tables:
        seq = max(seq, _scalar(conn, "SELECT max(first_seq) FROM _pylon_epochs") or 0)
    lineage = ""
    if "_pylon_meta" in tables:
        for (value,) in conn.execute("SELECT value FROM _pylon_meta WHERE key = 'lineage'"):
            lineage = str(value)
    digest = hashlib.sha256()
    for row in conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2, 3"):
        digest.update(repr(row).encode())
    return Facts(seq, lineage, digest.hexdigest())


def _scalar(conn: apsw.Connection, sql: str) -> int | None:
    for (value,) in conn.execute(sql):
        return None if value is None else int(value)
    return None


def check_integrity(conn: apsw.Connection) -> None:
    """Run SQLite's integrity check.

    Raises:
        BackupInvalid: the database is damaged; the text has SQLite's first complaint.
    """
    for (verdict,) in conn.execute("PRAGMA integrity_check(1)"):
        if verdict != "ok":
            raise BackupInvalid(f"the database in the bundle is damaged: {verdict}")


@contextmanager
def open_unchanging(path: Path) -> Iterator[apsw.Connection]:
    """Open a database file that no process writes, without making a WAL or SHM file."""
    uri = path.absolute().as_uri() + "?mode=ro&immutable=1"
    conn = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        yield conn
    finally:
        conn.close()


def entry_of(path: Path) -> FileEntry:
    """Return size and hash of a file."""
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return FileEntry(size_bytes, digest.hexdigest())


def read_contents(bundle: Path) -> Contents:
    """Parse the bundle's `MANIFEST.json`.

    Raises:
        BackupInvalid: it is missing or malformed, or it names a path outside the bundle.
    """
    path = bundle / CONTENTS
    try:
        contents = msgspec.json.decode(path.read_bytes(), type=Contents)
    except FileNotFoundError:
        raise BackupInvalid(
            f"{bundle} has no {CONTENTS}: it is not a finished bundle of `pylonctl backup`"
        ) from None
    except (OSError, msgspec.MsgspecError) as ex:
        raise BackupInvalid(f"{path} cannot be read: {ex}") from None
    if contents.format != FORMAT:
        raise BackupInvalid(
            f"{path} has format {contents.format}; this Pylon reads format {FORMAT}"
        )
    for name in contents.files:
        if name in ("", ".", "..") or "/" in name:
            raise BackupInvalid(f"{path} names {name!r}, which is not a file of the bundle")
    if DATABASE not in contents.files:
        raise BackupInvalid(f"{path} lists no {DATABASE}")
    return contents
