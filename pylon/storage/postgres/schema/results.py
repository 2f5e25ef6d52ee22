"""Results as texts: reads small answers. Called by the modules of this package."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.pq.abc import PGresult

from pylon.storage.postgres.parameters import Parameter
from pylon.storage.postgres.statements import Session

TextRow = tuple[str | None, ...]


def text_rows(result: PGresult) -> list[TextRow]:
    """Return the rows of a result, each value as PostgreSQL's text of it."""
    columns = range(result.nfields)
    found = []
    for row in range(result.ntuples):
        values = [result.get_value(row, column) for column in columns]
        found.append(tuple([None if value is None else value.decode() for value in values]))
    return found


def ask(session: Session, text: str, parameters: Sequence[Parameter] = ()) -> list[TextRow]:
    """Carry out a statement and return its rows.

    Raises:
        psycopg.Error
    """
    return text_rows(session.execute(text, parameters))


def ask_one(session: Session, text: str, parameters: Sequence[Parameter] = ()) -> str | None:
    """Carry out a statement and return the first value of its first row; None without a row.

    Raises:
        psycopg.Error
    """
    rows = ask(session, text, parameters)
    return rows[0][0] if rows else None


def ask_number(session: Session, text: str, parameters: Sequence[Parameter] = ()) -> int:
    """As `ask_one`, for a whole number; 0 without a value.

    Raises:
        psycopg.Error
    """
    return int(ask_one(session, text, parameters) or 0)
