"""The conditions of a filter object become one SQL clause (spec/http.md §3.3).

A filter's fields are ANDed; `$or` and `$and` take lists of filters; `$search` looks in the
entity's text. What is not understood is refused: a condition that is left out would make a query
answer more than was asked for. `null` written as an operand means IS NULL; besides that a null
in a row fulfils no condition, `$ne` and `$nin` included.

Numbers compare as in mathematics, whatever their type and size. SQLite does so too, within 64
bits; a larger whole number becomes a float for which the comparison has the same answer.

Invariants: values travel as parameters only; every operand is of its field's type; at most
`limits.FILTER_TERMS` conditions, counting `$or` and `$and`, in at most `limits.FILTER_DEPTH`
levels. A row that the caller may not read meets no condition but those that an index can serve
(`_served`): comparisons of indexed fields, each of them once. Called by `filters` (queries, graph
queries), `aggregate` and `matching`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from math import inf, isfinite
from typing import Any, Final

import orjson

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType
from pylon.storage.clause import SqlClause, Work
from pylon.storage.names import quote
from pylon.storage.sqlite.patterns import is_hard, like_clause
from pylon.storage.sqlite.search import search_clause
from pylon.storage.where import ALL, NOTHING, and_, judged_first, or_
from pylon.values import INT_MAX, INT_MIN, invalid_value, unknown_column

ID: Final = Field("id", FieldType.ID, optional=False, unique=True)
NUMBERS: Final = (FieldType.INT, FieldType.FLOAT)
COMBINING: Final = ("$or", "$and", "$search")
_EQUALITIES: Final = ("=", "$in")
_RANGES: Final = ("$gt", "$gte", "$lt", "$lte", "$startsWith")
_FIXED: Final = re.compile(r'"([^"]+)" = \?')  # as the policy compiler writes it
_LAST_CHARACTER: Final = "\U0010ffff"


def parse_where(
    entity: Entity, body: object, directives: Collection[str] = (), allowed: SqlClause = ALL,
    is_led: bool = False,
) -> SqlClause:
    """The rows of `allowed` that `body` describes.

    Args:
        body: a decoded JSON object.
        directives: further keys that it may have, which the caller reads.
        allowed: the rows that the caller may read.
        is_led: the statement finds the rows by other rows, so that no index serves the filter.

    Raises:
        InvalidQuery: not an object, an unknown operator, a malformed list.
        InvalidColumn: a field that the entity does not have.
        InvalidValue: an operand of another type than the field.
        LimitExceeded: too many conditions, or too deep.
    """
    conditions = _Conditions(entity, directives)
    if allowed.sql == ALL.sql:
        return conditions.of(body, 0, None)
    compared = _Compared(is_whole=True)
    conditions.of(body, 0, compared)
    if is_led:
        return judged_first(allowed, and_(*compared.clauses))
    served = _served(entity, compared, _columns_fixed_by(allowed))
    rest = [clause for clause in compared.clauses if clause not in served]
    return judged_first(allowed, and_(*rest), and_(*served, *compared.paths))


def filter_object(body: object) -> dict[str, Any]:
    """`body`, if it can be a filter at all.

    Raises:
        InvalidQuery
    """
    if not isinstance(body, dict):
        raise InvalidQuery("A filter must be a JSON object, for example {}")
    return body


def field_of(entity: Entity, name: object) -> Field:
    """The field, or `id`.

    Raises:
        InvalidColumn
    """
    if name == "id":
        return ID
    field = entity.by_name.get(name) if isinstance(name, str) else None
    if field is None:
        raise unknown_column(entity, str(name))
    return field


class _Compared:
    """Conditions that all rows of a filter, or of one part of an `$or`, fulfil, as far as an
    index may serve them. `clauses`: of a whole filter all of them; `paths`: what follows from
    them, for an index."""

    __slots__ = ("clauses", "equal", "is_whole", "matches", "paths", "within")

    def __init__(self, is_whole: bool = False) -> None:
        self.is_whole = is_whole
        self.clauses: list[SqlClause] = []
        self.equal: dict[str, SqlClause] = {}  # by field
        self.within: dict[str, list[SqlClause]] = {}
        self.matches: list[SqlClause] = []  # by the full-text index
        self.paths: list[SqlClause] = []

    def note(self, name: str, operator: str, clause: SqlClause) -> None:
        if operator in _EQUALITIES:
            self.equal.setdefault(name, clause)
        elif operator in _RANGES:
            self.within.setdefault(name, []).append(clause)


def _served(entity: Entity, compared: _Compared, fixed: Collection[str]) -> list[SqlClause]:
    """The part of a filter an index can serve: equalities with its first columns, then a range.

    An index that serves it shows by the time how many rows there are in that range, so each
    range is looked through once: of an `$or`, different values of first columns only. An index
    for uniqueness serves no range, which would tell a token of a hidden row sign by sign.

    Args:
        fixed: columns that the read policy compares with a value. Rows that they lead to are
            not hidden by it.
    """
    served: dict[str, SqlClause] = {}
    for columns in entity.index_columns:
        serves_ranges = columns in entity.range_columns
        for column in columns:
            equal = compared.equal.get(column)
            if equal is not None:
                served[column] = equal
            elif column in fixed:
                serves_ranges = True  # among rows that the caller may read
            else:
                within = compared.within.get(column, ()) if serves_ranges else ()
                served.update((f"{column} {n}", clause) for n, clause in enumerate(within))
                break
    return [*served.values(), *compared.matches]


def _columns_fixed_by(allowed: SqlClause) -> Collection[str]:
    return () if " OR " in allowed.sql else _FIXED.findall(allowed.sql)


def _path_of_either(entity: Entity, parts: list[_Compared]) -> SqlClause | None:
    """The part of an `$or` that an index can serve; None if it cannot serve all of its terms."""
    first = {columns[0] for columns in entity.index_columns}
    served: dict[SqlClause, None] = {}
    for part in parts:
        equal = next((c for name, c in part.equal.items() if name in first), None)
        if equal is None:
            return None
        served[equal] = None
    return or_(*served)


class _Conditions:
    """Reads one filter, and counts."""

    __slots__ = ("_directives", "_entity", "_hard", "_pattern_chars", "_searches", "_terms")

    def __init__(self, entity: Entity, directives: Collection[str]) -> None:
        self._entity = entity
        self._directives = directives
        self._searches = False
        self._hard = 0
        self._pattern_chars = 0
        self._terms = 0

    def of(self, body: object, depth: int, compared: _Compared | None) -> SqlClause:
        """A filter's clause; or it is noted in `compared`, if that is for the whole filter."""
        clauses: list[SqlClause] = []
        for key, operand in filter_object(body).items():
            if key.startswith("$"):
                if key in self._directives:
                    if depth:
                        raise InvalidQuery(f"{key} has its place in the outermost filter only")
                    continue
                clauses.append(self._combined(key, operand, depth, compared))
                continue
            field = field_of(self._entity, key)
            if isinstance(operand, dict):
                clauses += self._operators(field, operand, compared)
            else:
                self._count()
                clause = _equal(self._entity, field, operand)
                if compared is not None:
                    compared.note(field.name, "=", clause)
                clauses.append(clause)
        if compared is not None and compared.is_whole:
            compared.clauses += clauses
            return ALL
        return and_(*clauses)

    def _combined(
        self, key: str, operand: object, depth: int, compared: _Compared | None
    ) -> SqlClause:
        self._count()
        if key == "$search":
            clause = self._search(operand)
            if compared is not None and clause.work is Work.MATCH:
                compared.matches.append(clause)
            return clause
        if key not in ("$or", "$and"):
            raise _unknown(key, (*COMBINING, *self._directives))
        if not isinstance(operand, list):
            raise InvalidQuery(f'{key} takes a list of filters, for example [{{"id": "x"}}]')
        if depth == limits.FILTER_DEPTH:
            raise LimitExceeded(
                f"$or and $and may be nested {limits.FILTER_DEPTH} levels deep at most"
            )
        clauses: list[SqlClause] = []
        parts: list[_Compared] = []
        for part in operand:
            self._count()
            if compared is None or key == "$and":
                clauses.append(self.of(part, depth + 1, compared))
            else:
                parts.append(_Compared())
                clauses.append(self.of(part, depth + 1, parts[-1]))
        if key == "$and":
            return and_(*clauses)
        path = None if compared is None else _path_of_either(self._entity, parts)
        if compared is not None and path is not None:
            compared.paths.append(path)
        return or_(*clauses)

    def _search(self, text: object) -> SqlClause:
        if not isinstance(text, str):
            raise InvalidQuery("$search takes a text")
        if self._searches:
            raise InvalidQuery("A filter may have one $search")
        self._searches = True
        return search_clause(self._entity, text)

    def _operators(
        self, field: Field, operand: dict[str, Any], compared: _Compared | None
    ) -> list[SqlClause]:
        if not operand:
            raise InvalidQuery(
                f"The condition on {field.name} has no operator -- "
                f"known operators: {', '.join(_OPERATORS)}"
            )
        clauses = []
        for operator, value in operand.items():
            self._count()
            make = _OPERATORS.get(operator)
            if make is None:
                raise _unknown(operator, tuple(_OPERATORS))
            clause = make(self._entity, field, value)
            if operator == "$like":
                self._count_pattern(value, clause)
            if compared is not None:
                compared.note(field.name, operator, clause)
            clauses.append(clause)
        return clauses

    def _count_pattern(self, pattern: str, clause: SqlClause) -> None:
        self._pattern_chars += len(pattern)
        if self._pattern_chars > limits.LIKE_CHARS:
            raise LimitExceeded(
                f"The $like patterns of a filter have {limits.LIKE_CHARS} characters at most, "
                "all together"
            )
        self._hard += is_hard(clause)
        if self._hard > limits.HARD_PATTERNS:
            raise LimitExceeded(
                f"A filter may have {limits.HARD_PATTERNS} $like patterns at most that are long "
                "or repeat their first character often",
                hint="ask for shorter texts",
            )

    def _count(self) -> None:
        self._terms += 1
        if self._terms > limits.FILTER_TERMS:
            raise LimitExceeded(f"A filter may have {limits.FILTER_TERMS} conditions at most")


