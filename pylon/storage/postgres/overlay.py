"""Overlay: what a transaction knows of the database, with its own changes, before it writes them.

A value that a map has is true for this transaction; a missing one is unknown, and must be read.
`read_versions` and `parents` say what was read without the lock, so that the flush can check that
it still holds.

Invariant: after `undo` the maps are as they were at `mark`. Bound: the rows of one batch. Made and
emptied by `batch`; `table` and the other parts of the transaction read and change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeVar

from pylon.query.predicate import Exists, Predicate, Value
from pylon.query.predicate_parts import parts
from pylon.storage.core.transaction import DocumentKey, DoneOp, OpName

K = TypeVar("K")
V = TypeVar("V")
RowKey = tuple[str, str]  # entity, row id
# JSON (None: it is large, and was not read), version.
KnownRow = tuple[bytes | None, int | None]
Check = tuple[str, Predicate]  # entity, condition

_ABSENT: Final = object()


class Overlay:
    """See the module."""

    __slots__ = ("_checks_by_entity", "_undo", "checks", "documents", "exists", "ops", "owners",
                 "parents", "read_versions", "rows", "sessions", "touched")

    def __init__(self) -> None:
        self.rows: dict[RowKey, KnownRow | None] = {}  # None: there is no such row
        self.exists: dict[RowKey, bool] = {}  # of rows that were not read themselves
        self.owners: dict[tuple[Any, ...], str | None] = {}  # of unique values: the row's id
        self.ops: dict[OpName, DoneOp | None] = {}
        self.documents: dict[DocumentKey, int | None] = {}  # see `DocumentRows.document_number`
        self.sessions: dict[str, bool] = {}
        self.checks: dict[Check, bool] = {}  # answers of `has_row`
        self._checks_by_entity: dict[str, set[Check]] = {}  # which ask its rows
        self.read_versions: dict[RowKey, int | None] = {}  # read without the lock
        self.touched: dict[RowKey, None] = {}  # rows of these that were changed
        self.parents: dict[RowKey, None] = {}  # rows on whose existence a change relies
        self._undo: list[tuple[dict[Any, Any], Any, Any]] | None = None

    def clear(self) -> None:
        """Forget everything: a transaction ended."""
        for known in (self.rows, self.exists, self.owners, self.ops, self.documents, self.sessions,
                      self.read_versions, self.touched, self.parents):
            if known:
                known.clear()
        self._forget_checks()
        self._undo = None

    def put(self, known: dict[K, V], key: K, value: V) -> None:
        """Note a change of the transaction in one of the maps."""
        if self._undo is not None:
            self._undo.append((known, key, known.get(key, _ABSENT)))
        known[key] = value

    def put_check(self, check: Check, answer: bool) -> None:
        """Note an answer of `has_row`."""
        self.checks[check] = answer
        for entity in {check[0], *_asked_entities(check[1])}:
            self._checks_by_entity.setdefault(entity, set()).add(check)

    def drop_checks(self, entity: str) -> None:
        """Forget the answers of `has_row` that a change of an entity's row may turn."""
        for check in self._checks_by_entity.pop(entity, ()):
            self.checks.pop(check, None)

    def _forget_checks(self) -> None:
        if self.checks:
            self.checks.clear()
            self._checks_by_entity.clear()

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
        self._forget_checks()


def _asked_entities(node: Value) -> Iterator[str]:
    if type(node) is Exists:
        yield node.entity
    for part in parts(node):
        yield from _asked_entities(part)
