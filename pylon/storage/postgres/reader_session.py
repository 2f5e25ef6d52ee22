"""Reader session: carries out the statements of a reader, with Pylon's errors.

Invariant: of several reads `at_one_commit` each is a statement of one transaction. Made by
`reader`, which shares the session with its caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq.abc import PGresult

from pylon import limits
from pylon.errors import LimitExceeded, PylonError
from pylon.storage.postgres.connect import translate
from pylon.storage.postgres.dialect import numbered
from pylon.storage.postgres.key_reads import KeyStatement, Row
from pylon.storage.postgres.statements import Session
from pylon.storage.postgres.system_reads import rows_of

T = TypeVar("T")

_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class ReaderSession:
    """See the module."""

    __slots__ = ("_execute", "_is_at_one_commit", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._execute = session.execute
        self._is_at_one_commit = False

    def ask(self, text: str, params: Sequence[Any]) -> list[list[bytes | None]]:
        """Carry out a statement with marks, and return all its rows.

        Raises:
            psycopg.Error
        """
        return list(rows_of(self._execute(numbered(text), params)))

    def fetch(self, text: str, params: Sequence[Any]) -> list[list[bytes | None]]:
        """As `ask`; raises Pylon's errors."""
        try:
            return self.ask(text, params)
        except psycopg.Error as error:
            raise failed(error) from error

    def run(self, text: str, params: Sequence[Any] = ()) -> PGresult:
        """Carry out a statement whose values a row can have."""
        try:
            return self._execute(text, params)
        except psycopg.Error as error:
            raise failed(error) from error

    def row(
        self, statement: KeyStatement, row_id: str, params: Sequence[Any] = ()
    ) -> Row | None:
        """Return a row by its id; None if no id can be such a text."""
        try:
            return self._session.read_by_key(statement, row_id, params)
        except errors.CharacterNotInRepertoire:
            return None
        except psycopg.Error as error:
            raise failed(error) from error

    def all_of(
        self, make: Callable[[list[bytes | None]], T], text: str, params: Sequence[Any] = ()
    ) -> list[T]:
        """Return what is made of each row that a key finds; none if no key can be such a text."""
        try:
            result = self._execute(text, params)
        except errors.CharacterNotInRepertoire:
            return []
        except psycopg.Error as error:
            raise failed(error) from error
        return [make(row) for row in rows_of(result)]

    def find(
        self, make: Callable[[list[bytes | None]], T], text: str, params: Sequence[Any]
    ) -> T | None:
        """Return the first of `all_of`, or None."""
        found = self.all_of(make, text, params)
        return found[0] if found else None

    def at_one_commit(self, read: Callable[[], T]) -> T:
        """See `Reader`."""
        if self._is_at_one_commit:
            return read()
        self.run(_BEGIN)
        self._is_at_one_commit = True
        end = "ROLLBACK"
        try:
            answer = read()
            end = "COMMIT"
        finally:
            self._is_at_one_commit = False
            self.run(end)
        return answer


def failed(error: psycopg.Error) -> PylonError:
    """Return the error for the client."""
    return too_large() if isinstance(error, errors.ProgramLimitExceeded) else translate(error)


def too_large() -> LimitExceeded:
    """Return the error of an answer that is too large."""
    return LimitExceeded(
        f"the rows of an answer have {limits.LIST_BYTES} bytes at most",
        hint="ask for fewer at a time: limit and offset, or pages of "
        "GET /api/entities/<Entity>/cursor; a single row by its id",
    )
