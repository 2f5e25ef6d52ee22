"""Overlay: what a batch knows of the database, with its own changes, before it writes them.

A value that a map has is true for this batch; a missing one is unknown, and must be read. The
`read_` maps have what was read without the lock, before any change of the batch. `touched`,
`parents`, `used_checks` and `used_referring` say on which of it the batch relies, so that the flush
can check that it still holds (`guards`).

Invariant: after `undo` the maps are as they were at `mark`. Bound: the rows of one batch, and those
that its deletes take with them. Made and emptied by `batch`; `prefetch`, `table` and the other
parts of the transaction read and change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from pylon.query.evaluate import Evaluator, evaluator_of
from pylon.query.predicate import Exists, Predicate, Value
from pylon.query.predicate_parts import parts
from pylon.storage.core.transaction import DocumentKey, DoneOp, OpName
from pylon.storage.postgres.statements import Statement

K = TypeVar("K")
V = TypeVar("V")
RowKey = tuple[str, str]  # entity, row id
# JSON (None: it is large, and was not read), version.
KnownRow = tuple[bytes | None, int | None]
Check = tuple[str, Predicate]  # entity, condition
ReferenceKey = tuple[str, str, str]  # entity, field, the row id that the field has

_ABSENT: Final = object()


class ReferenceRows(NamedTuple):
    """The ids of rows that refer to a row; not all of them if it `has_more`."""

    ids: tuple[str, ...]
    has_more: bool


NO_ROWS: Final = ReferenceRows((), has_more=False)


class Overlay:
    """See the module."""

    __slots__ = (
        "_asked", "_evaluators", "_undo", "checks", "documents", "exists", "ops", "owners",
        "parents", "read_checks", "read_referring", "read_versions", "referring", "rows",
        "sessions", "touched", "used_checks", "used_referring",
    )

    def __init__(self) -> None:
        self.rows: dict[RowKey, KnownRow | None] = {}  # None: there is no such row
        self.exists: dict[RowKey, bool] = {}  # of rows that were not read themselves
        self.owners: dict[tuple[Any, ...], str | None] = {}  # of unique values: the row's id
        self.ops: dict[OpName, DoneOp | None] = {}
        self.documents: dict[DocumentKey, int | None] = {}  # see `DocumentRows.document_number`
        self.sessions: dict[str, bool] = {}
        self.checks: dict[Check, bool] = {}  # answers of `has_row`
        self.referring: dict[ReferenceKey, ReferenceRows] = {}
        self.read_versions: dict[RowKey, int | None] = {}
        self.read_checks: dict[Check, tuple[bool, Statement]] = {}  # the answer, the question
        self.read_referring: dict[ReferenceKey, int] = {}  # how many rows; all of them were read
        self.touched: dict[RowKey, None] = {}  # rows of `read_versions` that were changed
        self.parents: dict[RowKey, None] = {}  # rows on whose existence a change relies
        self.used_checks: dict[Check, None] = {}
        self.used_referring: dict[ReferenceKey, None] = {}
        self._asked: dict[str, dict[Check, None]] = {}  # checks by the entities that they ask
        self._evaluators: dict[Check, Evaluator | None] = {}  # None: the database must judge
        self._undo: list[tuple[dict[Any, Any], Any, Any]] | None = None

    def clear(self) -> None:
        """Forget everything: the batch ended."""
        for known in (self.rows, self.exists, self.owners, self.ops, self.documents, self.sessions,
                      self.checks, self.referring, self._asked, self._evaluators):
            if known:
                known.clear()
        self.trust()
        self._undo = None

    def trust(self) -> None:
        """Forget what was read without the lock: it still holds, and the lock keeps it so."""
        for known in (self.read_versions, self.read_checks, self.read_referring, self.touched,
                      self.parents, self.used_checks, self.used_referring):
            if known:
                known.clear()

    def put(self, known: dict[K, V], key: K, value: V) -> None:
        """Note a change of the batch in one of the maps."""
        if self._undo is not None:
            self._undo.append((known, key, known.get(key, _ABSENT)))
        known[key] = value

    def _drop(self, known: dict[K, V], key: K) -> None:
        """Note that a value is unknown from now on."""
        value = known.pop(key)
        if self._undo is not None:
            self._undo.append((known, key, value))

    # --- Checks --------------------------------------------------------------------------------

    def put_check(self, check: Check, answer: bool) -> None:
        """Note an answer of `has_row`."""
        self.put(self.checks, check, answer)
        for entity in {check[0], *_asked_entities(check[1])}:
            self._asked.setdefault(entity, {})[check] = None

    def is_asked(self, entity: str) -> bool:
        """Whether an answer of `has_row` depends on rows of an entity."""
        return entity in self._asked

    def note_change(
        self, entity: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
    ) -> None:
        """Bring the answers of `has_row` up to date with a change of a row.

        Args:
            before, after: the row; None: it was not there, or is not any more.
        """
        for check in self._asked[entity]:
            answer = self.checks.get(check)
            if answer is None:
                continue
            holds = self._evaluator(check)
            if holds is None:
                self._drop(self.checks, check)
            elif after is not None and holds(after):
                if not answer:
                    self.put(self.checks, check, True)
            elif answer and before is not None and holds(before):
                self._drop(self.checks, check)  # there may be another row

    def _evaluator(self, check: Check) -> Evaluator | None:
        if check not in self._evaluators:
            is_plain = next(_asked_entities(check[1]), None) is None
            self._evaluators[check] = evaluator_of(check[1]) if is_plain else None
        return self._evaluators[check]

    def drop_checks(self, entity: str) -> None:
        """Forget the answers of `has_row` that depend on rows of an entity: all have changed."""
        for check in self._asked.get(entity, ()):
            if check in self.checks:
                self._drop(self.checks, check)

    # --- References ----------------------------------------------------------------------------

    def note_reference(
        self, entity: str, field: str, row_id: str, before: object, after: object
    ) -> None:
        """Note that the field of a row refers to another row than before; None: to none."""
        if before == after:
            return
        for target, is_added in ((before, False), (after, True)):
            if not isinstance(target, str):
                continue
            key = (entity, field, target)
            known = self.referring.get(key)
            if known is None:
                continue
            if known.has_more:
                self._drop(self.referring, key)
                continue
            others = tuple(found for found in known.ids if found != row_id)
            ids = (*others, row_id) if is_added else others
            self.put(self.referring, key, ReferenceRows(ids, has_more=False))

    # --- Steps ---------------------------------------------------------------------------------

    def mark(self) -> None:
        """Begin a step. Steps do not nest."""
        self._undo = []

    def keep(self) -> None:
        """Keep the changes since `mark`."""
        self._undo = None

    def undo(self) -> None:
        """Undo the changes since `mark`."""
        undone, self._undo = self._undo or [], None
        for known, key, value in reversed(undone):
            if value is _ABSENT:
                known.pop(key, None)
            else:
                known[key] = value


def _asked_entities(node: Value) -> Iterator[str]:
    """Yield the entities that the nested conditions of a check ask."""
    if type(node) is Exists:
        yield node.entity
    for part in parts(node):
        yield from _asked_entities(part)
