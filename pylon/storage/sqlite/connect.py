"""Opens connections, and translates SQLite's errors into ours.

Readers open read-write with `query_only`: a connection that is read-only to the file system
cannot make the shared-memory file that a WAL database needs. Used by the reader, the engine,
the flusher and backup.
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

# The store itself fails: what was asked is not at fault, and may work later.
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
    """Why a batch was refused: the label of pylon_writes_refused_total."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "other")


def open_writer(path: str | Path) -> apsw.Connection:
    """The read-write connection; makes the file if need be. Commits fsync until told otherwise.

    Raises:
        apsw.Error
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    conn = apsw.Connection(str(path), flags=flags, statementcachesize=STATEMENT_CACHE)
    pragmas.apply_shared(conn)
    pragmas.apply_writer(conn)
    return conn


def open_reader(path: str | Path) -> apsw.Connection:
    """A connection that cannot write, to a database that exists.

    Raises:
        StoreUnavailable
    """
    memory.keep_freed()
    try:
        conn = apsw.Connection(
            str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=STATEMENT_CACHE
        )
        # Else a statement whose LIMIT is a parameter would be compiled again at each execution,
        # in case the new value asks for another plan.
        conn.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        pragmas.apply_shared(conn)
        pragmas.apply_reader(conn)
    except apsw.Error as error:
        raise translate(error) from error
    return conn


def translate(error: apsw.Error) -> PylonError:
    """The error that a client may see for one of SQLite's."""
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
