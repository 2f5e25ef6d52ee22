"""Page SQL: the SELECT of a window of ordered rows, also behind or before a position.

Without a position a page is one SELECT with ORDER BY, LIMIT and OFFSET. With a position it is a
SELECT for each run (`pylon.query.position.runs_of`), joined by UNION ALL: an index finds each run,
and SQLite reads the next run only if the ones before it did not fill the page. A page before a
position has its nearest rows first, so an outer SELECT sorts the rows of the page.

Invariant: the rows come in the order of the page. SQLite answers the parts of a UNION ALL from
left to right. Called by `reads` and `graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from pylon.manifest.model import Entity
from pylon.query.position import Order, Position, narrowed, runs_of, total_order
from pylon.query.predicate import Predicate
from pylon.storage.sqlite.clause import SqlClause
from pylon.storage.sqlite.names import quote


class PageColumn(NamedTuple):
    """The one column of the answer: its SQL, and its name."""

    sql: str
    name: str


class Page(Protocol):
    """What a page has of a query or of a node of a graph query."""

    @property
    def where(self) -> Predicate: ...

    @property
    def order(self) -> Order: ...

    @property
    def position(self) -> Position | None: ...

    @property
    def allowed(self) -> Predicate: ...


def order_by(order: Iterable[tuple[str, bool]], alias: str = "") -> str:
    """Return the terms of ORDER BY; the id decides ties."""
    prefix = f"{alias}." if alias else ""
    return ", ".join(
        [f"{prefix}{quote(f)}{' DESC' if desc else ''}" for f, desc in total_order(tuple(order))]
    )


def select_page(
    entity: Entity, selected: PageColumn, compile_where: Callable[[Predicate], SqlClause],
    page: Page, limit: int, offset: int,
) -> SqlClause:
    """Return the SELECT of a page's rows.

    Args:
        compile_where: compiles a condition on the entity's rows.
        offset: 0 if the page has a position.
    """
    table, column = quote(entity.name), f"{selected.sql} AS {selected.name}"
    position = page.position
    if position is None:
        clause = compile_where(page.where)
        text = f"SELECT {column} FROM {table} WHERE {clause.sql} ORDER BY {order_by(page.order)}"
        if not offset:  # which would be counted for each row
            return SqlClause(
                f"{text} LIMIT ?", (*clause.params, limit), clause.cost, clause.has_list
            )
        return SqlClause(
            f"{text} LIMIT ? OFFSET ?", (*clause.params, limit, offset), clause.cost,
            clause.has_list,
        )
    names = [f"_k{n}" for n in range(len(position.order))] if position.is_before else []
    keys = "".join([
        f", {quote(field)} AS {name}"
        for name, (field, _) in zip(names, position.order, strict=False)
    ])
    texts: list[str] = []
    params: list[object] = []
    for run in runs_of(entity, position):
        clause = compile_where(narrowed(page.where, page.allowed, run.condition))
        texts.append(
            f"SELECT {column}{keys} FROM {table} WHERE {clause.sql} "
            f"ORDER BY {order_by(run.order)} LIMIT ?"
        )
        params += (*clause.params, limit)
    text = texts[0]
    if len(texts) > 1:
        text = " UNION ALL ".join([f"SELECT * FROM ({part})" for part in texts]) + " LIMIT ?"
        params.append(limit)
    if position.is_before:
        terms = ", ".join([
            f"{name}{' DESC' if desc else ''}"
            for name, (_, desc) in zip(names, position.order, strict=True)
        ])
        text = f"SELECT {selected.name} FROM ({text}) ORDER BY {terms}"
    return SqlClause(text, tuple(params), clause.cost, clause.has_list)
