"""Bundle contents: the files of a backup bundle, and `MANIFEST.json`, which lists them.

    VERSION         version of Pylon that made it
    pylon.db        of SQLite: the database, one file, at one commit (sessions are in it)
    pylon.dump      of PostgreSQL: the app's schema at one commit, as `pg_dump -Fc` writes it
    manifest.json   the app's manifest
    secret.key      the secret key, if it lies in the data directory
    MANIFEST.json   sizes and SHA-256 of the other files; head seq, lineage, schema hash, time

Invariants: `MANIFEST.json` is written last. Its format 1, of earlier versions, is read too: it
knows SQLite only. Called by the modules of this package, and by the backups of each store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from pylon.errors import BackupInvalid

FORMAT: Final = 2
OLDEST_FORMAT: Final = 1
APP_MANIFEST: Final = "manifest.json"
VERSION_FILE: Final = "VERSION"
CONTENTS: Final = "MANIFEST.json"
SQLITE: Final = "sqlite"
POSTGRES: Final = "postgres"
DATA_FILES: Final = {SQLITE: "pylon.db", POSTGRES: "pylon.dump"}  # by store


class FileEntry(msgspec.Struct, frozen=True):
    """One file of the bundle."""

    size_bytes: int
    sha256: str


class TableEntry(msgspec.Struct, frozen=True):
    """The number of rows of a table, and a digest of them."""

    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that identify the state of a database.

    `server_version`: of the database server or library that made the data. `history_id`: which run
    of a PostgreSQL server's history the data come from. `schema`: the PostgreSQL schema.
    `tables`: what each table has; SQLite's integrity check takes their place.
    """

    seq: int
    lineage: str
    schema_hash: str
    store: str = SQLITE
    server_version: str = ""
    history_id: str = ""
    schema: str = ""
    tables: dict[str, TableEntry] = field(default_factory=dict)


class Contents(msgspec.Struct, frozen=True):
    """`MANIFEST.json`: the files of the bundle, and the commit of its database. See `Facts`."""

    format: int
    version: str  # of Pylon
    created_at: str  # ISO 8601, UTC
    seq: int  # head of the change log
    lineage: str  # names the database's history; "" for one that Pylon has never opened
    schema_hash: str
    files: dict[str, FileEntry]
    store: str = SQLITE
    server_version: str = ""
    history_id: str = ""
    schema: str = ""
    tables: dict[str, TableEntry] = {}

    @property
    def data_file(self) -> str:
        """Return the name of the file with the data."""
        return DATA_FILES[self.store]

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(entry.size_bytes for entry in self.files.values())


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
    if not OLDEST_FORMAT <= contents.format <= FORMAT:
        raise BackupInvalid(
            f"{path} has format {contents.format}; this Pylon reads formats {OLDEST_FORMAT} to "
            f"{FORMAT}"
        )
    if contents.store not in DATA_FILES:
        raise BackupInvalid(
            f"{path} is of the store {contents.store!r}; this Pylon knows {', '.join(DATA_FILES)}"
        )
    for name in contents.files:
        if name in ("", ".", "..") or "/" in name:
            raise BackupInvalid(f"{path} names {name!r}, which is not a file of the bundle")
    if contents.data_file not in contents.files:
        raise BackupInvalid(f"{path} lists no {contents.data_file}")
    return contents


def require_store(source: Path, contents: Contents, store: str) -> None:
    """Refuse the bundle of another store.

    Raises:
        BackupInvalid: the text says how its data come into this store.
    """
    if contents.store == store:
        return
    if contents.store == POSTGRES:
        remedy = (
            "set DATABASE_URL to a PostgreSQL database, restore it there, then move it with "
            "pylonctl migrate postgres-to-sqlite"
        )
    else:
        remedy = (
            "restore it without DATABASE_URL, then move it with pylonctl migrate sqlite-to-postgres"
        )
    raise BackupInvalid(f"{source} is a bundle of {contents.store}: {remedy}")
