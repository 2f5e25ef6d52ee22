"""SQL clause: a piece of SQL with its parameters.

Invariants: values of clients, of callers and of policy texts are in `params`, never in `sql`. `sql`
has one ``?`` for each param. `compiler` makes clauses; `reader` executes them.
"""

from __future__ import annotations

import msgspec

from pylon.query.predicate_parts import Cost


class SqlClause(msgspec.Struct, frozen=True, gc=False):
    """A condition for WHERE: a row is selected when it is true, not when it is false or NULL."""

    sql: str
    params: tuple[object, ...] = ()
    cost: Cost = Cost.PLAIN  # the largest piece of work that it causes for one row
    has_list: bool = False  # the store may find the rows by a list: of values, or of asked rows
