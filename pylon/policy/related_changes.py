"""Related changes: the changes of other rows that may turn the verdict of a read rule.

A *related change* of a caller is a change of a row that an ``exists(...)`` of a read rule asks
about, and that fulfils those comparisons which the caller alone decides. For ``exists(Member,
roomId == data.roomId, userId == auth.userId)`` these are the changes of members with the caller's
`userId`. Only a related change can turn the verdict on a row that has not changed itself. The rows
that it may open or close have the same key: here the messages with the member's `roomId`.

Invariants: `concerns` finds every change that may turn a verdict for the caller, and maybe others.
The conditions of `affected` together hold for every row whose verdict the change may turn, and
maybe for others. Nothing here reads a store or knows a connection. Called by
`pylon.changelog.difference` and `workers.hub`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from msgspec.structs import replace

from pylon.auth_context import AuthContext
from pylon.policy import expression as e
from pylon.policy.related import ExistsCheck, conditions_of
from pylon.query.conditions import and_, equal
from pylon.query.evaluate import Evaluator, evaluator_of
from pylon.query.predicate import FALSE, Literal, Predicate, Value
from pylon.values.notations import KEYS, Notation

Row = Mapping[str, Any]
# Returns the rows of an entity for which a condition holds, before the changes or after them.
FindRows = Callable[[str, Predicate], Iterable[Row]]

_EVALUATORS_KEPT: Final = 1_024
_Option = TypeVar("_Option", bound=e.Expr)


class AuthKey(NamedTuple):
    """A field of an asked row that equals an attribute of each caller whom the row concerns."""

    field: str
    attribute: str


class KeyFields(NamedTuple):
    """A field of an asked row that equals one of the judged row, with the notation of each."""

    asked: str
    judged: str
    asked_notation: Notation
    judged_notation: Notation


class _Place(NamedTuple):
    """An `Exists`, and the one around it."""

    exists: e.Exists
    outer: e.Exists | None


class RelatedChanges:
    """The related changes of one entity's read rule."""

    __slots__ = ("_evaluators", "_fields", "_places", "checks", "entities")

    def __init__(self, checks: tuple[ExistsCheck, ...]) -> None:
        """Args: `checks` are those of the read rule. `entities` are all that they ask about."""
        self.checks = checks
        self._places: dict[str, list[_Place]] = {}
        for check in checks:
            for place in _places_of(check.exists, None):
                self._places.setdefault(place.exists.entity, []).append(place)
        self.entities = frozenset(self._places)
        self._fields: dict[str, set[str]] = {name: set() for name in self._places}
        for places in self._places.values():
            for exists, outer in places:
                self._fields[exists.entity] |= {part.field for part in exists.comparisons}
                if outer is not None:
                    self._fields[outer.entity] |= {
                        option.field for part in exists.comparisons for option in part.options
                        if isinstance(option, e.Related)
                    }
        self._evaluators: dict[tuple[_Place, tuple[object, ...]], Evaluator] = {}

    def may_turn(self, entity: str, before: Row | None, after: Row | None) -> bool:
        """Whether a change of a row may turn a verdict for any caller.

        An update of other fields than those compared, such as a mark of what was read, does not.
        """
        fields = self._fields.get(entity)
        if fields is None:
            return False
        if before is None or after is None:
            return True
        return any(before.get(name) != after.get(name) for name in fields)

    def concerns(self, auth: AuthContext, entity: str, image: Row) -> bool:
        """Whether a row that came, went or changed may turn a verdict for the caller.

        Args:
            image: the row before or after its change.
        """
        return any(
            self._evaluator(place, auth)(image) for place in self._places.get(entity, ())
        )

    def auth_keys(self, entity: str) -> tuple[AuthKey, ...] | None:
        """Return fields of an asked entity of which one leads to each caller whom a row concerns.

        None: some rows concern callers whom no single field names.
        """
        keys = []
        for place in self._places.get(entity, ()):
            key = next(_auth_keys_of(place.exists), None)
            if key is None:
                return None
            keys.append(key)
        return tuple(dict.fromkeys(keys))

    def affected(
        self, auth: AuthContext, entity: str, image: Row, find_rows: FindRows
    ) -> Iterator[Predicate]:
        """Yield conditions of the rows whose verdict the change of an asked row may turn.

        Args:
            image: the row before or after its change.
            find_rows: called for checks within checks only.
        """
        for place in self._places.get(entity, ()):
            if not self._evaluator(place, auth)(image):
                continue
            where = _same_key(place.exists, image)
            if place.outer is None:
                yield where
                continue
            outer_where = and_(*[
                _equal_to(part, option, image)
                for part, option in _equalities(place.exists, e.Related)
            ])
            for row in find_rows(place.outer.entity, outer_where):
                yield and_(where, _same_key(place.outer, row))

    def _evaluator(self, place: _Place, auth: AuthContext) -> Evaluator:
        """Return the test of a row by the comparisons that the caller alone decides."""
        fixed = fixed_part(place.exists)
        values = tuple([
            getattr(auth, option.attribute)
            for part in fixed.comparisons for option in part.options if isinstance(option, e.Auth)
        ])
        key = place, values
        found = self._evaluators.get(key)
        if found is None:
            if len(self._evaluators) >= _EVALUATORS_KEPT:
                self._evaluators.clear()
            where = conditions_of(fixed, lambda expr, depth: _values_for(auth, expr))
            found = self._evaluators[key] = evaluator_of(where)
        return found


