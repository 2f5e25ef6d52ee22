"""Joins predicates: a filter AND the caller's read policy is what every list runs.

Invariants: parameters stay in the order of their placeholders; a constant true ("1") vanishes
and a constant false ("0") swallows the rest, so that the store may skip the query; for OR the
other way round.
"""

from __future__ import annotations

from typing import Final

from pylon.storage.clause import SqlClause

ALL: Final = SqlClause("1", ())
NOTHING: Final = SqlClause("0", ())


def and_(*clauses: SqlClause) -> SqlClause:
    """The clause that holds where all of `clauses` hold; `ALL` for none."""
    kept = [c for c in clauses if c.sql != ALL.sql]
    if len(kept) == 1:
        return kept[0]
    if not kept:
        return ALL
    if any(c.sql == NOTHING.sql for c in kept):
        return NOTHING
    return SqlClause(
        " AND ".join(f"({c.sql})" for c in kept),
        tuple(p for c in kept for p in c.params),
    )


def or_(*clauses: SqlClause) -> SqlClause:
    """The clause that holds where one of `clauses` holds; `NOTHING` for none."""
    kept = [c for c in clauses if c.sql != NOTHING.sql]
    if any(c.sql == ALL.sql for c in kept):
        return ALL
    if not kept:
        return NOTHING
    if len(kept) == 1:
        return kept[0]
    return SqlClause(
        " OR ".join(f"({c.sql})" for c in kept),
        tuple(p for c in kept for p in c.params),
    )
