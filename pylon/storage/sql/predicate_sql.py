"""Predicate SQL: writes SQL that is true for exactly the rows for which a predicate holds.

Predicates have two truth values and SQL has three. The SQL is *true* if the predicate holds.
Otherwise it is false or NULL, which are equal for WHERE. The writer pushes a negation down to the
single condition, and writes ``IS NOT TRUE`` only there. This module writes the conditions that
have parts, and those that all stores write alike; a `Dialect` writes the others.

`Guarded` needs an order: a store may reorder the terms of an AND, but it evaluates a CASE lazily
and in order. So `wanted` is in a CASE behind `allowed`. Only the conditions of `wanted` that an
index can serve are beside the CASE; see `index_use`.

`Exists` is written as ``field IN (SELECT …)`` if the rows that it asks can be listed and one
equality joins them to the judged row. Then the store can begin with the list, and find the rows of
the statement by an index of the field. A statement that finds its rows otherwise looks the asked
row up for each of them: ``EXISTS (SELECT …)``. The columns of asked rows have names of their own
(``x0.1``), so a name without prefix means the judged row, whatever alias its table has. Stores
flatten the subquery that renames them.

Invariants: names in the SQL are those of the entity; values are parameters. A node's parameters
have the numbers that its walk in `shapes` assigns. The SQL depends only on the shape. Called by
`compiler`, once for each shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from pylon.manifest.model import Entity, Index
from pylon.query.predicate import (
    Affix,
    And,
    Column,
    Compare,
    CompareTuple,
    Exists,
    Guarded,
    InValues,
    IsNull,
    Literal,
    Match,
    Not,
    OneOf,
    Or,
    Outer,
    Predicate,
    Value,
)
from pylon.query.predicate_parts import asks_rows, conjuncts, parts
from pylon.storage.core.names import quote
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.index_use import (
    columns_fixed_by,
    field_of_equality,
    find_served,
    has_equality,
)
from pylon.storage.sql.shapes import Walks, prefix_of, prefix_range

_CHAIN: Final = 50  # longer chains of AND and OR become trees: stores limit the depth


class Sql(NamedTuple):
    """A piece of SQL. `params`: the numbers of its parameters in the walk."""

    text: str
    params: tuple[int, ...] = ()


Write = Callable[["PredicateWriter", Any], Sql]


class Dialect(msgspec.Struct, frozen=True, eq=False):
    """The SQL that each store writes in its own way.

    `walks` and `writes` have a function for each type of node, of values too. `fit` brings a
    predicate into the form that they take. `true` and `false` are conditions. `alias` names the
    rows of a subquery in FROM. `as_text` makes a value a text, where the values of several columns
    are in one. `ascending` and `descending` are what a field has in ORDER BY, so
    that null is less than every value; an id has DESC only. `equal_any` writes that a column equals
    one of some values, or of some lists; each value is searched once. `where_text` is the condition
    of a partial index, with constants. `leads_by_lists`: the store has to be told whether a
    statement begins with a list (`SqlClause.has_list`).
    """

    walks: Walks
    writes: dict[type, Write]
    true: SqlClause
    false: SqlClause
    alias: str
    as_text: str
    ascending: str
    descending: str
    leads_by_lists: bool
    equal_any: Callable[[str, Sequence[tuple[Value, Sql]], Sequence[tuple[InValues, Sql]]], Sql]
    where_text: Callable[[Entity, Index], str]
    fit: Callable[[Entity, Predicate], Predicate] | None = None


def write_predicate(
    dialect: Dialect, entity: Entity, predicate: Predicate, is_led: bool, looks_up: bool = False
) -> tuple[Sql, bool]:
    """Return the SQL of a predicate that is not a constant, and whether it lists values or asked
    rows.

    Args:
        is_led: the statement finds the rows by other rows or by a full-text match, so that no
            other index serves the condition.
        looks_up: the statement finds few rows, or takes them in their order: it looks asked rows
            up for each of them.
    """
    writer = PredicateWriter(dialect, entity, is_led, looks_up)
    return writer.condition(predicate), writer.has_list


class PredicateWriter:
    """Writes the SQL of one predicate, and numbers its parameters."""

    __slots__ = (
        "_asked", "_dialect", "_is_led", "_looks_up", "_next", "_writes", "entity", "has_list",
    )

    def __init__(
        self, dialect: Dialect, entity: Entity, is_led: bool, looks_up: bool = False
    ) -> None:
        self._dialect = dialect
        self._writes = dialect.writes
        self.entity = entity
        self._is_led = is_led
        self._looks_up = looks_up
        self._next = 0
        self.has_list = False
        # The fields of the asked rows that the SQL names, and their numbers, for each `Exists`
        # around this place.
        self._asked: list[dict[str, int]] = []

    def param(self, text: str = "?") -> Sql:
        """Return the next parameter, as `text`."""
        number, self._next = self._next, self._next + 1
        return Sql(text, (number,))

    def condition(self, node: Predicate, negated: bool = False) -> Sql:
        """Return SQL that is true if the predicate holds, or, if `negated`, if it does not."""
        if isinstance(node, Not):
            return self.condition(node.operand, not negated)
        if isinstance(node, (And, Or)):
            return self._chain(node, negated)
        if isinstance(node, Guarded) and not negated:
            return self._guarded(node)
        if isinstance(node, IsNull):
            return join(self.value(node.operand), " IS NOT NULL" if negated else " IS NULL")
        sql = self._writes[type(node)](self, node)
        return join("(", sql, ") IS NOT TRUE") if negated else sql

    def _chain(self, node: And | Or, negated: bool) -> Sql:
        is_and = isinstance(node, And) is not negated
        was_led, looked_up = self._is_led, self._looks_up
        if is_and and any(type(item) is Match for item in node.items):
            self._is_led = True  # by the full-text index
        if is_and and self._has_key(node.items):
            self._looks_up = True
        items = [self.condition(item, negated) for item in node.items]
        self._is_led, self._looks_up = was_led, looked_up
        return _tree(items, " AND " if is_and else " OR ")

    def _has_key(self, items: Iterable[Predicate]) -> bool:
        """Whether one of the conditions finds one row of the judged entity at most."""
        if self._asked:
            return False
        names = [
            item.left.field for item in items
            if type(item) is Compare and item.sign == "="
            and type(item.left) is Column and type(item.right) is Literal
        ]
        by_name = self.entity.by_name
        return any(name == "id" or (name in by_name and by_name[name].unique) for name in names)

    # --- Conditions: see the walks in `shapes` -------------------------------------------

    def compared(self, node: Compare) -> Sql:
        """Return a comparison of two values."""
        return join(self.value(node.left), f" {node.sign} ", self.value(node.right))

    def _one_of(self, node: OneOf) -> Sql:
        item = self.value(node.item)
        options = [self.value(option) for option in node.options]
        listed = Sql(
            ", ".join([option.text for option in options]), params_of(options)
        )
        return join(item, " IN (", listed, ")")

    def note_list(self, node: InValues) -> None:
        """Note that the SQL finds rows by a list of values, where it does."""
        if not (node.is_negated or self._asked):
            self._note_list()

    def _note_list(self) -> None:
        self.has_list = self._dialect.leads_by_lists

    def prefixed(self, node: Affix) -> Sql | None:
        """Return the condition that a column begins with a literal, if an affix says just that."""
        prefix = prefix_of(node)
        if prefix is None:
            return None
        column = self.column(prefix[0])
        if prefix_range(prefix[1])[1] is None:
            return join(f"{column} >= ", self.param())
        low, behind = self.param(), self.param()
        return join(f"({column} >= ", low, f" AND {column} < ", behind, ")")

    def tuple_compared(self, node: CompareTuple, values: Sequence[Sql]) -> Sql:
        """Return a row-value comparison, which an index over the fields serves as one range."""
        columns = ", ".join([quote(field) for field in node.fields])
        marks = ", ".join([value.text for value in values])
        sign = "<" if node.is_below else ">"
        return Sql(f"({columns}) {sign} ({marks})", params_of(values))

    # --- Other rows ----------------------------------------------------------------------------

    def _exists(self, node: Exists) -> Sql:
        items = conjuncts(node.where)
        link = None if self._looks_up else _link_of(node)
        asked: dict[str, int] = {}
        self._asked.append(asked)
        written = [self.condition(item) for item in items if item is not link]
        column = "1" if link is None else self.value(link.left).text
        self._asked.pop()
        level = len(self._asked)
        names = ", ".join(
            f"{quote(name)} AS {self._asked_name(number, level)}"
            for name, number in asked.items()
        )
        source = f"SELECT {column} FROM (SELECT {names or '1'} FROM {quote(node.entity)})"
        source += self._dialect.alias
        rows = join("(", source, *((" WHERE ", _tree(written, " AND ")) if written else ()), ")")
        if link is None:
            return join("EXISTS ", rows)
        assert isinstance(link.right, Outer)
        if not self._asked:
            self._note_list()
        return join(self._outer(link.right.field, link.right.depth - 1), " IN ", rows)

    def column(self, field: str) -> str:
        """Return the name of a field of the row that the condition here is about."""
        return self._outer(field, 0)

    def _outer(self, field: str, depth: int) -> str:
        """Return the name of a field of the row that is `depth` levels of `Exists` outside."""
        level = len(self._asked) - depth
        if level == 0:
            return quote(field)
        asked = self._asked[level - 1]
        return self._asked_name(asked.setdefault(field, len(asked)), level - 1)

    @staticmethod
    def _asked_name(number: int, level: int) -> str:
        return f'"x{level}.{number}"'

    # --- Guards --------------------------------------------------------------------------------

    def _guarded(self, node: Guarded) -> Sql:
        """`wanted` behind `allowed` in a CASE, and beside it the conditions that an index serves.

        The inner CASE makes `wanted` a condition: of an AND whose value is asked for, SQLite
        always evaluates both sides.
        """
        wanted = conjuncts(node.wanted)
        looked_up = self._looks_up
        self._looks_up = looked_up or self._has_key(wanted)
        allowed = self.condition(node.allowed)
        looks_up, self._looks_up = self._looks_up, looked_up
        written: list[Sql] = []
        paths: list[Sql] = []
        for item in wanted:
            begin = self._next
            written.append(self.condition(item))
            if isinstance(item, Or) and not self._is_led:
                paths += self._indexable_part(item, begin)
        served = [] if self._is_led else find_served(
            self.entity, wanted, columns_fixed_by(node.allowed)
        )
        beside = [written[n] for n in served] + paths
        rest = [sql for n, sql in enumerate(written) if n not in served]
        if not rest:
            return _tree([*beside, allowed], " AND ")
        judged = join(
            "CASE WHEN ", allowed, " THEN CASE WHEN ", _tree(rest, " AND "),
            f" THEN {self._dialect.true.sql} END END",
        )
        if has_equality(node.allowed) and not (looks_up and asks_rows(node.allowed)):
            beside.append(allowed)  # so that an index may serve it
        return _tree([*beside, judged], " AND ")

    def _indexable_part(self, node: Or, begin: int) -> list[Sql]:
        """Return a condition that an `Or` implies and that an index can serve.

        It consists of the equalities of its items with first columns of indexes. It is empty if an
        item has none. The SQL searches each value of a column once, even if several items have it.

        Args:
            begin: the number of the first parameter of `node`.
        """
        first = {columns[0] for columns in self.entity.index_columns}
        by_field: dict[str, list[tuple[Predicate, Sql]]] = {}
        counter = PredicateWriter(self._dialect, self.entity, is_led=True)
        counter._next = begin
        for item in node.items:
            found = None
            for part in conjuncts(item):
                sql = counter.condition(part)
                field = field_of_equality(part)
                if found is None and field in first:
                    found = part, sql
                    by_field.setdefault(field, []).append(found)
            if found is None:
                return []
        return [_tree([self._any_equality(name, own) for name, own in by_field.items()], " OR ")]

    def _any_equality(self, field: str, equalities: list[tuple[Predicate, Sql]]) -> Sql:
        """Return a condition that holds if any of these equalities of a field does."""
        if len(equalities) == 1:
            return equalities[0][1]
        values = [
            (part.right, Sql("?", sql.params)) for part, sql in equalities
            if isinstance(part, Compare)
        ]
        lists = [
            (part, Sql("?", sql.params)) for part, sql in equalities if isinstance(part, InValues)
        ]
        has_null = any(
            isinstance(part, IsNull) or (isinstance(part, InValues) and part.has_null)
            for part, _ in equalities
        )
        column = quote(field)
        found = [self._dialect.equal_any(column, values, lists)] if values or lists else []
        return _tree([*found, *[Sql(f"{column} IS NULL")] * has_null], " OR ")

    # --- Values --------------------------------------------------------------------------------

    def value(self, value: Value) -> Sql:
        """Return the SQL of a value. A condition as a value is true or false, never NULL."""
        if type(value) is Column:
            return Sql(self.column(value.field))
        if isinstance(value, Predicate):
            return join("((", self.condition(value), ") IS TRUE)")
        return self._writes[type(value)](self, value)


def complete_writes(own: Mapping[type, Write]) -> dict[type, Write]:
    """Return the function that writes each type of node.

    Args:
        own: those of the dialect.
    """
    return {
        OneOf: PredicateWriter._one_of, Guarded: PredicateWriter._guarded,
        Exists: PredicateWriter._exists, Outer: _write_outer, **own,
    }


def _write_outer(writer: PredicateWriter, node: Outer) -> Sql:
    return Sql(writer._outer(node.field, node.depth))


def listed_field(asked: Exists) -> str | None:
    """Return the field of the judged row that has a value of the list of asked rows; None if the
    SQL has no such list.
    """
    link = _link_of(asked)
    if link is None:
        return None
    assert isinstance(link.right, Outer)
    return link.right.field


def _link_of(asked: Exists) -> Compare | None:
    """Return the equality that joins asked rows to the judged row, if nothing else does and an
    index lists the asked rows.
    """
    joined = [item for item in conjuncts(asked.where) if _reaches_out(item, 1)]
    if not asked.is_listable or len(joined) != 1:
        return None
    link = joined[0]
    if (
        isinstance(link, Compare) and link.sign == "="
        and type(link.left) is Column and type(link.right) is Outer
    ):
        return link
    return None


def _reaches_out(node: Value, depth: int) -> bool:
    """Whether it reads a row outside the `Exists` that is `depth` levels around it."""
    if isinstance(node, Outer):
        return node.depth >= depth
    inner = depth + 1 if isinstance(node, Exists) else depth
    return any(_reaches_out(part, inner) for part in parts(node))


def _tree(items: list[Sql], word: str) -> Sql:
    if len(items) == 1:
        return items[0]
    if len(items) > _CHAIN:
        middle = len(items) // 2
        items = [_tree(items[:middle], word), _tree(items[middle:], word)]
    return Sql("(" + word.join([item.text for item in items]) + ")", params_of(items))


def params_of(items: Iterable[Sql]) -> tuple[int, ...]:
    """Return the parameters of some pieces, in order."""
    return tuple([number for item in items for number in item.params])


def join(*pieces: Sql | str) -> Sql:
    """Return the pieces as one."""
    return Sql(
        "".join([piece if isinstance(piece, str) else piece.text for piece in pieces]),
        params_of(piece for piece in pieces if not isinstance(piece, str)),
    )
