"""Document writes: makes, merges, updates and deletes the documents of rows (spec/realtime.md §6).

The first subscription or push makes a row's document. From then on each change of the row changes
the document in the same transaction, and each push to the document changes the row.
`stored_documents` finds documents and stores their changes.

Invariants: a refused request changes neither the store nor the cached document, which is dropped.
The stored bytes of a push are those that our own document exports, never the client's. A row's
event gets its seq before its document's update gets its number. Called by `engine` and `rows`, in
their transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from pylon import limits, metrics
from pylon.auth_context import AuthContext
from pylon.clock import Clock
from pylon.crdt.document import too_large
from pylon.errors import CrdtDecodeFailed, NotFound, PylonError
from pylon.storage.core.document_cache import CachedDocument
from pylon.storage.core.entity import EntityWrites
from pylon.storage.core.journal import Journal
from pylon.storage.core.related import TransactionRelated
from pylon.storage.core.stored_documents import Change, StoredDocuments
from pylon.storage.core.transaction import DocumentKey, RowTransaction
from pylon.storage.ops import OpenDocument, PushDocument, WriteReply


class Rows(Protocol):
    """The methods of `rows` that this module needs: find the row of a request, and change it."""

    def entity(self, name: str) -> EntityWrites:
        """Raises: EntityNotFound."""

    def find_readable(
        self, entity: EntityWrites, op: PushDocument
    ) -> tuple[bytes, dict[str, Any], int | None]:
        """Return the row's JSON, the row and its version. Raises: NotFound, PolicyDenied."""

    def put(
        self, entity: EntityWrites, row_id: str, patch: Mapping[str, Any], before_json: bytes,
        before: Mapping[str, Any], version: int | None, row_json: bytes, row: Mapping[str, Any],
        journal: Journal, auth: AuthContext,
    ) -> int:
        """Write the changed row, note its event and return its seq. Raises: PylonError."""


