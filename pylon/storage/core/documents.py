"""Document writes: makes, merges, updates and deletes the documents of rows (spec/realtime.md §6).

The first subscription or push makes a row's document. From then on each change of the row changes
the document in the same transaction, and each push to the document changes the row. A document read
from the store is first assigned the values of its row. So a change of the row by a migration, by
another server or by hand does no harm: the row is authoritative.

If a change affects a field that decides who may read the row (`CachedDocument.view`), the document
is stored as a whole, and replaces all earlier updates. A view records its readers from then on.
Subscribers reload the document, without the content that was hidden from them
(`pylon.crdt.redaction`).

Where several writers share a database, a cached document is used only if its newest update is the
newest one of the store. One without updates is read again: it may be another one by now.

Invariants: a refused request changes neither the store nor the cached document, which is dropped.
The stored bytes of a push are those that our own document exports, never the client's. A row's
event gets its seq before its document's update gets its number. Called by `engine` and `rows`, in
their transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from pylon import limits, metrics
from pylon.clock import Clock
from pylon.crdt.document import Document, refuse_reserved, too_large
from pylon.errors import CrdtApplyFailed, CrdtDecodeFailed, NotFound, PylonError
from pylon.log import get_logger
from pylon.storage.core.document_cache import CachedDocument, DocumentCache, RowSet, facts_of
from pylon.storage.core.entity import EntityWrites
from pylon.storage.core.journal import Journal
from pylon.storage.core.related import TransactionRelated
from pylon.storage.core.transaction import DocumentKey, RowTransaction
from pylon.storage.ops import OpenDocument, PushDocument, WriteReply
from pylon.storage.records import DocumentView

UNKNOWN: Final = "null"  # facts of a view whose readers are unknown
_REREAD: Final = -1  # `prev` of an update: subscribers must reload the whole document

_log: Final = get_logger("documents")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a document that is not stored yet: an update, or the whole document."""

    key: DocumentKey
    cached: CachedDocument
    data: bytes
    whole: bool


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
        journal: Journal,
    ) -> int:
        """Write the changed row, note its event and return its seq. Raises: PylonError."""


