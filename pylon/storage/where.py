"""Joins predicates: every list runs a filter behind the caller's read policy.

Invariants: parameters stay in the order of their placeholders; a constant true ("1") vanishes
and a constant false ("0") swallows the rest, so that the store may skip the query; for OR the
other way round.
"""

from __future__ import annotations

from typing import Final

from pylon.storage.clause import SqlClause

ALL: Final = SqlClause("1", ())
NOTHING: Final = SqlClause("0", ())
_INDEXABLE: Final = '" = ?'  # as in '"owner" = ?'


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
        " AND ".join([f"({c.sql})" for c in kept]),
        tuple([p for c in kept for p in c.params]),
        max([c.work for c in kept]),
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
        " OR ".join([f"({c.sql})" for c in kept]),
        tuple([p for c in kept for p in c.params]),
        max([c.work for c in kept]),
    )


def judged_first(allowed: SqlClause, wanted: SqlClause, path: SqlClause = ALL) -> SqlClause:
    """The rows of `allowed` for which `wanted` holds.

    No row that is not of `allowed` ever meets `wanted`: SQLite evaluates a CASE lazily and in
    order, while it puts the terms of an AND into any order that it likes. The inner CASE makes
    `wanted` a condition: of an AND whose value is asked for, SQLite evaluates both sides always.

    Args:
        path: a condition besides, for an index to serve. It may be evaluated for any row.
    """
    if allowed.sql in (ALL.sql, NOTHING.sql) or wanted.sql in (ALL.sql, NOTHING.sql):
        return and_(path, allowed, wanted)
    judged = SqlClause(
        f"CASE WHEN {allowed.sql} THEN CASE WHEN {wanted.sql} THEN 1 END END",
        (*allowed.params, *wanted.params), max(allowed.work, wanted.work),
    )
    # Beside the CASE, so that an index may serve it.
    return and_(path, allowed, judged) if _INDEXABLE in allowed.sql else and_(path, judged)
