"""Related rows of two moments: as one commit has them, and as they were before some changes.

Both answer the checks of read rules (`pylon.policy.related.RelatedRows`) from one reader.
`related_at` asks the store. `PastRows` asks it for the rows that the changes did not touch, and
takes the others from the images before the changes. So a range of the change log can be judged at
its beginning and at its end by one read.

Both ask a check with the same values once: the messages of a room have one answer.

Invariant: the reader reads one commit while these objects are in use, and the changes of
`PastRows` are all that led to this commit. Bounds: `limits.RELATED_ROWS` rows around a nested
check; an answer for each row that is judged. Called by `pylon.changelog.difference`, pulls and
replays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import orjson
from msgspec.structs import replace

from pylon import limits
from pylon.changelog.change import Change
from pylon.errors import LimitExceeded
from pylon.policy import expression as e
from pylon.policy.related import CheckValues, ExistsCheck, RelatedRows, conditions_of
from pylon.policy.related_changes import comparable
from pylon.query.conditions import and_, in_values, not_
from pylon.query.evaluate import evaluator_of
from pylon.query.predicate import Literal, Predicate, Value
from pylon.query.rows import Query
from pylon.storage.interface import Reader
from pylon.storage.related import StoredRelated

Row = Mapping[str, Any]


class RowSpan(msgspec.Struct):
    """The first and the last change of a row in a range."""

    first: Change
    last: Change

    @property
    def before(self) -> dict[str, Any] | None:
        """Return the row before the range, or None."""
        return self.first.prev_row

    @property
    def after(self) -> dict[str, Any] | None:
        """Return the row behind the range, or None."""
        return self.last.row


class ChangedRows:
    """The rows that a range of changes touched, by entity and row id."""

    __slots__ = ("_by_entity",)

    def __init__(self, changes: Iterable[Change]) -> None:
        """Args: `changes` are in seq order."""
        self._by_entity: dict[str, dict[str, RowSpan]] = {}
        for change in changes:
            rows = self._by_entity.setdefault(change.event.entity, {})
            span = rows.get(change.event.row_id)
            if span is None:
                rows[change.event.row_id] = RowSpan(change, change)
            else:
                span.last = change

    @property
    def entities(self) -> Iterable[str]:
        """Return the entities of the rows."""
        return self._by_entity.keys()

    def rows_of(self, entity: str) -> Mapping[str, RowSpan]:
        """Return the rows of an entity by their ids."""
        return self._by_entity.get(entity, {})

    def untouched(self, entity: str, where: Predicate) -> Predicate:
        """Return the condition of the other rows for which `where` holds."""
        ids = tuple(self.rows_of(entity))
        return and_(where, not_(in_values("id", ids, has_null=False))) if ids else where


class _AskedOnce:
    """Related rows of one moment, with the answers that they have given.

    PERF: what a membership opens in a room of 1,000 messages took 29 ms to find, and takes 10.
    """

    __slots__ = ("_ask", "_known")

    def __init__(self, ask: Callable[[ExistsCheck, CheckValues], bool]) -> None:
        self._ask = ask
        self._known: dict[tuple[ExistsCheck, CheckValues, tuple[type, ...]], bool] = {}

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        """See `pylon.policy.related.RelatedRows`."""
        key = check, values, tuple(map(type, values))  # 1 and true are equal, and two values
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._ask(check, values)
        return known


class PastRows:
    """The rows before the changes that led to a reader's commit."""

    __slots__ = ("_asked", "_changed", "_now", "_reader")

    def __init__(self, reader: Reader, changed: ChangedRows) -> None:
        self._reader = reader
        self._changed = changed
        self._now = related_at(reader)
        self._asked = _AskedOnce(self._find)

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        """See `pylon.policy.related.RelatedRows`.

        Raises:
            LimitExceeded: more than `limits.RELATED_ROWS` rows are around a nested check.
        """
        return self._asked.has_row(check, values)

    def _find(self, check: ExistsCheck, values: CheckValues) -> bool:
        if check.entities.isdisjoint(self._changed.entities):
            return self._now.has_row(check, values)
        return self._fulfils(check.exists, dict(zip(check.values, values, strict=True)), {})

    def _fulfils(
        self, exists: e.Exists, values: Mapping[e.Expr, object], outer: Row
    ) -> bool:
        """Return whether a row fulfils a check within the row `outer`."""

        def read(expr: e.Expr, depth: int) -> tuple[Value, ...]:
            if isinstance(expr, e.Literal):
                return (Literal(expr.value),)
            value: Any = (
                comparable(outer, expr.field, expr.kind.notation)
                if isinstance(expr, e.Related) else values[expr]
            )
            return tuple(map(Literal, value)) if isinstance(value, tuple) else (Literal(value),)

        where = conditions_of(replace(exists, nested=()), read)
        holds = evaluator_of(where)
        images = [
            span.before for span in self._changed.rows_of(exists.entity).values()
            if span.before is not None and holds(span.before)
        ]
        others = self._changed.untouched(exists.entity, where)
        if not exists.nested:
            return bool(images) or self._reader.has_row(exists.entity, others)
        return any(
            all(self._fulfils(inner, values, row) for inner in exists.nested)
            for row in (*images, *map(orjson.loads, read_rows(self._reader, exists.entity, others)))
        )


def related_at(reader: Reader) -> RelatedRows:
    """Return the related rows of the reader's commit."""
    return _AskedOnce(StoredRelated(lambda read: read(reader)).has_row)


def read_rows(reader: Reader, entity: str, where: Predicate) -> list[bytes]:
    """Return the JSON of the rows for which a condition holds.

    Raises:
        LimitExceeded: there are more than `limits.RELATED_ROWS`, or of `limits.LIST_BYTES`.
    """
    rows = reader.rows(entity, Query(where, limits.RELATED_ROWS + 1))
    if len(rows) > limits.RELATED_ROWS:
        raise LimitExceeded(
            f"A change concerns more than {limits.RELATED_ROWS} rows of {entity} at once"
        )
    return rows