class DocumentWrites:
    """All documents of a database, for its writer."""

    __slots__ = ("_cache", "_clock", "_is_shared", "_may_have", "_related", "_rows", "_stored",
                 "_transaction")

    def __init__(
        self, transaction: RowTransaction, entities: Mapping[str, EntityWrites], rows: Rows,
        clock: Clock,
    ) -> None:
        """Read which rows have documents, and mark the entities that have any. With several writers
        any row may get one at any time."""
        self._transaction = transaction
        self._stored = transaction.documents
        self._rows = rows
        self._related = TransactionRelated(transaction)
        self._clock = clock
        self._cache = DocumentCache()
        self._may_have = RowSet()
        self._is_shared = transaction.shares_documents
        if self._is_shared:
            for entity in entities.values():
                entity.has_documents = entity.entity.crdt
        else:
            self._note_documents(entities)
        self._check_rules(entities.values())

    def _note_documents(self, entities: Mapping[str, EntityWrites]) -> None:
        for key in self._stored.document_keys():
            entity = entities.get(key[0])
            if entity is not None and entity.entity.crdt:
                entity.has_documents = True
                self._may_have.add(key)

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
        cached = self._open(entity, key, orjson.loads(found[0]))
        if cached.changed:
            self._cache.touch(key)
            try:
                change = _pending_change(key, cached)
            except PylonError:
                self._cache.drop(key)
                raise
            self.append(entity, change, journal.seq, journal, alone=True)
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
        cached = self._open(entity, key, before)
        self._cache.touch(key)
        seq = 0
        try:
            self._check_history(key, cached, before_json, journal)
            cached.document.merge(op.update)
            patch = entity.codec.patch(cached.document.find_differences(before), op.row_id)
            # A document keeps a datetime as a client wrote it; the row has the stored notation.
            patch = {name: value for name, value in patch.items() if value != before.get(name)}
            if patch:
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
                    entity, op.row_id, patch, before_json, before, version, row_json, row, journal
                )
        except PylonError:
            self._cache.drop(key)
            raise
        if change is not None:
            self.append(entity, change, seq or journal.seq, journal, alone=not seq)
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
        cached = self._find(entity, key, before)
        if cached is None:
            return None
        self._cache.touch(key)
        try:
            cached.note_view(entity.rules.read_fields, before, patch)
            cached.document.assign(patch, before)
            return _pending_change(key, cached, bounded=False) if cached.changed else None
        except CrdtDecodeFailed as error:
            # Loro has failed on a document that it had read. The row's write is not at fault.
            cached = self._replace_unreadable(entity, key, {**before, **patch}, error)
            return _pending_change(key, cached, bounded=False)

    def append(
        self, entity: EntityWrites, change: Change, seq: int, journal: Journal, *,
        alone: bool = False,
    ) -> None:
        """Store a change.

        Args:
            seq: that of the row's event; the head if the row has none.
            alone: the change has no event, so a signal must announce it.
        """
        key, cached, data = change.key, change.cached, change.data
        if change.whole:
            self._stored.put_snapshot(key, data, journal.now_s)
            cached.snapshot_bytes, cached.pending, cached.pending_bytes = len(data), 0, 0
            if not self._is_shared:
                self._may_have.add(key)
                entity.has_documents = True
            if cached.unreadable or cached.view is not None:
                # Keep no earlier update: it may contain content that was hidden at its time.
                cached.number = self._stored.append_update(key, _REREAD, seq, b"")
                self._stored.drop_updates_before(key, cached.number)
                cached.unreadable = False
        else:
            cached.number = self._stored.append_update(key, cached.number, seq, data)
            cached.pending += 1
            cached.pending_bytes += len(data)
        if cached.view is not None:
            before = cached.begun if cached.version is None else cached.version.encode()
            facts_before, facts = cached.view
            view = DocumentView(before, cached.document.encoded_version(), facts)
            self._put_view(key, view, facts_before)
            cached.view = None
        cached.version = cached.document.version
        if cached.pending >= limits.DOCUMENT_UPDATES or (
            cached.pending_bytes > max(limits.DOCUMENT_FOLD_BYTES, cached.snapshot_bytes)
        ):
            self._fold(key, cached, journal.now_s)
        self._cache.put(key, cached)
        journal.documents = journal.documents or alone

    def refuse(self, change: Change) -> None:
        """Drop a document that `follow` has changed: the row's change was refused."""
        self._cache.drop(change.key)

    def drop(self, entity: str, row_id: str) -> None:
        """Drop the document of a deleted row."""
        key = (entity, row_id)
        if (
            self._stored.document_number(key) is not None if self._is_shared
            else key in self._may_have
        ):
            self._cache.drop(key)
            self._stored.drop_document(key)

    def drop_all(self, entity: str) -> None:
        """Drop the documents of an entity whose rows were all deleted."""
        self._cache.drop_entity(entity)
        self._stored.drop_documents(entity)

    def commit(self) -> None:
        """Note that the transaction is committed."""
        self._cache.commit()

    def undo(self) -> None:
        """Drop the cached documents that a rolled back transaction, or a part of it, touched."""
        self._cache.undo()

    def _check_rules(self, entities: Iterable[EntityWrites]) -> None:
        """Mark the readers of documents as unknown if their entity has another read policy now."""
        transaction = self._transaction
        key_of = "document_rules:{}".format
        changed = [e for e in entities if transaction.get_fact(key_of(e.name)) != e.rules.read_text]
        if not changed:
            return
        transaction.begin_step()
        try:
            for entity in changed:
                if transaction.get_fact(key_of(entity.name)) is not None:
                    self._stored.forget_views(entity.name, UNKNOWN)
                transaction.put_fact(key_of(entity.name), entity.rules.read_text)
            transaction.commit()
        finally:
            transaction.roll_back()

    def _put_view(self, key: DocumentKey, view: DocumentView, facts_before: str) -> None:
        """Store a view: the readers of a document's row from now on.

        With the first view it also stores the readers before it.
        """
        store = self._stored
        last, count = store.last_view(key)
        if last is None:
            store.put_view(key, 0, DocumentView(b"", b"", facts_before))
            last, count = 0, 1
        if count >= limits.DOCUMENT_VIEWS:  # the readers of the older half are no longer known
            oldest = last - limits.DOCUMENT_VIEWS // 2
            store.drop_views_before(key, oldest)
            store.put_view(key, oldest, DocumentView(b"", b"", UNKNOWN))
        store.put_view(key, last + 1, view)

    # --- Documents -------------------------------------------------------------------------

    def _open(
        self, entity: EntityWrites, key: DocumentKey, row: Mapping[str, Any]
    ) -> CachedDocument:
        """Return the row's document, with the row's values; a new one if it has none."""
        cached = self._find(entity, key, row)
        if cached is None:
            refuse_reserved(entity.entity)
            document = _make_document(entity, row)
            cached = CachedDocument(document, None, 0, 0, begun=document.encoded_version())
            self._cache.put(key, cached)
        return cached

    def _find(
        self, entity: EntityWrites, key: DocumentKey, row: Mapping[str, Any]
    ) -> CachedDocument | None:
        """Return the row's document, with the row's values; None if it has none."""
        cached = self._cache.find(key)
        if self._is_shared:
            number = self._stored.document_number(key)
            if cached is not None and (
                cached.number != number or not (number or self._cache.is_touched(key))
            ):
                self._cache.drop(key)  # another writer has changed it, or has made another one
                cached = None
            if number is None:
                return None
        if cached is not None:
            return cached
        if not self._is_shared and key not in self._may_have:
            return None
        stored = self._stored.find_document(key)
        if stored is None:
            return None
        try:
            document = Document(entity.entity, stored.parts)
            version = document.version
            different = _names_differing(document, entity, row)
            document.assign({name: row.get(name) for name in different})
        except CrdtDecodeFailed as error:
            return self._replace_unreadable(entity, key, row, error)
        cached = CachedDocument(
            document, version, stored.number, len(stored.snapshot), len(stored.updates),
            sum(len(data) for data in stored.updates),
        )
        if not entity.rules.read_fields.isdisjoint(different):
            cached.view = (UNKNOWN, facts_of(entity.rules.read_fields, row))
        elif stored.views and stored.views[-1].facts == UNKNOWN:
            now = document.encoded_version()
            self._cache.touch(key)
            view = DocumentView(now, now, facts_of(entity.rules.read_fields, row))
            self._put_view(key, view, UNKNOWN)
        self._cache.put(key, cached)
        return cached

    def _replace_unreadable(
        self, entity: EntityWrites, key: DocumentKey, row: Mapping[str, Any], error: PylonError
    ) -> CachedDocument:
        """Return a new document made from the row, in place of an unreadable one."""
        _log.error("document.unreadable", entity=key[0], row_id=key[1], error=error.message)
        cached = CachedDocument(_make_document(entity, row), None, 0, 0, unreadable=True)
        self._cache.put(key, cached)
        return cached

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
            self._fold(key, cached, journal.now_s)  # single updates take more bytes
        if cached.stored_bytes > most_bytes:
            raise too_large()

    def _fold(self, key: DocumentKey, cached: CachedDocument, now_s: int) -> None:
        """Make the snapshot current, and drop all updates but the newest."""
        try:
            snapshot = cached.document.snapshot()
        except CrdtDecodeFailed as error:
            # The updates stay. The next use reads them, and makes a new document if that fails.
            _log.error("document.not_folded", entity=key[0], row_id=key[1], error=error.message)
            return
        self._stored.put_snapshot(key, snapshot, now_s)
        self._stored.drop_updates_before(key, cached.number)
        cached.snapshot_bytes, cached.pending, cached.pending_bytes = len(snapshot), 0, 0


def _make_document(entity: EntityWrites, row: Mapping[str, Any]) -> Document:
    document = Document(entity.entity)
    document.assign({f.name: row.get(f.name) for f in entity.entity.fields})
    return document


def _names_differing(document: Document, entity: EntityWrites, row: Mapping[str, Any]) -> list[str]:
    try:
        return list(document.find_differences(row))
    except CrdtApplyFailed:  # another server has stored a value that no row can hold
        return [field.name for field in entity.entity.fields]


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
