"""Flush: the statements that a transaction has gathered, and how they become one round trip.

A statement keeps the position of the request that it belongs to, so that a refusal of the database
finds its request. Seqs are provisional until the flush: `$1` of a statement with a seq is its
distance from the last seq of the batch (see `sequences`). Consecutive inserts of one shape become
statements with several rows.

PERF: a statement of its own costs the server 6 us and this process 5; one of 32 rows 2 and 1 each.
Only sizes of powers of two are used, so that a table has few prepared statements.

Called by `batch`, `failures` and `transaction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import psycopg

from pylon.errors import PylonError
from pylon.storage.postgres.parameters import EncodedParameters, Parameter
from pylon.storage.postgres.statements import Statement

NO_SEQ: Final = -1  # of a statement without a seq
NO_REQUEST: Final = -1  # the position of what belongs to the batch as a whole
ROWS_MAX: Final = 32
_PARAMETERS_MAX: Final = 8_192  # of one statement; the protocol takes 65,535


class RefusalSource(Protocol):
    """The object that knows the request's error of a refused statement."""

    def refuse(self, error: psycopg.Error, row_json: bytes) -> PylonError:
        """Return the error for the client. Args: `row_json`: the row of the statement."""


class InsertShape:
    """An INSERT of rows with the same columns. `marks`: the number of parameters of a row."""

    __slots__ = ("_head", "_row", "_texts", "marks", "rows_max")

    def __init__(self, head: str, marks: int, row: str) -> None:
        """
        Args:
            head: up to VALUES.
            row: the values of one row, with `{0}`, `{1}`, … for its parameters.
        """
        self._head = head
        self._row = row
        self._texts: dict[int, str] = {}
        self.marks = marks
        self.rows_max = ROWS_MAX
        while self.rows_max > 1 and self.rows_max * marks > _PARAMETERS_MAX:
            self.rows_max //= 2

    def text(self, rows: int) -> str:
        """Return the statement for a number of rows."""
        found = self._texts.get(rows)
        if found is None:
            values = ", ".join(
                self._row.format(*(f"${row * self.marks + n}" for n in range(1, self.marks + 1)))
                for row in range(rows)
            )
            found = self._texts[rows] = f"{self._head} VALUES {values}"
        return found


class Gathered(msgspec.Struct, gc=False):
    """A statement that waits for the flush.

    `text`: of the statement, or "" for an insert of `shape`. `seq`: provisional, of the value that
    `values[0]` stands for, or `NO_SEQ`. `source` and `row_json` make the request's error of the
    database's. PERF: a Struct costs 0.1 us in place of 0.3.
    """

    text: str
    values: list[bytes | None]
    position: int
    seq: int = NO_SEQ
    shape: InsertShape | None = None
    source: RefusalSource | None = None
    row_json: bytes = b"{}"
    binary: Sequence[Parameter] | None = None  # all parameters, where some are binary


class Flush:
    """Statements in order, and for each the gathered ones that it carries out."""

    __slots__ = ("origins", "statements")

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.origins: list[Sequence[Gathered]] = []

    def add(self, text: str, parameters: Sequence[Parameter] = ()) -> None:
        """Add a statement of the transaction itself."""
        self.statements.append((text, parameters))
        self.origins.append(())

    def add_gathered(
        self, gathered: Sequence[Gathered], last_seq: int, *, single: bool = False
    ) -> None:
        """Add gathered statements.

        Args:
            last_seq: provisional, the last one of the batch so far.
            single: one statement for each row.
        """
        place, end = 0, len(gathered)
        while place < end:
            item = gathered[place]
            shape = item.shape
            if item.seq >= 0:
                item.values[0] = b"%d" % (item.seq - last_seq)
            size = 1 if single or shape is None else _count_alike(gathered, place, shape)
            if size == 1:
                text = item.text if shape is None else shape.text(1)
                self.statements.append((text, item.binary or EncodedParameters(item.values)))
                self.origins.append((item,))
                place += 1
                continue
            assert shape is not None
            rows = gathered[place:place + size]
            values = EncodedParameters(item.values)
            for row in rows[1:]:
                if row.seq >= 0:
                    row.values[0] = b"%d" % (row.seq - last_seq)
                values += row.values
            self.statements.append((shape.text(size), values))
            self.origins.append(rows)
            place += size


def last_seq_of(gathered: Sequence[Gathered], last: int) -> int:
    """Return the last provisional seq of gathered statements; `last` if none is above it."""
    for item in gathered:
        if item.seq > last:
            last = item.seq
    return last


def _count_alike(gathered: Sequence[Gathered], place: int, shape: InsertShape) -> int:
    """Return the largest power of two of rows of one shape from `place` on."""
    end = min(len(gathered), place + shape.rows_max)
    found = place + 1
    while found < end and gathered[found].shape is shape:
        found += 1
    return 1 << ((found - place).bit_length() - 1)
