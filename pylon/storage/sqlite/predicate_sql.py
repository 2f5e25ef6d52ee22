"""Predicate SQL: writes SQL that is true for exactly the rows for which a predicate holds.

Predicates have two truth values and SQL has three. The SQL is *true* if the predicate holds.
Otherwise it is 0 or NULL, which are equal for WHERE. The writer pushes a negation down to the
single condition, and writes ``IS NOT TRUE`` only there.

`Guarded` needs an order: SQLite may reorder the terms of an AND, but it evaluates a CASE lazily and
in order. So `wanted` is in a CASE behind `allowed`. Only the conditions of `wanted` that an index
can serve are beside the CASE; see `index_use`.

`Exists` is written as ``field IN (SELECT …)`` if the rows that it asks can be listed and one
equality joins them to the judged row. Then SQLite can begin with the list, and find the rows of
the statement by an index of the field. A statement that finds its rows otherwise looks the asked
row up for each of them: ``EXISTS (SELECT …)``. The columns of asked rows have names of their own
(``x0.field``), so a name without prefix means the judged row, whatever alias its table has. SQLite
flattens the subquery that renames them.

Invariants: names in the SQL are those of the entity; values are parameters. A node's parameters
have the numbers that its walk in `shapes` assigns. The SQL depends only on the shape. Called by
`compiler`, once for each shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from pylon.manifest.model import Entity
from pylon.query.predicate import (
    Affix,
    And,
    Arithmetic,
    Column,
    Compare,
    CompareTuple,
    Element,
    Exists,
    Guarded,
    HasMember,
    InValues,
    IsNull,
    Like,
    Literal,
    Match,
    Not,
    OneOf,
    Or,
    Outer,
    Predicate,
    Value,
    asks_rows,
    conjuncts,
    parts,
)
from pylon.storage.sqlite.functions import ELEMENT, HAS_MEMBER
from pylon.storage.sqlite.index_use import (
    columns_fixed_by,
    field_of_equality,
    find_served,
    has_equality,
)
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.patterns import like_parts, like_text
from pylon.storage.sqlite.search import match_condition
from pylon.storage.sqlite.shapes import prefix_range

_CHAIN: Final = 50  # longer chains of AND and OR become trees: SQLite limits the depth


class Sql(NamedTuple):
    """A piece of SQL. `params`: the numbers of its parameters in the walk."""

    text: str
    params: tuple[int, ...] = ()


def write_predicate(
    entity: Entity, predicate: Predicate, is_led: bool, looks_up: bool = False
) -> tuple[Sql, bool]:
    """Return the SQL of a predicate that is not a constant, and whether it lists values or asked
    rows.

    Args:
        is_led: the statement finds the rows by other rows or by a full-text match, so that no
            other index serves the condition.
        looks_up: the statement finds few rows, or takes them in their order: it looks asked rows
            up for each of them.
    """
    writer = _Writer(entity, is_led, looks_up)
    return writer.condition(predicate), writer.has_list


class _Writer:
    """Writes the SQL of one predicate, and numbers its parameters."""

    __slots__ = ("_asked", "_entity", "_is_led", "_looks_up", "_next", "has_list")

    def __init__(self, entity: Entity, is_led: bool, looks_up: bool = False) -> None:
        self._entity = entity
        self._is_led = is_led
        self._looks_up = looks_up
        self._next = 0
        self.has_list = False
        # The fields of the asked rows that the SQL names, for each `Exists` around this place.
        self._asked: list[dict[str, None]] = []

    def _param(self) -> Sql:
        number, self._next = self._next, self._next + 1
        return Sql("?", (number,))

    def condition(self, node: Predicate, negated: bool = False) -> Sql:
        """Return SQL that is true if the predicate holds, or, if `negated`, if it does not."""
        if isinstance(node, Not):
            return self.condition(node.operand, not negated)
        if isinstance(node, (And, Or)):
            return self._chain(node, negated)
        if isinstance(node, Guarded) and not negated:
            return self._guarded(node)
        if isinstance(node, IsNull):
            return _join(self._value(node.operand), " IS NOT NULL" if negated else " IS NULL")
        sql = WRITES[type(node)](self, node)
        return _join("(", sql, ") IS NOT TRUE") if negated else sql

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
        by_name = self._entity.by_name
        return any(name == "id" or (name in by_name and by_name[name].unique) for name in names)

    # --- Conditions: see the walks in `shapes` -------------------------------------------

    def _compare(self, node: Compare) -> Sql:
        return _join(self._value(node.left), f" {node.sign} ", self._value(node.right))

    def _compare_tuple(self, node: CompareTuple) -> Sql:
        """Return a row-value comparison, which an index over the fields serves as one range.

        `unlikely` makes the planner prefer the index: it takes IS NOT NULL for true of most rows,
        and would sort them all.
        """
        if node.values == (None,):
            return Sql(f"unlikely({quote(node.fields[0])} IS NOT NULL)")
        values = [self._param() for _ in node.values]
        columns = ", ".join([quote(field) for field in node.fields])
        marks = ", ".join([value.text for value in values])
        sign = "<" if node.is_below else ">"
        return Sql(f"({columns}) {sign} ({marks})", _params_of(values))

    def _one_of(self, node: OneOf) -> Sql:
        item = self._value(node.item)
        options = [self._value(option) for option in node.options]
        listed = Sql(
            ", ".join([option.text for option in options]), _params_of(options)
        )
        return _join(item, " IN (", listed, ")")

    def _in_values(self, node: InValues) -> Sql:
        """Return the SQL of a list of values, with one parameter for the whole list."""
        column = self._column(node.field)
        word = "NOT IN" if node.is_negated else "IN"
        self.has_list = self.has_list or not (node.is_negated or self._asked)
        sql = _join(f"{column} {word} (SELECT value FROM json_each(", self._param(), "))")
        return _join("(", sql, f" OR {column} IS NULL)") if node.has_null else sql

    def _affix(self, node: Affix) -> Sql:
        """Compare bytes: SQLite's text functions stop at NUL, and UTF-8 can be compared as bytes.

        SQLite has no empty part of an empty blob: substr() gives NULL for it.
        """
        text, part = node.text, node.affix
        if type(text) is Column and type(part) is Literal and not node.at_end:
            column = self._column(text.field)
            if prefix_range(str(part.value))[1] is None:
                return _join(f"{column} >= ", self._param())
            low, behind = self._param(), self._param()
            return _join(f"({column} >= ", low, f" AND {column} < ", behind, ")")
        is_present: tuple[Sql | str, ...] = ()
        if type(text) is Literal:
            whole = self._param()
        else:
            value = self._value(text)
            whole, is_present = _blob(value), (value, " IS NOT NULL AND ")
        if type(part) is Literal:
            ending, size = self._param(), self._param()
        else:
            ending = _blob(self._value(part))
            size = _join("length(", ending, ")")
        if node.at_end:
            rest = ("length(", whole, ") - ", size)
            same = _join("substr(", whole, ", ", *rest, " + 1) = ", ending)
            same = _join("(", *rest, " >= 0 AND ", same, ")")
        else:
            same = _join("substr(", whole, ", 1, ", size, ") = ", ending)
        if type(part) is Literal:  # never empty
            return same
        return _join("(", *is_present, size, " = 0 OR ", same, ")")

    def _like(self, node: Like) -> Sql:
        self._param()
        return Sql(like_text(like_parts(node)[0], self._column(node.field)), (self._next - 1,))

    def _has_member(self, node: HasMember) -> Sql:
        column = quote(node.field)
        return _join(f"{HAS_MEMBER}({column}, ", self._param(), ", ", self._param(), ")")

    def _match(self, node: Match) -> Sql:
        return Sql(match_condition(self._entity), self._param().params)

    # --- Other rows ----------------------------------------------------------------------------

    def _exists(self, node: Exists) -> Sql:
        items = conjuncts(node.where)
        link = None if self._looks_up else _link_of(node)
        asked: dict[str, None] = {}
        self._asked.append(asked)
        written = [self.condition(item) for item in items if item is not link]
        column = "1" if link is None else self._value(link.left).text
        self._asked.pop()
        names = ", ".join(
            f"{quote(name)} AS {self._asked_name(name, len(self._asked))}" for name in asked
        )
        source = f"SELECT {column} FROM (SELECT {names or '1'} FROM {quote(node.entity)})"
        rows = _join("(", source, *((" WHERE ", _tree(written, " AND ")) if written else ()), ")")
        if link is None:
            return _join("EXISTS ", rows)
        assert isinstance(link.right, Outer)
        self.has_list = self.has_list or not self._asked
        return _join(self._outer(link.right.field, link.right.depth - 1), " IN ", rows)

    def _column(self, field: str) -> str:
        """Return the name of a field of the row that the condition here is about."""
        return self._outer(field, 0)

    def _outer(self, field: str, depth: int) -> str:
        """Return the name of a field of the row that is `depth` levels of `Exists` outside."""
        level = len(self._asked) - depth
        if level == 0:
            return quote(field)
        self._asked[level - 1][field] = None
        return self._asked_name(field, level - 1)

    @staticmethod
    def _asked_name(field: str, level: int) -> str:
        return quote(f"x{level}.{field}")

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
            self._entity, wanted, columns_fixed_by(node.allowed)
        )
        beside = [written[n] for n in served] + paths
        rest = [sql for n, sql in enumerate(written) if n not in served]
        if not rest:
            return _tree([*beside, allowed], " AND ")
        judged = _join(
            "CASE WHEN ", allowed, " THEN CASE WHEN ", _tree(rest, " AND "), " THEN 1 END END"
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
        first = {columns[0] for columns in self._entity.index_columns}
        by_field: dict[str, list[tuple[Predicate, Sql]]] = {}
        counter = _Writer(self._entity, is_led=True)
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
        return [_tree([_any_equality(name, own) for name, own in by_field.items()], " OR ")]

    # --- Values --------------------------------------------------------------------------------

    def _value(self, value: Value) -> Sql:
        """Return the SQL of a value. A condition as a value is 0 or 1, never NULL."""
        if isinstance(value, Column):
            return Sql(self._column(value.field))
        if isinstance(value, Outer):
            return Sql(self._outer(value.field, value.depth))
        if isinstance(value, Literal):
            return self._param()
        if isinstance(value, Element):
            column = quote(value.field)
            return _join(f"{ELEMENT}({column}, ", self._param(), ", ", self._param(), ")")
        if isinstance(value, Arithmetic):
            kind = "INTEGER" if value.op == "%" else "REAL"
            left = _join("CAST(", self._value(value.left), f" AS {kind})")
            right = _join("CAST(", self._value(value.right), f" AS {kind})")
            return _join("(", left, f" {value.op} ", right, ")")
        return _join("((", self.condition(value), ") IS TRUE)")


WRITES: Final[dict[type, Callable[[_Writer, Any], Sql]]] = {
    Compare: _Writer._compare, CompareTuple: _Writer._compare_tuple, OneOf: _Writer._one_of,
    InValues: _Writer._in_values, Affix: _Writer._affix, Like: _Writer._like,
    HasMember: _Writer._has_member, Match: _Writer._match,
    Guarded: _Writer._guarded, Exists: _Writer._exists,
}


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


def _any_equality(field: str, equalities: list[tuple[Predicate, Sql]]) -> Sql:
    """Return a condition that holds if any of these equalities of a field does.

    It makes one look-up for each value.
    """
    if len(equalities) == 1:
        return equalities[0][1]
    column = quote(field)
    values = [sql for part, sql in equalities if isinstance(part, Compare)]
    lists = [part for part in equalities if isinstance(part[0], InValues)]
    has_null = any(
        isinstance(part, IsNull) or (isinstance(part, InValues) and part.has_null)
        for part, _ in equalities
    )
    numbers = (*[sql.params[0] for _, sql in lists], *[sql.params[-1] for sql in values])
    text = ""
    if lists:
        selects = ["SELECT value FROM json_each(?)"] * len(lists) + ["SELECT ?"] * len(values)
        text = f"{column} IN ({' UNION '.join(selects)})"
    elif values:
        text = f"{column} IN ({', '.join('?' * len(values))})"
    null = f"{column} IS NULL" if has_null else ""
    both = f"({text} OR {null})" if text and null else text or null
    return Sql(both, numbers)


def _blob(value: Sql) -> Sql:
    return _join("CAST(", value, " AS BLOB)")


def _tree(items: list[Sql], word: str) -> Sql:
    if len(items) == 1:
        return items[0]
    if len(items) > _CHAIN:
        middle = len(items) // 2
        items = [_tree(items[:middle], word), _tree(items[middle:], word)]
    return Sql("(" + word.join([item.text for item in items]) + ")", _params_of(items))


def _params_of(items: Iterable[Sql]) -> tuple[int, ...]:
    return tuple([number for item in items for number in item.params])


def _join(*pieces: Sql | str) -> Sql:
    return Sql(
        "".join([piece if isinstance(piece, str) else piece.text for piece in pieces]),
        _params_of(piece for piece in pieces if not isinstance(piece, str)),
    )
