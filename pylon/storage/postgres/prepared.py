"""Prepared statements: the statements that a connection has prepared, and how one is sent.

A statement is prepared when it is first used, under a name that the connection remembers by its
text, so later uses skip the server's parser. A migration may make a prepared statement useless
(`is_outdated`); it is prepared again then.

Bounds: `STATEMENTS_KEPT` prepared statements; the oldest one is closed for a new one. Called by
`wire` and `pipe`, with a connection in pipeline mode.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from enum import Enum
from typing import Final, TypeAlias

import psycopg
from psycopg import errors, pq
from psycopg.pq.abc import PGconn, PGresult

from pylon.storage.postgres.parameters import Parameter, encode_parameters

STATEMENTS_KEPT: Final = 1_024

# An older libpq closes by a statement, DEALLOCATE, which a failed transaction refuses; poolers know
# the message only.
_CLOSES_BY_MESSAGE: Final = pq.version() >= 170_000
_OUTDATED: Final = (errors.FeatureNotSupported, errors.InvalidSqlStatementName)
_REVALIDATION: Final = b"RevalidateCachedQuery"  # the server's function that finds an outdated plan


class Step(Enum):
    """An answer of libpq; there is one for each message that was sent."""

    CLOSE = 1
    PREPARE = 2
    QUERY = 3


class PreparedStatements:
    """The names of a connection's prepared statements, by text."""

    __slots__ = ("_made", "_max_kept", "_name_by_text")

    def __init__(self, max_kept: int = STATEMENTS_KEPT) -> None:
        self._name_by_text: OrderedDict[str, bytes] = OrderedDict()
        self._max_kept = max_kept
        self._made = 0

    def find(self, text: str) -> bytes | None:
        """Return the name of a text's statement, or None."""
        return self._name_by_text.get(text)

    def add(self, text: str) -> bytes:
        """Return the name under which the caller prepares the text now."""
        self._made += 1
        name = self._name_by_text[text] = b"pylon_%d" % self._made
        return name

    def discard(self, text: str) -> None:
        """Forget a text whose preparation failed."""
        self._name_by_text.pop(text, None)

    def take_oldest(self) -> bytes | None:
        """Forget the oldest statement if there are too many, and return its name: the caller
        closes it."""
        if len(self._name_by_text) < self._max_kept:
            return None
        return self._name_by_text.popitem(last=False)[1]

    def clear(self) -> None:
        """Forget all: the caller has closed them."""
        self._name_by_text.clear()


Pending: TypeAlias = deque[tuple[Step, str]]


def send_statement(
    pgconn: PGconn, prepared: PreparedStatements, text: str, parameters: Sequence[Parameter],
    pending: Pending,
) -> None:
    """Put a statement into the buffer of a connection in pipeline mode; prepare it before its first
    use. Appends what libpq will answer to `pending`, as `take_answers` reads it.

    Raises:
        psycopg.Error: a parameter cannot be encoded (nothing was sent), or the connection is lost.
    """
    values, formats = encode_parameters(parameters)
    name = prepared.find(text)
    if name is None:
        if _CLOSES_BY_MESSAGE or pgconn.transaction_status != pq.TransactionStatus.INERROR:
            oldest = prepared.take_oldest()
            if oldest is not None:
                _send_close(pgconn, oldest)
                pending.append((Step.CLOSE, ""))
        name = prepared.add(text)
        pgconn.send_prepare(name, text.encode())
        pending.append((Step.PREPARE, text))
    pgconn.send_query_prepared(name, values, formats)
    pending.append((Step.QUERY, text))


def _send_close(pgconn: PGconn, name: bytes) -> None:
    if _CLOSES_BY_MESSAGE:
        pgconn.send_close_prepared(name)
    else:
        pgconn.send_query_params(b"DEALLOCATE " + name, None)


def error_of(result: PGresult) -> psycopg.Error:
    """Return the error of a failed result, in the class of its SQLSTATE. libpq's own errors have
    none: the connection is lost."""
    if result.error_field(pq.DiagnosticField.SQLSTATE) is None:
        return psycopg.OperationalError(result.get_error_message())
    return errors.error_from_result(result)


def is_outdated(error: psycopg.Error) -> bool:
    """Whether an error says that a prepared statement no longer fits the schema, or is gone. The
    statement is to be prepared again then."""
    if not isinstance(error, _OUTDATED):
        return False
    if isinstance(error, errors.InvalidSqlStatementName):
        return True
    return error.diag.source_function == _REVALIDATION.decode()