class DocumentWrites:
    """The document writes of one writer."""

    __slots__ = ("_cache", "_clock", "_documents", "_related", "_rows")

    def __init__(
        self, transaction: RowTransaction, entities: Mapping[str, EntityWrites], rows: Rows,
        clock: Clock,
    ) -> None:
        self._rows = rows
        self._related = TransactionRelated(transaction)
        self._clock = clock
        self._documents = StoredDocuments(transaction, entities)
        self._cache = self._documents.cache

    # --- Requests --------------------------------------------------------------------------

    def open(self, request_id: int, op: OpenDocument, journal: Journal) -> WriteReply:
        """Make the row's document if it has none, and store it if it differs from the row.

        Raises:
            NotFound: there is no such row, or its entity has no documents.
            CrdtApplyFailed: the entity has fields of a reserved kind.
            LimitExceeded: the row is too large for a document.
        """
        entity = self._rows.entity(op.entity)
        found = entity.table.find(op.row_id)
        if found is None or not entity.entity.crdt:
            raise NotFound("Row not found")
        key = (op.entity, op.row_id)
        cached = self._documents.open(entity, key, orjson.loads(found[0]))
        if cached.changed:
            self._cache.touch(key)
            try:
                change = _pending_change(key, cached)
            except PylonError:
                self._cache.drop(key)
                raise
            self._documents.append(entity, change, journal.seq, journal, alone=True)
        return WriteReply(request_id, 0, op.row_id, False, 1)

    def push(self, request_id: int, op: PushDocument, journal: Journal) -> WriteReply:
        """Merge a client's update into the document and change the row accordingly.

        Returns: a reply whose seq is 0 if the row did not change.

        Raises:
            NotFound: there is no such row, or the caller may not read it.
            PolicyDenied: the caller may not make this change of the row.
            CrdtDecodeFailed, CrdtHistoryMissing, CrdtApplyFailed, LimitExceeded
            InvalidValue, NullNotAllowed, UniqueViolation: the resulting row is invalid.
        """
        began_s = self._clock.monotonic_s()
        entity = self._rows.entity(op.entity)
        before_json, before, version = self._rows.find_readable(entity, op)
        if not entity.rules.may_begin_update(op.auth, before, self._related):
            raise entity.rules.denied("update", op.auth, before, before, self._related)
        key = (op.entity, op.row_id)
        cached = self._documents.open(entity, key, before)
        self._cache.touch(key)
        seq = 0
        try:
            self._check_history(key, cached, before_json, journal)
            cached.document.merge(op.update)
            patch = entity.codec.patch(cached.document.find_differences(before), op.row_id)
            # A document keeps a datetime as a client wrote it; the row has the stored notation.
            patch = {name: value for name, value in patch.items() if value != before.get(name)}
            if patch:
                entity.defaults.check_read_only(patch, op.auth)
                entity.defaults.check_fixed(patch, op.auth)
            if patch and entity.defaults.has_stamps:
                stamped = entity.defaults.stamp(op.row_id, patch, op.auth)
                cached.document.assign({n: v for n, v in stamped.items() if n not in patch})
                patch = stamped
            cached.note_view(entity.rules.read_fields, before, patch)
            row, row_json = entity.codec.merge(before, patch) if patch else (before, before_json)
            if not entity.rules.may_update(op.auth, before, row, self._related):
                raise entity.rules.denied("update", op.auth, row, before, self._related)
            change = _pending_change(key, cached) if cached.changed else None
            if patch:
                seq = self._rows.put(
                    entity, op.row_id, patch, before_json, before, version, row_json, row, journal,
                    op.auth,
                )
        except PylonError:
            self._cache.drop(key)
            raise
        if change is not None:
            self._documents.append(entity, change, seq or journal.seq, journal, alone=not seq)
        metrics.DOCUMENT_MERGE.observe(self._clock.monotonic_s() - began_s)
        return WriteReply(request_id, seq, op.row_id, False, 1)

    # --- Changes of rows -------------------------------------------------------------------

    def follow(
        self, entity: EntityWrites, row_id: str, before: Mapping[str, Any], patch: Mapping[str, Any]
    ) -> Change | None:
        """Apply a pending change of a row to its document, if it has one.

        Returns: the change to `append` after the row was written, or to `refuse`.
        """
        key = (entity.name, row_id)
        cached = self._documents.find(entity, key, before)
        if cached is None:
            return None
        self._cache.touch(key)
        try:
            cached.note_view(entity.rules.read_fields, before, patch)
            cached.document.assign(patch, before)
            return _pending_change(key, cached, bounded=False) if cached.changed else None
        except CrdtDecodeFailed as error:
            # Loro has failed on a document that it had read. The row's write is not at fault.
            cached = self._documents.replace_unreadable(entity, key, {**before, **patch}, error)
            return _pending_change(key, cached, bounded=False)

    def append(self, entity: EntityWrites, change: Change, seq: int, journal: Journal) -> None:
        """Store a change of `follow`, after the row was written. `seq`: that of the row's event."""
        self._documents.append(entity, change, seq, journal)

    def refuse(self, change: Change) -> None:
        """Drop a document that `follow` has changed: the row's change was refused."""
        self._cache.drop(change.key)

    def drop(self, entity: str, row_id: str) -> None:
        """Drop the document of a deleted row."""
        self._documents.drop(entity, row_id)

    def drop_all(self, entity: str) -> None:
        """Drop the documents of an entity whose rows were all deleted."""
        self._documents.drop_all(entity)

    def commit(self) -> None:
        """Note that the transaction is committed."""
        self._cache.commit()

    def undo(self) -> None:
        """Drop the cached documents that a rolled back transaction, or a part of it, touched."""
        self._cache.undo()

    def _check_history(
        self, key: DocumentKey, cached: CachedDocument, row_json: bytes, journal: Journal
    ) -> None:
        """Refuse a merge into a large history: the merge may go through the whole history.

        Raises:
            LimitExceeded
        """
        # A snapshot contains the content twice: the present state, and the history.
        most_bytes = limits.DOCUMENT_HISTORY_BYTES + 2 * len(row_json)
        if cached.stored_bytes > most_bytes and cached.pending:
            self._documents.fold(key, cached, journal.now_s)  # single updates take more bytes
        if cached.stored_bytes > most_bytes:
            raise too_large()


def _pending_change(key: DocumentKey, cached: CachedDocument, *, bounded: bool = True) -> Change:
    """Return the change that has to be stored.

    Args:
        bounded: whether to refuse a document that is too large.

    Raises:
        CrdtDecodeFailed: Loro cannot export the change.
        LimitExceeded: the document is too large, and `bounded`.
    """
    if cached.version is None or cached.view is not None:
        whole, data = True, cached.document.snapshot()
        size_bytes = len(data)
    else:
        whole, data = False, cached.document.changes_since(cached.version)
        size_bytes = cached.stored_bytes + len(data)
    if (
        bounded and size_bytes > limits.DOCUMENT_BYTES
        and (whole or len(cached.document.snapshot()) > limits.DOCUMENT_BYTES)
    ):
        raise too_large()
    return Change(key, cached, data, whole)
