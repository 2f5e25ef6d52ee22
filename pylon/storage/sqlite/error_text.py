"""Error text: returns a readable text for an error of SQLite.

SQLite stores the text of a connection's last failure. Some calls fail without setting it, such as
each step of a backup. Then the text is "not an error", and this module chooses one by the class of
the error. Called wherever an `apsw.Error` becomes part of a message.
"""

from __future__ import annotations

from typing import Final

import apsw

_EMPTY: Final = ("not an error", "")
_TEXTS: Final[dict[type[apsw.Error], str]] = {
    apsw.BusyError: "the database is locked by another process",
    apsw.CantOpenError: "unable to open the database file",
    apsw.CorruptError: "the database file is malformed",
    apsw.FullError: "the database or the disk is full",
    apsw.IOError: "the disk failed to read or write",
    apsw.InterruptError: "it was interrupted",
    apsw.LockedError: "a table of the database is locked",
    apsw.NoMemError: "there is not enough memory",
    apsw.NotADBError: "the file is not a database",
    apsw.PermissionsError: "the file may not be accessed",
    apsw.ReadOnlyError: "the database may not be written to",
    apsw.TooBigError: "a value is too large",
}


def error_text(error: BaseException) -> str:
    """Return the error's own text, or one for its class."""
    text = str(error).strip()
    if text not in _EMPTY:
        return text
    for kind, words in _TEXTS.items():
        if isinstance(error, kind):
            return words
    return type(error).__name__
