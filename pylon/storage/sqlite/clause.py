"""SQL clause: a piece of SQL with its parameters.

Invariants: values of clients, of callers and of policy texts are in `params`, never in `sql`. `sql`
has one ``?`` for each param. `compiler` makes clauses; `reader` executes them.
"""

from __future__ import annotations

import msgspec

from pylon.query.predicate import Cost


class SqlClause(msgspec.Struct, frozen=True, gc=False):
    """A condition for WHERE: SQLite selects a row when it is true, not when it is 0 or NULL."""

    sql: str
    params: tuple[object, ...] = ()
    cost: Cost = Cost.PLAIN  # the largest piece of work that it causes for one row
    has_list: bool = False  # SQLite may find the rows by a list: of values, or of asked rows
