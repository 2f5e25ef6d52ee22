"""A piece of SQL with its parameters.

Invariant: values of users, of callers and of policy texts are in `params` only, never in `sql`;
there are as many ``?`` in `sql` as there are params. Made by `compiler`, executed by `reader`.
"""

from __future__ import annotations

import msgspec

from pylon.query.predicate import Cost


class SqlClause(msgspec.Struct, frozen=True, gc=False):
    """A condition for WHERE: SQLite selects a row when it is true, not when it is 0 or NULL."""

    sql: str
    params: tuple[object, ...] = ()
    cost: Cost = Cost.PLAIN
