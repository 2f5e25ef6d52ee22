"""Filters: parses the filter object of a request into a `Predicate` (spec/http.md §3.3).

A row must meet all conditions of a filter. `$or` and `$and` take lists of filters; `$search`
searches the texts of the entity. The parser refuses everything that it does not know: if it ignored
a condition, a query would return more rows than the client asked for. `null` as an operand means
"is null". No other condition holds for a null in a row, not even `$ne` or `$nin`.

Each operator makes its own condition (`operators`), from an operand of the field's type
(`operands`); `elements` has the conditions on the values inside a JSON field.

Bounds: `limits.FILTER_TERMS` conditions, with
each `$or` and `$and` counted, in `limits.FILTER_DEPTH` levels; `limits.HARD_PATTERNS` patterns for
which SQLite's LIKE may be slow (`patterns.is_hard_pattern`). Called by `rows`, `graph`, `aggregate`
and `matcher`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from pylon import limits
from pylon.errors import SHOWN_CHARS, InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType
from pylon.query.conditions import and_, or_
from pylon.query.elements import element_condition, path_of
from pylon.query.operands import field_of
from pylon.query.operators import OPERATORS, equal_condition
from pylon.query.predicate import Like, Predicate
from pylon.query.words import parse_words

COMBINING: Final = ("$or", "$and", "$search")


def parse_where(
    entity: Entity, body: object, directives: Collection[str] = ()
) -> Predicate:
    """Return the condition that `body` describes.

    Args:
        body: a decoded JSON object.
        directives: further keys that `body` may have, such as `$order`. The parser skips them.

    Raises:
        InvalidQuery: not an object, an unknown operator, a malformed list.
        InvalidColumn: a field that the entity does not have.
        InvalidValue: an operand of another type than the field.
        LimitExceeded: too many conditions, or too deep.
    """
    return FilterParser(entity, directives).parse(body)


def filter_object(body: object) -> dict[str, Any]:
    """Return `body` if it is a JSON object.

    Raises:
        InvalidQuery: it is no object.
    """
    if not isinstance(body, dict):
        raise InvalidQuery("A filter must be a JSON object, for example {}")
    return body


class FilterParser:
    """Parses one filter and counts its conditions.

    After `parse`, `has_search` tells whether the filter has a `$search`, and `patterns` lists its
    `$like` patterns.
    """

    __slots__ = (
        "_directives", "_entity", "_hard", "_pattern_chars", "_terms", "has_search", "patterns",
    )

    def __init__(self, entity: Entity, directives: Collection[str] = ()) -> None:
        self._entity = entity
        self._directives = directives
        self._hard = 0
        self._pattern_chars = 0
        self._terms = 0
        self.has_search = False
        self.patterns: list[str] = []

    def parse(self, body: object, depth: int = 0) -> Predicate:
        """Return the condition of a filter object. Raises the errors of `parse_where`."""
        found: list[Predicate] = []
        for key, operand in filter_object(body).items():
            if key.startswith("$"):
                if key in self._directives:
                    if depth:
                        raise InvalidQuery(f"{key} has its place in the outermost filter only")
                    continue
                found.append(self._parse_combined(key, operand, depth))
                continue
            if "." in key:
                found += self._parse_path(key, operand)
                continue
            field = field_of(self._entity, key)
            if field.type is FieldType.JSON:
                found += self._parse_element(field, (), operand)
            elif isinstance(operand, dict):
                found += self._parse_operators(field, operand)
            else:
                self._count()
                found.append(equal_condition(self._entity, field, operand))
        return found[0] if len(found) == 1 else and_(*found)

    def _parse_path(self, key: str, operand: object) -> list[Predicate]:
        name, _, rest = key.partition(".")
        field = field_of(self._entity, name)
        if field.type is not FieldType.JSON:
            raise InvalidQuery(
                f"{field.name} is {field.type.value}, and only a json field has a path"
            )
        return self._parse_element(field, path_of(field, rest), operand)

    def _parse_element(
        self, field: Field, path: tuple[str, ...], operand: object
    ) -> list[Predicate]:
        operators = operand if isinstance(operand, dict) else {"$eq": operand}
        if not operators:
            raise InvalidQuery(f"The condition on {field.name} has no operator")
        found = []
        for operator, value in operators.items():
            self._count()
            found.append(element_condition(self._entity, field, path, operator, value))
        return found

    def _parse_combined(self, key: str, operand: object, depth: int) -> Predicate:
        self._count()
        if key == "$search":
            return self._parse_search(operand)
        if key not in ("$or", "$and"):
            raise _unknown(key, (*COMBINING, *self._directives))
        if not isinstance(operand, list):
            raise InvalidQuery(f'{key} takes a list of filters, for example [{{"id": "x"}}]')
        if depth == limits.FILTER_DEPTH:
            raise LimitExceeded(
                f"$or and $and may be nested {limits.FILTER_DEPTH} levels deep at most"
            )
        found: list[Predicate] = []
        for part in operand:
            self._count()
            found.append(self.parse(part, depth + 1))
        return and_(*found) if key == "$and" else or_(*found)

    def _parse_search(self, text: object) -> Predicate:
        if not isinstance(text, str):
            raise InvalidQuery("$search takes a text")
        if self.has_search:
            raise InvalidQuery("A filter may have one $search")
        self.has_search = True
        return parse_words(self._entity, text)

    def _parse_operators(self, field: Field, operand: dict[str, Any]) -> list[Predicate]:
        if not operand:
            raise InvalidQuery(
                f"The condition on {field.name} has no operator -- "
                f"known operators: {', '.join(OPERATORS)}"
            )
        found = []
        for operator, value in operand.items():
            self._count()
            make = OPERATORS.get(operator)
            if make is None:
                raise _unknown(operator, tuple(OPERATORS))
            condition = make(self._entity, field, value)
            if operator == "$like":
                self._count_pattern(value, condition)
            found.append(condition)
        return found

    def _count_pattern(self, pattern: str, condition: Predicate) -> None:
        self.patterns.append(pattern)
        self._pattern_chars += len(pattern)
        if self._pattern_chars > limits.LIKE_CHARS:
            raise LimitExceeded(
                f"The $like patterns of a filter have {limits.LIKE_CHARS} characters at most, "
                "all together"
            )
        if type(condition) is Like and condition.is_hard:
            self._hard += 1
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
    shown = operator[:SHOWN_CHARS]
    return InvalidQuery(
        f'Unknown operator "{shown}" -- known operators: {", ".join(known)}', operator=shown
    )
