"""Connections: opens connections, and translates SQLite's errors into Pylon's.

Readers open the file read-write with `query_only`: a read-only connection cannot make the
shared-memory file that a WAL database needs. Called by the modules of this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import apsw

from pylon import limits
from pylon.errors import InternalError, LimitExceeded, PylonError, QueryTimeout, StoreUnavailable
from pylon.runtime import memory
from pylon.storage.sqlite import pragmas
from pylon.storage.sqlite.error_text import error_text

STATEMENT_CACHE: Final = 256

# Errors of the store itself: the request is not at fault, and may succeed later.
STORE_FAILURES: Final = (
    apsw.FullError, apsw.IOError, apsw.ReadOnlyError, apsw.BusyError, apsw.LockedError,
    apsw.CantOpenError, apsw.CorruptError, apsw.NotADBError, apsw.NoMemError,
    apsw.ProtocolError, apsw.PermissionsError, apsw.ConnectionClosedError,
)


_REASONS: Final[tuple[tuple[type[apsw.Error], str], ...]] = (
    (apsw.FullError, "disk_full"),
    (apsw.ReadOnlyError, "read_only"),
    (apsw.CantOpenError, "cannot_open"),
    (apsw.IOError, "io"),
    (apsw.BusyError, "busy"),
    (apsw.LockedError, "busy"),
    (apsw.CorruptError, "corrupt"),
    (apsw.NotADBError, "corrupt"),
    (apsw.NoMemError, "memory"),
    (apsw.ConstraintError, "foreign_writer"),
)


def refusal_reason(error: Exception) -> str:
    """Return why a batch was refused: the label of pylon_writes_refused_total."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "other")


def open_writer(path: str | Path) -> apsw.Connection:
    """Open the writer's connection. Makes a missing file. Commits sync until `set_durability`.

    Raises:
        apsw.Error
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    conn = apsw.Connection(str(path), flags=flags, statementcachesize=STATEMENT_CACHE)
    pragmas.apply_shared(conn)
    pragmas.apply_writer(conn)
    return conn


def open_reader(path: str | Path) -> apsw.Connection:
    """Open a connection that cannot write, to an existing database.

    Raises:
        StoreUnavailable
    """
    memory.keep_freed()
    try:
        conn = apsw.Connection(
            str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=STATEMENT_CACHE
        )
        # Otherwise SQLite compiles a statement with a LIMIT parameter again at each execution,
        # because another value may need another plan.
        conn.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        pragmas.apply_shared(conn)
        pragmas.apply_reader(conn)
    except apsw.Error as error:
        raise translate(error) from error
    return conn


def translate(error: apsw.Error) -> PylonError:
    """Return the error for the client for an error of SQLite."""
    if isinstance(error, apsw.InterruptError):
        return QueryTimeout("the query took too long", hint="narrow it, or add an index")
    if isinstance(error, STORE_FAILURES):
        return StoreUnavailable(f"the database is not available: {error_text(error)}")
    if isinstance(error, apsw.TooBigError):
        return LimitExceeded(
            f"the rows of an answer have {limits.LIST_BYTES} bytes at most",
            hint="ask for fewer at a time: limit and offset, or pages of "
            "GET /api/entities/<Entity>/cursor; a single row by its id",
        )
    return InternalError("the database refused a statement")
