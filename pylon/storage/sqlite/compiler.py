"""From predicates to SQL that is true for exactly the rows that the predicates hold for.

A predicate's *shape* is the predicate without its values. `PredicateCompiler` writes the SQL of a
shape once and keeps it, so that a usual query costs one walk through its tree, which collects the
shape and the parameters in the same order. The SQL may name a parameter several times or in
another order; it is kept together with a plan of its parameters.

How two-valued logic meets SQL's three values: the SQL is *true* when the predicate holds; when it
does not, the SQL may be 0 or NULL, which WHERE treats alike. The writer pushes a negation down to
the single condition, and writes ``IS NOT TRUE`` only there.

How `Guarded` is kept: SQLite puts the terms of an AND into any order that it likes, and evaluates
a CASE lazily and in order. So `wanted` stands in a CASE behind `allowed`. Only the conditions of
`wanted` that an index can serve stand beside the CASE; see `_served`.

Invariants: names in the SQL are the entity's own, values are parameters; `_walk_…` and `_write_…`
of a node number its parameters alike. Bounds: `_SHAPES` shapes and `_RULES`
read policies for each compiler. Called by
`reads`, `reader` and `graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

import orjson

from pylon.manifest.model import Entity
from pylon.query.predicate import (
    TRUE,
    Affix,
    And,
    Arithmetic,
    Column,
    Compare,
    Constant,
    Cost,
    Guarded,
    InValues,
    IsNull,
    Like,
    Literal,
    Match,
    Not,
    OneOf,
    Or,
    Predicate,
    Value,
    conjuncts,
    cost_of,
)
from pylon.storage.names import quote
from pylon.storage.sqlite.clause import SqlClause
from pylon.storage.sqlite.patterns import like_parts, like_text
from pylon.storage.sqlite.search import match_condition, match_expression

ALL: Final = SqlClause("1")
NOTHING: Final = SqlClause("0")
_SHAPES: Final = 512
_RULES: Final = 256  # read policies of different callers
_CHAIN: Final = 50  # longer chains of AND and OR become trees: SQLite bounds an expression's depth
_LAST_CHARACTER: Final = "\U0010ffff"
_RANGES: Final = ("<", "<=", ">", ">=")

_Shape = list[object]
_Params = list[object]


class _Kept(NamedTuple):
    """The SQL of a shape. `arrange` puts the parameters of a walk into its order; None: they are
    in order."""

    sql: str
    arrange: Callable[[Sequence[object]], tuple[object, ...]] | None
    cost: Cost


class PredicateCompiler:
    """Compiles the predicates on rows of one entity, and keeps the SQL of their shapes."""

    __slots__ = ("_entity", "_kept", "_last", "_last_clause", "_led", "_rules")

    def __init__(self, entity: Entity) -> None:
        self._entity = entity
        self._kept: dict[tuple[object, ...], _Kept] = {}
        self._led: dict[tuple[object, ...], _Kept] = {}
        self._rules: dict[Predicate, SqlClause] = {}
        self._last: Predicate = TRUE
        self._last_clause = ALL

    def compile(self, predicate: Predicate, is_led: bool = False) -> SqlClause:
        """The SQL of a predicate.

        Args:
            is_led: the statement finds the rows by other rows or by a full-text match, so that
                no other index serves the condition.
        """
        if type(predicate) is Constant:
            return ALL if predicate.holds else NOTHING
        # PERF: many requests compile one tree twice (a page and its count, the pages of a
        # snapshot): 0.05 us in place of 0.8 us.
        if predicate is self._last and not is_led:
            return self._last_clause
        shape: _Shape = []
        params: _Params = []
        _WALKS[type(predicate)](predicate, shape, params)
        known = self._led if is_led else self._kept
        key = tuple(shape)
        kept = known.get(key)
        if kept is None:
            if len(known) >= _SHAPES:
                known.clear()
            kept = known[key] = _write(self._entity, predicate, is_led, len(params))
        sql, arrange, cost = kept
        clause = SqlClause(sql, tuple(params) if arrange is None else arrange(params), cost)
        if not is_led:
            self._last, self._last_clause = predicate, clause
        return clause

    def compile_rule(self, rule: Predicate) -> SqlClause:
        """The SQL of a caller's read policy, which is kept with its values.

        PERF: 0.15 us in place of 0.8 us, for a read by id of 3.9 us.
        """
        if rule is self._last:
            return self._last_clause
        clause = self._rules.get(rule)
        if clause is None:
            if len(self._rules) >= _RULES:
                self._rules.clear()
            clause = self._rules[rule] = self.compile(rule)
        return clause


def compile_predicate(entity: Entity, predicate: Predicate, is_led: bool = False) -> SqlClause:
    """The SQL of one predicate, without a cache."""
    return PredicateCompiler(entity).compile(predicate, is_led)


# --- Shapes: each walk adds a node's shape, then its parameters in the order of `_write_…` -------


def _walk_compare(node: Compare, shape: _Shape, params: _Params) -> None:
    left, right = node.left, node.right
    if type(left) is Column and type(right) is Literal:
        value = right.value
        shape += (node.sign, left.field)
        params.append(int(value) if value is True or value is False else value)
        return
    shape += ("compare", node.sign)
    _walk_value(left, shape, params)
    _walk_value(right, shape, params)


def _walk_is_null(node: IsNull, shape: _Shape, params: _Params) -> None:
    shape.append("null")
    _walk_value(node.operand, shape, params)


def _walk_one_of(node: OneOf, shape: _Shape, params: _Params) -> None:
    shape += ("one of", len(node.options))
    _walk_value(node.item, shape, params)
    for option in node.options:
        _walk_value(option, shape, params)


def _walk_in_values(node: InValues, shape: _Shape, params: _Params) -> None:
    shape += ("in", node.field, node.has_null, node.is_negated)
    params.append(orjson.dumps(node.values).decode())


def _walk_affix(node: Affix, shape: _Shape, params: _Params) -> None:
    text, part = node.text, node.affix
    if type(text) is Column and type(part) is Literal and not node.at_end:
        low, behind = _range_of(str(part.value))
        if behind is None:
            shape += ("from", text.field)
            params.append(low)
        else:
            shape += ("between", text.field)
            params += (low, behind)
        return
    shape += ("affix", node.at_end)
    if type(text) is Literal:
        shape.append("bytes")
        params.append(str(text.value).encode())
    else:
        _walk_value(text, shape, params)
    if type(part) is Literal:
        encoded = str(part.value).encode()
        shape.append("bytes")
        params += (encoded, len(encoded))
    else:
        _walk_value(part, shape, params)


def _walk_like(node: Like, shape: _Shape, params: _Params) -> None:
    form, param = like_parts(node)
    shape += ("like", form, node.field)
    params.append(param)


def _walk_match(node: Match, shape: _Shape, params: _Params) -> None:
    shape.append("match")
    params.append(match_expression(node))


def _walk_not(node: Not, shape: _Shape, params: _Params) -> None:
    shape.append("not")
    _WALKS[type(node.operand)](node.operand, shape, params)


def _walk_items(node: And | Or, shape: _Shape, params: _Params) -> None:
    shape += (type(node), len(node.items))
    for item in node.items:
        _WALKS[type(item)](item, shape, params)


def _walk_guarded(node: Guarded, shape: _Shape, params: _Params) -> None:
    shape.append("guarded")
    _WALKS[type(node.allowed)](node.allowed, shape, params)
    _WALKS[type(node.wanted)](node.wanted, shape, params)


_WALKS: Final[dict[type, Callable[[Any, _Shape, _Params], None]]] = {
    Compare: _walk_compare, IsNull: _walk_is_null, OneOf: _walk_one_of,
    InValues: _walk_in_values, Affix: _walk_affix, Like: _walk_like, Match: _walk_match,
    Not: _walk_not, And: _walk_items, Or: _walk_items, Guarded: _walk_guarded,
}


def _walk_value(value: Value, shape: _Shape, params: _Params) -> None:
    if type(value) is Column:
        shape += ("column", value.field)
    elif type(value) is Literal:
        shape.append("value")
        params.append(int(value.value) if isinstance(value.value, bool) else value.value)
    elif type(value) is Arithmetic:
        shape += ("arithmetic", value.op)
        _walk_value(value.left, shape, params)
        _walk_value(value.right, shape, params)
    else:
        _WALKS[type(value)](value, shape, params)


def _range_of(prefix: str) -> tuple[str, str | None]:
    """The texts that begin with `prefix`, as a range, which an index can serve: from the first
    text up to the second. SQLite orders texts by code point."""
    rest = prefix.rstrip(_LAST_CHARACTER)
    if not rest:
        return prefix, None
    following = ord(rest[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:  # surrogates are no characters
        following = 0xE000
    return prefix, rest[:-1] + chr(following)


# --- SQL ----------------------------------------------------------------------------------------


class _Sql(NamedTuple):
    """A piece of SQL; `params` are the numbers of its parameters in the walk."""

    text: str
    params: tuple[int, ...] = ()


def _write(entity: Entity, predicate: Predicate, is_led: bool, count: int) -> _Kept:
    sql = _Writer(entity, is_led).condition(predicate)
    numbers = sql.params
    if numbers == tuple(range(count)):
        return _Kept(sql.text, None, cost_of(predicate))
    arrange = itemgetter(*numbers)  # two or more numbers: a single one is never out of order
    return _Kept(sql.text, arrange, cost_of(predicate))


class _Writer:
    """Writes the SQL of one predicate, and numbers its parameters."""

    __slots__ = ("_entity", "_is_led", "_next")

    def __init__(self, entity: Entity, is_led: bool) -> None:
        self._entity = entity
        self._is_led = is_led
        self._next = 0

    def _param(self) -> _Sql:
        number, self._next = self._next, self._next + 1
        return _Sql("?", (number,))

    def condition(self, node: Predicate, negated: bool = False) -> _Sql:
        """SQL that is true where the predicate holds, or, if `negated`, where it does not."""
        if isinstance(node, Not):
            return self.condition(node.operand, not negated)
        if isinstance(node, (And, Or)):
            return self._chain(node, negated)
        if isinstance(node, Guarded) and not negated:
            return self._guarded(node)
        if isinstance(node, IsNull):
            return _join(self._value(node.operand), " IS NOT NULL" if negated else " IS NULL")
        sql = _WRITES[type(node)](self, node)
        return _join("(", sql, ") IS NOT TRUE") if negated else sql

    def _chain(self, node: And | Or, negated: bool) -> _Sql:
        is_and = isinstance(node, And) is not negated
        was_led = self._is_led
        if is_and and any(type(item) is Match for item in node.items):
            self._is_led = True  # by the full-text index
        items = [self.condition(item, negated) for item in node.items]
        self._is_led = was_led
        return _tree(items, " AND " if is_and else " OR ")

    # --- Conditions: see the walk of the same name -------------------------------------------

    def _compare(self, node: Compare) -> _Sql:
        return _join(self._value(node.left), f" {node.sign} ", self._value(node.right))

    def _one_of(self, node: OneOf) -> _Sql:
        item = self._value(node.item)
        options = [self._value(option) for option in node.options]
        listed = _Sql(
            ", ".join([option.text for option in options]), _params_of(options)
        )
        return _join(item, " IN (", listed, ")")

    def _in_values(self, node: InValues) -> _Sql:
        """One parameter for the whole list."""
        column = quote(node.field)
        word = "NOT IN" if node.is_negated else "IN"
        sql = _join(f"{column} {word} (SELECT value FROM json_each(", self._param(), "))")
        return _join("(", sql, f" OR {column} IS NULL)") if node.has_null else sql

    def _affix(self, node: Affix) -> _Sql:
        """Compared as bytes: SQLite's text functions stop at NUL, and UTF-8 needs no more.

        SQLite has no empty part of an empty blob: substr() gives NULL for it.
        """
        text, part = node.text, node.affix
        if type(text) is Column and type(part) is Literal and not node.at_end:
            column = quote(text.field)
            if _range_of(str(part.value))[1] is None:
                return _join(f"{column} >= ", self._param())
            low, behind = self._param(), self._param()
            return _join(f"({column} >= ", low, f" AND {column} < ", behind, ")")
        is_present: tuple[_Sql | str, ...] = ()
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

    def _like(self, node: Like) -> _Sql:
        self._param()
        return _Sql(like_text(like_parts(node)[0], quote(node.field)), (self._next - 1,))

    def _match(self, node: Match) -> _Sql:
        return _Sql(match_condition(self._entity), self._param().params)

    # --- Guards --------------------------------------------------------------------------------

    def _guarded(self, node: Guarded) -> _Sql:
        """`wanted` behind `allowed` in a CASE, and beside it the conditions that an index serves.

        The inner CASE makes `wanted` a condition: of an AND whose value is asked for, SQLite
        always evaluates both sides.
        """
        allowed = self.condition(node.allowed)
        wanted = conjuncts(node.wanted)
        written: list[_Sql] = []
        paths: list[_Sql] = []
        for item in wanted:
            begin = self._next
            written.append(self.condition(item))
            if isinstance(item, Or) and not self._is_led:
                paths += self._path_of(item, begin)
        served = [] if self._is_led else _served(
            self._entity, wanted, _columns_fixed_by(node.allowed)
        )
        beside = [written[n] for n in served] + paths
        rest = [sql for n, sql in enumerate(written) if n not in served]
        if not rest:
            return _tree([*beside, allowed], " AND ")
        judged = _join(
            "CASE WHEN ", allowed, " THEN CASE WHEN ", _tree(rest, " AND "), " THEN 1 END END"
        )
        if _has_equality(node.allowed):
            beside.append(allowed)  # so that an index may serve it
        return _tree([*beside, judged], " AND ")

    def _path_of(self, node: Or, begin: int) -> list[_Sql]:
        """A condition that follows from an `Or` and that an index can serve: the equalities of
        its items with first columns of indexes. Empty if an item has none.

        The SQL looks for each value of a column once, also if several items have it.

        Args:
            begin: the number of the first parameter of `node`.
        """
        first = {columns[0] for columns in self._entity.index_columns}
        by_field: dict[str, list[tuple[Predicate, _Sql]]] = {}
        counter = _Writer(self._entity, is_led=True)
        counter._next = begin
        for item in node.items:
            found = None
            for part in conjuncts(item):
                sql = counter.condition(part)
                field = _field_equal(part)
                if found is None and field in first:
                    found = part, sql
                    by_field.setdefault(field, []).append(found)
            if found is None:
                return []
        return [_tree([_one_look(name, own) for name, own in by_field.items()], " OR ")]

    # --- Values --------------------------------------------------------------------------------

    def _value(self, value: Value) -> _Sql:
        """SQL for a value; a condition as a value is 0 or 1, never NULL."""
        if isinstance(value, Column):
            return _Sql(quote(value.field))
        if isinstance(value, Literal):
            return self._param()
        if isinstance(value, Arithmetic):
            kind = "INTEGER" if value.op == "%" else "REAL"
            left = _join("CAST(", self._value(value.left), f" AS {kind})")
            right = _join("CAST(", self._value(value.right), f" AS {kind})")
            return _join("(", left, f" {value.op} ", right, ")")
        return _join("((", self.condition(value), ") IS TRUE)")


_WRITES: Final[dict[type, Callable[[_Writer, Any], _Sql]]] = {
    Compare: _Writer._compare, OneOf: _Writer._one_of, InValues: _Writer._in_values,
    Affix: _Writer._affix, Like: _Writer._like, Match: _Writer._match,
    Guarded: _Writer._guarded,
}


def _served(
    entity: Entity, wanted: Sequence[Predicate], fixed: Collection[str]
) -> list[int]:
    """The places of the conditions that an index can serve: equalities with its first columns,
    then a range; and full-text matches.

    An index that serves a condition shows by the time how many rows there are in that range, so
    the SQL looks through each range once: of an `Or`, different values of first columns only.
    An index for uniqueness serves no range, which would tell a token of a hidden row sign by
    sign.

    Args:
        fixed: columns that the read policy compares with a value. It does not hide the rows that
            they lead to.
    """
    equal: dict[str, int] = {}
    ranges: dict[str, list[int]] = {}
    served: dict[int, None] = {}
    for place, item in enumerate(wanted):
        name = _field_equal(item)
        if name is not None:
            equal.setdefault(name, place)
        elif (name := _field_ranged(item)) is not None:
            ranges.setdefault(name, []).append(place)
    for columns in entity.index_columns:
        serves_ranges = columns in entity.range_columns
        for column in columns:
            if column in equal:
                served[equal[column]] = None
            elif column in fixed:
                serves_ranges = True  # among rows that the caller may read
            else:
                if serves_ranges:
                    served.update(dict.fromkeys(ranges.get(column, ())))
                break
    served.update({n: None for n, item in enumerate(wanted) if type(item) is Match})
    return list(served)


def _field_equal(item: Predicate) -> str | None:
    """The field that has one of a few values where the condition holds."""
    if type(item) is Compare:
        if item.sign == "=" and type(item.left) is Column and type(item.right) is Literal:
            return item.left.field
    elif type(item) is InValues and not item.is_negated:
        return item.field
    elif type(item) is IsNull and type(item.operand) is Column:
        return item.operand.field
    return None


def _field_ranged(item: Predicate) -> str | None:
    """The field whose value lies in a range where the condition holds."""
    if type(item) is Compare and item.sign in _RANGES:
        column, value = item.left, item.right
    elif type(item) is Affix and not item.at_end:
        column, value = item.text, item.affix
    else:
        return None
    return column.field if type(column) is Column and type(value) is Literal else None


def _one_look(field: str, equalities: list[tuple[Predicate, _Sql]]) -> _Sql:
    """The rows whose field has a value of one of these equalities: one look for each value."""
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
    return _Sql(both, numbers)


def _columns_fixed_by(allowed: Predicate) -> frozenset[str]:
    return frozenset([
        item.left.field for item in conjuncts(allowed)
        if _is_equality(item) and isinstance(item, Compare) and isinstance(item.left, Column)
    ])


def _has_equality(allowed: Predicate) -> bool:
    if isinstance(allowed, (And, Or)):
        return any(_has_equality(item) for item in allowed.items)
    return _is_equality(allowed)


def _is_equality(item: Predicate) -> bool:
    """Whether it compares a field with a value that is not just true or false."""
    return (
        type(item) is Compare and item.sign == "=" and type(item.left) is Column
        and type(item.right) is Literal and not isinstance(item.right.value, bool)
    )


def _blob(value: _Sql) -> _Sql:
    return _join("CAST(", value, " AS BLOB)")


def _tree(items: list[_Sql], word: str) -> _Sql:
    if len(items) == 1:
        return items[0]
    if len(items) > _CHAIN:
        middle = len(items) // 2
        items = [_tree(items[:middle], word), _tree(items[middle:], word)]
    return _Sql("(" + word.join([item.text for item in items]) + ")", _params_of(items))


def _params_of(items: Iterable[_Sql]) -> tuple[int, ...]:
    return tuple([number for item in items for number in item.params])


def _join(*pieces: _Sql | str) -> _Sql:
    return _Sql(
        "".join([piece if isinstance(piece, str) else piece.text for piece in pieces]),
        _params_of(piece for piece in pieces if not isinstance(piece, str)),
    )