def _unknown(operator: str, known: tuple[str, ...]) -> InvalidQuery:
    return InvalidQuery(
        f'Unknown operator "{operator[:100]}" -- known operators: {", ".join(known)}',
        operator=operator[:100],
    )


def _operand(entity: Entity, field: Field, value: object) -> object:
    """`value` as SQL compares it. Numbers of both kinds compare with each other; booleans may
    also be asked for as 0 and 1, as the clients do."""
    if field.type is FieldType.BOOL:
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return int(value)
    elif field.type in NUMBERS:
        if _is_number(value) and (field.type is FieldType.FLOAT or not is_beyond_64_bits(value)):
            return value
    elif isinstance(value, str):
        return value
    raise invalid_value(entity, field, value)


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_beyond_64_bits(value: object) -> bool:
    """Whether it is a whole number that neither a row nor SQLite has."""
    return isinstance(value, int) and not INT_MIN <= value <= INT_MAX


def exact_float(value: float) -> float | None:
    """The float that equals a number; None if there is none."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if number == value else None


def _equal(entity: Entity, field: Field, value: object) -> SqlClause:
    if value is None:
        return SqlClause(f"{quote(field.name)} IS NULL")
    operand: Any = _operand(entity, field, value)
    if field.type is FieldType.FLOAT and is_beyond_64_bits(operand):
        operand = exact_float(operand)
        if operand is None:
            return NOTHING
    return SqlClause(f"{quote(field.name)} = ?", (operand,))


def _unequal(entity: Entity, field: Field, value: object) -> SqlClause:
    if value is None:
        return SqlClause(f"{quote(field.name)} IS NOT NULL")
    operand: Any = _operand(entity, field, value)
    if field.type is FieldType.FLOAT and is_beyond_64_bits(operand):
        operand = exact_float(operand)
        if operand is None:
            return SqlClause(f"{quote(field.name)} IS NOT NULL")
    return SqlClause(f"{quote(field.name)} <> ?", (operand,))


def _comparison(sign: str) -> Callable[[Entity, Field, object], SqlClause]:
    def compared(entity: Entity, field: Field, value: object) -> SqlClause:
        if field.type in NUMBERS and is_beyond_64_bits(value) and not isinstance(value, bool):
            return _far_bound(field, sign, value)
        return SqlClause(f"{quote(field.name)} {sign} ?", (_operand(entity, field, value),))

    return compared


def _far_bound(field: Field, sign: str, value: Any) -> SqlClause:
    """A comparison with a whole number beyond 64 bits, by a float beside it. No number that a
    row can have lies between the two."""
    try:
        near = float(value)
    except OverflowError:
        near = inf if value > 0 else -inf
    if near > value:
        sign = "<" if sign[0] == "<" else ">="
    elif near < value:
        sign = "<=" if sign[0] == "<" else ">"
    return SqlClause(f"{quote(field.name)} {sign} ?", (near,))


def _like(entity: Entity, field: Field, value: object) -> SqlClause:
    """A substring; `%` and `_` in it stay wildcards."""
    text = _text(entity, field, value, "$like")
    if len(text) > limits.LIKE_WILD_CHARS and any(
        "_" in piece and len(piece) > limits.LIKE_WILD_CHARS for piece in text.split("%")
    ):
        raise LimitExceeded(
            f"$like takes {limits.LIKE_WILD_CHARS} characters at most around a _ "
            f"(field {field.name})",
            hint="put a % where any text may stand",
        )
    return like_clause(quote(field.name), text)


def _starts_with(entity: Entity, field: Field, value: object) -> SqlClause:
    """As a range, which an index can serve: texts are ordered by code point."""
    text = _text(entity, field, value, "$startsWith")
    column = quote(field.name)
    rest = text.rstrip(_LAST_CHARACTER)
    if not rest:
        return SqlClause(f"{column} >= ?", (text,))
    following = ord(rest[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:  # surrogates are no characters
        following = 0xE000
    behind = rest[:-1] + chr(following)
    return SqlClause(f"{column} >= ? AND {column} < ?", (text, behind))


def _text(entity: Entity, field: Field, value: object, operator: str) -> str:
    if field.type in NUMBERS or field.type is FieldType.BOOL:
        raise InvalidQuery(f"{operator} works on text, and {field.name} is {field.type.value}")
    if not isinstance(value, str):
        raise invalid_value(entity, field, value)
    if len(value) > limits.LIKE_CHARS:
        raise LimitExceeded(f"{operator} takes {limits.LIKE_CHARS} characters at most")
    return value


def _in(entity: Entity, field: Field, value: object) -> SqlClause:
    """One parameter for the whole list, so that lists of all lengths share a statement."""
    members, has_null = _members(entity, field, value, "$in")
    column = quote(field.name)
    null = SqlClause(f"{column} IS NULL") if has_null else NOTHING
    if not members:
        return null
    listed = orjson.dumps(members).decode()
    return or_(SqlClause(f"{column} IN (SELECT value FROM json_each(?))", (listed,)), null)


def _not_in(entity: Entity, field: Field, value: object) -> SqlClause:
    """As `$ne` of each member; of none: every row."""
    members, _ = _members(entity, field, value, "$nin")
    column = quote(field.name)
    if not members:
        return SqlClause(f"{column} IS NOT NULL") if value else ALL
    listed = orjson.dumps(members).decode()
    return SqlClause(f"{column} NOT IN (SELECT value FROM json_each(?))", (listed,))


def _members(
    entity: Entity, field: Field, value: object, operator: str
) -> tuple[list[Any], bool]:
    if not isinstance(value, list):
        raise InvalidQuery(f"{operator} takes a list (field {field.name})")
    if len(value) > limits.FILTER_VALUES:
        raise LimitExceeded(
            f"{operator} takes {limits.FILTER_VALUES} values at most, and {field.name} has "
            f"{len(value)}"
        )
    members: list[Any] = [_operand(entity, field, v) for v in value if v is not None]
    if field.type is FieldType.FLOAT:  # SQLite gives a list the type of the column
        members = [m for m in map(exact_float, members) if m is not None]
    return members, None in value


def _exists(entity: Entity, field: Field, value: object) -> SqlClause:
    if not isinstance(value, bool):
        raise InvalidQuery(f"$exists takes true or false (field {field.name})")
    return SqlClause(f"{quote(field.name)} IS {'NOT ' if value else ''}NULL")


_OPERATORS: Final[dict[str, Callable[[Entity, Field, object], SqlClause]]] = {
    "$not": _unequal,
    "$ne": _unequal,
    "$gt": _comparison(">"),
    "$gte": _comparison(">="),
    "$lt": _comparison("<"),
    "$lte": _comparison("<="),
    "$like": _like,
    "$startsWith": _starts_with,
    "$in": _in,
    "$nin": _not_in,
    "$exists": _exists,
}
