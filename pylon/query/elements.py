"""Conditions on elements of JSON values: a filter's key is a path, ``"meta.size": {"$gt": 3}``.

An element is the value at the path: a member of an object, of a member, and so on. A condition
compares it only if it has the kind of the operand: text, number or boolean. `$ne` and `$nin` hold
for an element of another kind; no condition but those on null holds where there is no element.

Invariant: the parser refuses everything that it does not know. Bounds: `limits.JSON_PATH_DEPTH`
names and `limits.JSON_FILTER_VALUES` members of a list. Called by `parse`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, Final

from pylon import limits
from pylon.errors import InvalidQuery, InvalidValue, LimitExceeded
from pylon.manifest.model import Entity, Field
from pylon.query.conditions import and_, not_, one_of, or_
from pylon.query.predicate import (
    FALSE,
    TRUE,
    Compare,
    Element,
    HasMember,
    IsNull,
    Literal,
    Not,
    Predicate,
    Sign,
)
from pylon.values import INT_MAX, INT_MIN, shown
from pylon.values.json_values import ElementKind, kind_of

_KINDS: Final[tuple[ElementKind, ...]] = ("text", "number", "boolean")


def path_of(field: Field, rest: str) -> tuple[str, ...]:
    """Return the path of a key behind the field's name.

    Raises:
        InvalidQuery: a name is empty.
        LimitExceeded: the path is too long.
    """
    path = tuple(rest.split("."))
    if not all(path):
        raise InvalidQuery(f"A name in the path {field.name}.{rest[:100]} is empty")
    if len(path) > limits.JSON_PATH_DEPTH:
        raise LimitExceeded(
            f"A path has {limits.JSON_PATH_DEPTH} names at most (field {field.name})"
        )
    return path


def element_condition(
    entity: Entity, field: Field, path: tuple[str, ...], operator: str, value: object
) -> Predicate:
    """Return the condition of one operator; `$eq` stands for a bare operand.

    Raises:
        InvalidQuery, InvalidValue, LimitExceeded
    """
    make = OPERATORS.get(operator)
    if make is None:
        raise InvalidQuery(
            f"{operator[:100]} is no operator on {field.name}, which is json -- known operators: "
            + ", ".join(name for name in OPERATORS if name != "$eq"), operator=operator[:100],
        )
    return make(_Place(entity, field, path), value)


class _Place:
    """The element that a condition is about."""

    __slots__ = ("_entity", "_field", "_path", "name")

    def __init__(self, entity: Entity, field: Field, path: tuple[str, ...]) -> None:
        self._entity = entity
        self._field = field
        self._path = path
        self.name = ".".join((field.name, *path))

    def element(self, kind: ElementKind) -> Element:
        return Element(self._field.name, self._path, kind, self._field.is_json_text)

    def has_member(self, value: Any) -> Predicate:
        return HasMember(self._field.name, self._path, value, self._field.is_json_text)

    @property
    def is_missing(self) -> Predicate:
        return IsNull(self.element("any"))

    def scalar(self, value: object) -> Any:
        """Return an operand.

        Raises:
            InvalidValue: it is no text, boolean or number that a JSON value may have.
        """
        if isinstance(value, (str, bool)) or (isinstance(value, float) and isfinite(value)) or (
            isinstance(value, int) and INT_MIN <= value <= INT_MAX
        ):
            return value
        raise InvalidValue(
            f"{self._entity.name}.{self.name} compares with a text, a number or a boolean",
            hint='a list: {"$in": [...]}; a member of a list: {"$contains": value}',
            entity=self._entity.name, field=self.name, value=shown(value),
        )


def _equal(place: _Place, value: object) -> Predicate:
    if value is None:
        return place.is_missing
    operand = place.scalar(value)
    return Compare("=", place.element(kind_of(operand)), Literal(operand))


def _unequal(place: _Place, value: object) -> Predicate:
    if value is None:
        return Not(place.is_missing)
    return and_(Not(place.is_missing), Not(_equal(place, value)))


def _comparison(sign: Sign) -> Callable[[_Place, object], Predicate]:
    def compared(place: _Place, value: object) -> Predicate:
        operand = place.scalar(value)
        return Compare(sign, place.element(kind_of(operand)), Literal(operand))

    return compared


def _in(place: _Place, value: object) -> Predicate:
    members = _members(place, value, "$in")
    found: list[Predicate] = []
    for kind in _KINDS:
        same = tuple([Literal(m) for m in members if m is not None and kind_of(m) == kind])
        if same:
            found.append(one_of(place.element(kind), same))
    if None in members:
        found.append(place.is_missing)
    return or_(*found) if found else FALSE


def _not_in(place: _Place, value: object) -> Predicate:
    members = _members(place, value, "$nin")
    if not members:
        return TRUE
    others = [member for member in members if member is not None]
    return and_(Not(place.is_missing), not_(_in(place, others)))


def _members(place: _Place, value: object, operator: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidQuery(f"{operator} takes a list (field {place.name})")
    if len(value) > limits.JSON_FILTER_VALUES:
        raise LimitExceeded(
            f"{operator} takes {limits.JSON_FILTER_VALUES} values at most on a path of a JSON "
            f"value, and {place.name} has {len(value)}"
        )
    return [None if member is None else place.scalar(member) for member in value]


def _exists(place: _Place, value: object) -> Predicate:
    if not isinstance(value, bool):
        raise InvalidQuery(f"$exists takes true or false (field {place.name})")
    return Not(place.is_missing) if value else place.is_missing


def _contains(place: _Place, value: object) -> Predicate:
    return place.has_member(place.scalar(value))


OPERATORS: Final[dict[str, Callable[[_Place, object], Predicate]]] = {
    "$eq": _equal,
    "$not": _unequal,
    "$ne": _unequal,
    "$gt": _comparison(">"),
    "$gte": _comparison(">="),
    "$lt": _comparison("<"),
    "$lte": _comparison("<="),
    "$in": _in,
    "$nin": _not_in,
    "$exists": _exists,
    "$contains": _contains,
}
