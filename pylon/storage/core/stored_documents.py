"""Stored documents: finds the documents of rows, and stores their changes (spec/realtime.md §6).

A document read from the store is first assigned the values of its row. So a change of the row by a
migration, by another server or by hand does no harm: the row is authoritative. A document that
cannot be read is made anew from its row.

If a change affects a field that decides who may read the row (`CachedDocument.view`), the document
is stored as a whole, and replaces all earlier updates. A view records its readers from then on.
Subscribers reload the document, without the content that was hidden from them
(`pylon.crdt.redaction`).

Where several writers share a database, a cached document is used only if its newest update is the
newest one of the store. One without updates is read again: it may be another one by now.

Invariant: a cached document equals the stored one and the changes of the open transaction; `undo`
drops what the transaction touched. Called by `documents`, in the transaction of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from pylon import limits
from pylon.crdt.document import Document, refuse_reserved
from pylon.errors import CrdtApplyFailed, CrdtDecodeFailed, PylonError
from pylon.log import get_logger
from pylon.storage.core.document_cache import CachedDocument, DocumentCache, RowSet, facts_of
from pylon.storage.core.entity import EntityWrites
from pylon.storage.core.journal import Journal
from pylon.storage.core.transaction import DocumentKey, RowTransaction
from pylon.storage.records import DocumentView

UNKNOWN: Final = "null"  # facts of a view whose readers are unknown
_REREAD: Final = -1  # `prev` of an update: subscribers must reload the whole document


_log: Final = get_logger("documents")


class Change(msgspec.Struct, frozen=True):
    """A change of a document that is not stored yet: an update, or the whole document."""

    key: DocumentKey
    cached: CachedDocument
    data: bytes
    whole: bool


class StoredDocuments:
    """All documents of a database, for its writer."""

    __slots__ = ("_is_shared", "_may_have", "_rows", "_transaction", "cache")

    def __init__(
        self, transaction: RowTransaction, entities: Mapping[str, EntityWrites]
    ) -> None:
        """Read which rows have documents, and mark the entities that have any. With several writers
        any row may get one at any time."""
        self._transaction = transaction
        self._rows = transaction.documents
        self.cache = DocumentCache()
        self._may_have = RowSet()
        self._is_shared = transaction.shares_documents
        if self._is_shared:
            for entity in entities.values():
                entity.has_documents = entity.entity.crdt
        else:
            self._note_documents(entities)
        self._check_rules(entities.values())

    def open(
        self, entity: EntityWrites, key: DocumentKey, row: Mapping[str, Any]
    ) -> CachedDocument:
        """Return the row's document, with the row's values; a new one if it has none."""
        cached = self.find(entity, key, row)
        if cached is None:
            refuse_reserved(entity.entity)
            document = _make_document(entity, row)
            cached = CachedDocument(document, None, 0, 0, begun=document.encoded_version())
            self.cache.put(key, cached)
        return cached

    def find(
        self, entity: EntityWrites, key: DocumentKey, row: Mapping[str, Any]
    ) -> CachedDocument | None:
        """Return the row's document, with the row's values; None if it has none."""
        cached = self.cache.find(key)
        if self._is_shared:
            number = self._rows.document_number(key)
            if cached is not None and (
                cached.number != number or not (number or self.cache.is_touched(key))
            ):
                self.cache.drop(key)  # another writer has changed it, or has made another one
                cached = None
            if number is None:
                return None
        if cached is not None:
            return cached
        if not self._is_shared and key not in self._may_have:
            return None
        stored = self._rows.find_document(key)
        if stored is None:
            return None
        try:
            document = Document(entity.entity, stored.parts)
            version = document.version
            different = _names_differing(document, entity, row)
            document.assign({name: row.get(name) for name in different})
        except CrdtDecodeFailed as error:
            return self.replace_unreadable(entity, key, row, error)
        cached = CachedDocument(
            document, version, stored.number, len(stored.snapshot), len(stored.updates),
            sum(len(data) for data in stored.updates),
        )
        if not entity.rules.read_fields.isdisjoint(different):
            cached.view = (UNKNOWN, facts_of(entity.rules.read_fields, row))
        elif stored.views and stored.views[-1].facts == UNKNOWN:
            now = document.encoded_version()
            self.cache.touch(key)
            view = DocumentView(now, now, facts_of(entity.rules.read_fields, row))
            self._put_view(key, view, UNKNOWN)
        self.cache.put(key, cached)
        return cached

    def replace_unreadable(
        self, entity: EntityWrites, key: DocumentKey, row: Mapping[str, Any], error: PylonError
    ) -> CachedDocument:
        """Return a new document made from the row, in place of an unreadable one."""
        _log.error("document.unreadable", entity=key[0], row_id=key[1], error=error.message)
        cached = CachedDocument(_make_document(entity, row), None, 0, 0, unreadable=True)
        self.cache.put(key, cached)
        return cached

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
            self._rows.put_snapshot(key, data, journal.now_s)
            cached.snapshot_bytes, cached.pending, cached.pending_bytes = len(data), 0, 0
            if not self._is_shared:
                self._may_have.add(key)
                entity.has_documents = True
            if cached.unreadable or cached.view is not None:
                # Keep no earlier update: it may contain content that was hidden at its time.
                cached.number = self._rows.append_update(key, _REREAD, seq, b"")
                self._rows.drop_updates_before(key, cached.number)
                cached.unreadable = False
        else:
            cached.number = self._rows.append_update(key, cached.number, seq, data)
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
            self.fold(key, cached, journal.now_s)
        self.cache.put(key, cached)
        journal.documents = journal.documents or alone

    def fold(self, key: DocumentKey, cached: CachedDocument, now_s: int) -> None:
        """Make the snapshot current, and drop all updates but the newest."""
        try:
            snapshot = cached.document.snapshot()
        except CrdtDecodeFailed as error:
            # The updates stay. The next use reads them, and makes a new document if that fails.
            _log.error("document.not_folded", entity=key[0], row_id=key[1], error=error.message)
            return
        self._rows.put_snapshot(key, snapshot, now_s)
        self._rows.drop_updates_before(key, cached.number)
        cached.snapshot_bytes, cached.pending, cached.pending_bytes = len(snapshot), 0, 0

    def drop(self, entity: str, row_id: str) -> None:
        """Drop the document of a deleted row."""
        key = (entity, row_id)
        if (
            self._rows.document_number(key) is not None if self._is_shared
            else key in self._may_have
        ):
            self.cache.drop(key)
            self._rows.drop_document(key)

    def drop_all(self, entity: str) -> None:
        """Drop the documents of an entity whose rows were all deleted."""
        self.cache.drop_entity(entity)
        self._rows.drop_documents(entity)

    def _note_documents(self, entities: Mapping[str, EntityWrites]) -> None:
        for key in self._rows.document_keys():
            entity = entities.get(key[0])
            if entity is not None and entity.entity.crdt:
                entity.has_documents = True
                self._may_have.add(key)

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
                    self._rows.forget_views(entity.name, UNKNOWN)
                transaction.put_fact(key_of(entity.name), entity.rules.read_text)
            transaction.commit()
        finally:
            transaction.roll_back()

    def _put_view(self, key: DocumentKey, view: DocumentView, facts_before: str) -> None:
        """Store a view: the readers of a document's row from now on.

        With the first view it also stores the readers before it.
        """
        rows = self._rows
        last, count = rows.last_view(key)
        if last is None:
            rows.put_view(key, 0, DocumentView(b"", b"", facts_before))
            last, count = 0, 1
        if count >= limits.DOCUMENT_VIEWS:  # the readers of the older half are no longer known
            oldest = last - limits.DOCUMENT_VIEWS // 2
            rows.drop_views_before(key, oldest)
            rows.put_view(key, oldest, DocumentView(b"", b"", UNKNOWN))
        rows.put_view(key, last + 1, view)


def _make_document(entity: EntityWrites, row: Mapping[str, Any]) -> Document:
    document = Document(entity.entity)
    document.assign({f.name: row.get(f.name) for f in entity.entity.fields})
    return document


def _names_differing(document: Document, entity: EntityWrites, row: Mapping[str, Any]) -> list[str]:
    try:
        return list(document.find_differences(row))
    except CrdtApplyFailed:  # another server has stored a value that no row can hold
        return [field.name for field in entity.entity.fields]