def comparable(row: Row, field: str, notation: Notation) -> Any:
    """Return what a row's value compares as, as a judge passes it to a check."""
    value = row.get(field)
    return KEYS[notation](value) if notation else value


def fixed_part(exists: e.Exists) -> e.Exists:
    """Return the check with those of its own comparisons only that the caller alone decides."""
    kept = tuple(
        part for part in exists.comparisons
        if all(isinstance(option, (e.Literal, e.Auth)) for option in part.options)
    )
    return replace(exists, comparisons=kept, nested=())


def key_fields(check: ExistsCheck) -> tuple[KeyFields, ...] | None:
    """Return the pairs of fields whose equality decides the check for a caller; None if other
    comparisons with the judged row decide as well.
    """
    exists = check.exists
    if any(_names_judged_row(inner) for inner in exists.nested):
        return None
    pairs = tuple(
        KeyFields(part.field, option.field, part.notation, option.kind.notation)
        for part, option in _equalities(exists, e.Column)
    )
    named = [part for part in exists.comparisons if _has_column(part)]
    return pairs if len(pairs) == len(named) else None


def _values_for(auth: AuthContext, expr: e.Expr) -> tuple[Value, ...]:
    if isinstance(expr, e.Literal):
        return (Literal(expr.value),)
    assert isinstance(expr, e.Auth)
    value = getattr(auth, expr.attribute)
    return tuple(map(Literal, value)) if isinstance(value, tuple) else (Literal(value),)


def _places_of(exists: e.Exists, outer: e.Exists | None) -> Iterator[_Place]:
    yield _Place(exists, outer)
    for inner in exists.nested:
        yield from _places_of(inner, exists)


def _equalities(
    exists: e.Exists, kind: type[_Option]
) -> Iterator[tuple[e.Comparison, _Option]]:
    """Yield the comparisons ``field == x`` whose right side is of a kind."""
    for part in exists.comparisons:
        option = part.options[0] if part.options else None
        if part.op == "==" and len(part.options) == 1 and isinstance(option, kind):
            yield part, option


def _auth_keys_of(exists: e.Exists) -> Iterator[AuthKey]:
    for part, option in _equalities(exists, e.Auth):
        if option.attribute in ("user_id", "tenant_id"):
            yield AuthKey(part.field, option.attribute)


def _same_key(exists: e.Exists, row: Row) -> Predicate:
    """Return the condition of the judged rows that have the key of an asked row."""
    return and_(*[
        _equal_to(part, option, row) for part, option in _equalities(exists, e.Column)
    ])


def _equal_to(part: e.Comparison, option: e.Column | e.Related, row: Row) -> Predicate:
    """Return the condition that a row's field `option` has the value of the asked row `row`."""
    value = comparable(row, part.field, part.notation)
    return FALSE if value is None else equal(option.field, value, option.kind.notation)


def _has_column(part: e.Comparison) -> bool:
    return any(isinstance(option, e.Column) for option in part.options)


def _names_judged_row(exists: e.Exists) -> bool:
    return any(map(_has_column, exists.comparisons)) or any(
        map(_names_judged_row, exists.nested)
    )
