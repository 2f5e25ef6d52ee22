"""A piece of SQL with its values: what a policy or a filter asks of the rows of one entity.

Invariant: values of users, of callers and of policy texts are in `params` only, never in
`sql`; there are as many ``?`` in `sql` as there are params. Made by `pylon.policy.sql` and the
filter parser, put together and executed by the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Work(IntEnum):
    """The kind of work in a step of a clause; the store cannot interrupt a step."""

    PLAIN = 0  # comparisons of values
    PATTERN = 1  # a look through a text, for each row
    MATCH = 2  # a look through the full-text index


@dataclass(frozen=True, slots=True)
class SqlClause:
    """A condition for WHERE: a row is wanted when it is true, not when it is 0 or NULL."""

    sql: str
    params: tuple[object, ...] = ()
    work: Work = Work.PLAIN
