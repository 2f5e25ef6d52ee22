"""Statements: what a module of this package may ask of a connection, however it travels.

`pylon.storage.postgres.wire` sends them at once, and its caller waits; `pipe` shares one connection
among greenlets. Implemented by both; used by all modules of this package that ask the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import psycopg
from psycopg.pq.abc import PGresult

from pylon.storage.postgres.key_reads import KeyStatement, Row
from pylon.storage.postgres.parameters import Parameter

Statement: TypeAlias = tuple[str, Sequence[Parameter]]


class Session(Protocol):
    """Statements of one connection. See the implementation for what each call raises."""

    def execute(
        self, text: str, parameters: Sequence[Parameter] = (), *, timeout_s: float | None = None
    ) -> PGresult:
        """Carry out one statement, in one round trip.

        Args:
            timeout_s: for this call, in place of the session's.

        Raises:
            psycopg.Error: of the statement's SQLSTATE; QueryCanceled after the deadline;
                OperationalError when the connection is lost.
        """

    def pipeline(
        self, statements: Sequence[Statement], *, timeout_s: float | None = None
    ) -> list[PGresult]:
        """Carry out statements in one flush; a result for each.

        Raises: as `execute`.
        """

    def try_pipeline(
        self, statements: Sequence[Statement], *, timeout_s: float | None = None
    ) -> PipelineOutcome:
        """Carry out statements in one flush up to the first that fails. Raises nothing of
        psycopg."""

    def read_by_key(
        self, statement: KeyStatement, key: str, parameters: Sequence[Parameter] = ()
    ) -> Row | None:
        """Return the row with a key, without the key.

        Args:
            parameters: those behind the key.

        Raises: as `execute`.
        """


@dataclass(frozen=True, slots=True)
class PipelineOutcome:
    """The results of the statements that were carried out, and the error of the next one. So
    `len(results)` is the index of the statement that failed."""

    results: list[PGresult]
    error: psycopg.Error | None
