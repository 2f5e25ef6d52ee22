"""A piece of SQL with its values: what a policy or a filter asks of the rows of one entity.

Invariant: values of users, of callers and of policy texts are in `params` only, never in
`sql`; there are as many ``?`` in `sql` as there are params. Made by `pylon.policy.sql` and the
filter parser, put together and executed by the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Work(IntEnum):
    """What the store may meet in a step that it cannot interrupt while it evaluates a clause."""

    PLAIN = 0  # comparisons of values
    PATTERN = 1  # a look through a text, for each row
    MATCH = 2  # a look through the full-text index


@dataclass(frozen=True, slots=True)
class SqlClause:
    """A condition for WHERE: a row is wanted when it is true, not when it is 0 or NULL."""

    sql: str
    params: tuple[object, ...] = ()
    work: Work = Work.PLAIN
