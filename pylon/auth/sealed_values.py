"""Sealed values: the columns that hold them, and by which secret key each value is sealed.

`pylon.auth.keys` seals a value and writes the name of the key (kid) into it. After a change of the
secret key, `workers.identity.seal_jobs` seals the values of earlier keys anew, and
`pylonctl secret status` counts those that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import Value
from pylon.storage.interface import Reader

COLUMN: Final = "sealed"  # of each table
_ROWS: Final = 200  # read at once


@dataclass(frozen=True, slots=True)
class SealedTable:
    """A table with sealed values.

    Attributes:
        keys: the columns that name a record.
        subject: of them the one that the seal is bound to; records are read in its order.
    """

    name: str
    keys: tuple[str, ...]
    subject: str


TABLES: Final = (
    SealedTable("totp", ("user_id",), "user_id"),
    SealedTable("oauth_tokens", ("provider", "user_id"), "user_id"),
    SealedTable("outbox", ("id",), "id"),
)


def read_sealed(
    read: Callable[[Callable[[Reader], list[dict[str, Value]]]], list[dict[str, Value]]],
    table: SealedTable,
) -> Iterator[list[dict[str, Value]]]:
    """Yield all records of a table in pages. A page may repeat records of the one before.

    Args:
        read: calls a function with a reader.
    """
    after: Value = ""
    while True:
        where = [Condition(table.subject, ">=", after)]
        page = read(lambda reader, where=where: reader.records(  # type: ignore[misc]
            table.name, where, (table.subject,), _ROWS
        ))
        yield page
        if len(page) < _ROWS or page[-1][table.subject] == after:
            return
        after = page[-1][table.subject]


def kid_of(sealed: Value) -> str:
    """Return the name of the key of a sealed value."""
    return str(sealed).split(".")[1]
