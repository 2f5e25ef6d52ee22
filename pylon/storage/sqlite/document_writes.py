"""The writer's part in documents: make, merge, follow, delete (spec/realtime.md §6).

A row gets a document with the first subscription or push; from then on each change of the row
changes the document in the same transaction, and each push to the document the row. A document
that is read from the store is first brought in line with its row, so it does not matter whether
the row was changed meanwhile by a schema change, by another server or by hand: the row is right.

A change of a field that decides who may read the row (`CachedDocument.view`) is stored as a whole
document, in place of all updates before it, with a note of its readers since: followers read the
document anew, without the content that was hidden from them (`pylon.crdt.redaction`).

Invariants: a refused request leaves nothing, neither stored nor in the decoded document (which is
thrown away); what is stored of a push is what our own document exports, never the client's
bytes. A row's event has its place in the log before its document's update has its number.
Called by `engine` and `row_writes`, in their transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import apsw
import orjson

from pylon import limits, metrics
from pylon.clock import Clock
from pylon.crdt.document import Document, refuse_reserved, too_large
from pylon.errors import CrdtApplyFailed, CrdtDecodeFailed, NotFound, PylonError
from pylon.log import get_logger
from pylon.storage.interface import DocumentView
from pylon.storage.ops import OpenDocument, PushDocument, WriteReply
from pylon.storage.sqlite import documents, meta
from pylon.storage.sqlite.document_cache import CachedDocument, DocumentCache, Key, RowSet, facts_of
from pylon.storage.sqlite.journal import Journal
from pylon.storage.sqlite.table import Table

_PUT_SNAPSHOT: Final = (
    "INSERT OR REPLACE INTO _pylon_crdt_snapshots (entity, row_id, snapshot, updated_at) "
    "VALUES (?, ?, ?, ?)"
)
_PUT_UPDATE: Final = (
    "INSERT INTO _pylon_crdt_updates (entity, row_id, prev, seq, data) VALUES (?, ?, ?, ?, ?)"
)
_FOLD: Final = "DELETE FROM _pylon_crdt_updates WHERE entity = ? AND row_id = ? AND number < ?"
_REREAD: Final = -1  # `prev` of an update that follows on nothing that others have

_log: Final = get_logger("documents")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a document that is not stored yet: an update, or all of it."""

    key: Key
    kept: CachedDocument
    data: bytes
    whole: bool


class Rows(Protocol):
    """What `row_writes` lends: the row of a request, and the way to change it."""

    def table(self, entity: str) -> Table:
        """Raises: EntityNotFound."""

    def readable(
        self, table: Table, op: PushDocument
    ) -> tuple[bytes, dict[str, Any], int | None]:
        """The row's JSON, the row and its version. Raises: NotFound, PolicyDenied."""

    def put(
        self, table: Table, row_id: str, patch: Mapping[str, Any], before_json: bytes,
        before: Mapping[str, Any], version: int | None, row_json: bytes, row: Mapping[str, Any],
        journal: Journal,
    ) -> int:
        """Write the changed row and note its event; its seq. Raises: what refuses the row."""


class DocumentWrites:
    """All documents of a database, for the one who writes it."""

    __slots__ = ("_cache", "_clock", "_conn", "_may_have", "_rows")

    def __init__(
        self, conn: apsw.Connection, tables: Mapping[str, Table], rows: Rows, clock: Clock
    ) -> None:
        """Looks up which rows have documents, and marks the tables that have any."""
        self._conn = conn
        self._rows = rows
        self._clock = clock
        self._cache = DocumentCache()
        self._may_have = RowSet()
        for key in conn.execute("SELECT entity, row_id FROM _pylon_crdt_snapshots"):
            table = tables.get(key[0])
            if table is not None and table.entity.crdt:
                table.has_documents = True
                self._may_have.add(key)
        self._check_rules(tables.values())

    # --- Requests --------------------------------------------------------------------------

    def open(self, number: int, op: OpenDocument, journal: Journal) -> WriteReply:
        """Make the row's document if it has none, and see that it is stored as the row is.

        Raises:
            NotFound: there is no such row, or its entity has no documents.
            CrdtApplyFailed: the entity has fields of a reserved kind.
            LimitExceeded: the row is too large for a document.
        """
        table = self._rows.table(op.entity)
        found = self._conn.execute(table.select, (op.row_id,)).get
        if found is None or not table.entity.crdt:
            raise NotFound("Row not found")
        key = (op.entity, op.row_id)
        kept = self._open(table, key, orjson.loads(found[0]))
        if kept.changed:
            self._cache.touch(key)
            try:
                change = _change(key, kept)
            except PylonError:
                self._cache.drop(key)
                raise
            self.append(table, change, journal.seq, journal, alone=True)
        return WriteReply(number, 0, op.row_id, False, 1)

    def push(self, number: int, op: PushDocument, journal: Journal) -> WriteReply:
        """Merge a client's update, and let the row follow. The reply's seq is 0 when the row
        did not change.

        Raises:
            NotFound: no such row, or none that the caller may read.
            PolicyDenied: the caller may not change the row like that.
            CrdtDecodeFailed, CrdtHistoryMissing, CrdtApplyFailed, LimitExceeded
            InvalidValue, NullNotAllowed, UniqueViolation: the row that would come of it.
        """
        began_s = self._clock.monotonic_s()
        table = self._rows.table(op.entity)
        before_json, before, version = self._rows.readable(table, op)
        if not table.rules.may_begin_update(op.auth, before):
            raise table.rules.denied("update", op.auth)
        key = (op.entity, op.row_id)
        kept = self._open(table, key, before)
        self._cache.touch(key)
        seq = 0
        try:
            self._check_history(key, kept, before_json, journal)
            kept.document.take(op.update)
            patch = table.codec.patch(kept.document.differing(before), op.row_id)
            kept.note_view(table.rules.read_fields, before, patch)
            row, row_json = table.codec.merge(before, patch) if patch else (before, before_json)
            if not table.rules.may_update(op.auth, before, row):
                raise table.rules.denied("update", op.auth)
            change = _change(key, kept) if kept.changed else None
            if patch:
                seq = self._rows.put(
                    table, op.row_id, patch, before_json, before, version, row_json, row, journal
                )
        except PylonError:
            self._cache.drop(key)
            raise
        if change is not None:
            self.append(table, change, seq or journal.seq, journal, alone=not seq)
        metrics.DOCUMENT_MERGE.observe(self._clock.monotonic_s() - began_s)
        return WriteReply(number, seq, op.row_id, False, 1)

    # --- Changes of rows -------------------------------------------------------------------

    def following(
        self, table: Table, row_id: str, before: Mapping[str, Any], patch: Mapping[str, Any]
    ) -> Change | None:
        """Change the row's document, if it has one, as its row is about to be changed.

        Returns: what to `append` when the row was written, or to `refuse`.
        """
        key = (table.entity.name, row_id)
        kept = self._find(table, key, before)
        if kept is None:
            return None
        self._cache.touch(key)
        try:
            kept.note_view(table.rules.read_fields, before, patch)
            kept.document.assign(patch, before)
            return _change(key, kept, bounded=False) if kept.changed else None
        except CrdtDecodeFailed as error:
            # Loro has failed on a document that it had read. The row's write is not at fault.
            kept = self._anew(table, key, {**before, **patch}, error)
            return _change(key, kept, bounded=False)

    def append(
        self, table: Table, change: Change, seq: int, journal: Journal, *, alone: bool = False
    ) -> None:
        """Store a change.

        Args:
            seq: of the row's event; the head where there is none.
            alone: no event tells of it, so a signal has to.
        """
        key, kept, data = change.key, change.kept, change.data
        if change.whole:
            self._conn.execute(_PUT_SNAPSHOT, (*key, data, _iso(journal.now_s)))
            kept.snapshot_bytes, kept.pending, kept.pending_bytes = len(data), 0, 0
            self._may_have.add(key)
            table.has_documents = True
            if kept.unreadable or kept.view is not None:
                # No earlier update is left: it may hold content that was hidden when it was made.
                self._conn.execute(_PUT_UPDATE, (*key, _REREAD, seq, b""))
                kept.number = self._conn.last_insert_rowid()
                self._conn.execute(_FOLD, (*key, kept.number))
                kept.unreadable = False
        else:
            self._conn.execute(_PUT_UPDATE, (*key, kept.number, seq, data))
            kept.number = self._conn.last_insert_rowid()
            kept.pending += 1
            kept.pending_bytes += len(data)
        if kept.view is not None:
            before = kept.begun if kept.version is None else kept.version.encode()
            facts_before, facts = kept.view
            view = DocumentView(before, kept.document.encoded_version(), facts)
            documents.put_view(self._conn, *key, view, facts_before)
            kept.view = None
        kept.version = kept.document.version
        if kept.pending >= limits.DOCUMENT_UPDATES or (
            kept.pending_bytes > max(limits.DOCUMENT_FOLD_BYTES, kept.snapshot_bytes)
        ):
            self._fold(key, kept, journal.now_s)
        self._cache.put(key, kept)
        journal.documents = journal.documents or alone

    def refuse(self, change: Change) -> None:
        """The row's change, which a document had followed already, was refused."""
        self._cache.drop(change.key)

    def deleted(self, entity: str, row_id: str) -> None:
        """The row is gone, and so is its document."""
        key = (entity, row_id)
        if key in self._may_have:
            self._cache.drop(key)
            documents.delete_document(self._conn, *key)

    def cleared(self, entity: str) -> None:
        """All rows are gone."""
        self._cache.drop_entity(entity)
        documents.drop_entity(self._conn, entity)

    def committed(self) -> None:
        """The transaction is committed."""
        self._cache.committed()

    def undone(self) -> None:
        """The transaction, or a part of it, was rolled back."""
        self._cache.undone()

    def _check_rules(self, tables: Iterable[Table]) -> None:
        """Mark the readers of documents as unknown if their entity has another read rule now."""
        key_of = "document_rules:{}".format
        changed = [
            table for table in tables
            if meta.get(self._conn, key_of(table.entity.name)) != table.rules.read_text
        ]
        with self._conn:
            for table in changed:
                if meta.get(self._conn, key_of(table.entity.name)) is not None:
                    documents.forget_views(self._conn, table.entity.name)
                meta.put(self._conn, key_of(table.entity.name), table.rules.read_text)

    # --- Documents -------------------------------------------------------------------------

    def _open(self, table: Table, key: Key, row: Mapping[str, Any]) -> CachedDocument:
        """The row's document, in line with the row; a new one if there is none."""
        kept = self._find(table, key, row)
        if kept is None:
            refuse_reserved(table.entity)
            document = _made(table, row)
            kept = CachedDocument(document, None, 0, 0, begun=document.encoded_version())
            self._cache.put(key, kept)
        return kept

    def _find(self, table: Table, key: Key, row: Mapping[str, Any]) -> CachedDocument | None:
        """The row's document, in line with the row; None if there is none."""
        kept = self._cache.find(key)
        if kept is not None:
            return kept
        if key not in self._may_have:
            return None
        stored = documents.stored_document(self._conn, *key)
        if stored is None:
            return None
        try:
            document = Document(table.entity, stored.parts)
            version = document.version
            different = _names_differing(document, table, row)
            document.assign({name: row.get(name) for name in different})
        except CrdtDecodeFailed as error:
            return self._anew(table, key, row, error)
        kept = CachedDocument(
            document, version, stored.number, len(stored.snapshot), len(stored.updates),
            sum(len(data) for data in stored.updates),
        )
        if not table.rules.read_fields.isdisjoint(different):
            kept.view = (documents.UNKNOWN, facts_of(table.rules.read_fields, row))
        elif stored.views and stored.views[-1].facts == documents.UNKNOWN:
            now = document.encoded_version()
            self._cache.touch(key)
            view = DocumentView(now, now, facts_of(table.rules.read_fields, row))
            documents.put_view(self._conn, *key, view, documents.UNKNOWN)
        self._cache.put(key, kept)
        return kept

    def _anew(
        self, table: Table, key: Key, row: Mapping[str, Any], error: PylonError
    ) -> CachedDocument:
        """A document of the row as it is, in place of one that cannot be used."""
        _log.error("document.unreadable", entity=key[0], row_id=key[1], error=error.message)
        kept = CachedDocument(_made(table, row), None, 0, 0, unreadable=True)
        self._cache.put(key, kept)
        return kept

    def _check_history(
        self, key: Key, kept: CachedDocument, row_json: bytes, journal: Journal
    ) -> None:
        """See that a merge cannot take long: it may have to go through the whole history.

        Raises:
            LimitExceeded
        """
        # A snapshot has the content twice: as it is, and in the history.
        most_bytes = limits.DOCUMENT_HISTORY_BYTES + 2 * len(row_json)
        if kept.stored_bytes > most_bytes and kept.pending:
            self._fold(key, kept, journal.now_s)  # updates one by one take more
        if kept.stored_bytes > most_bytes:
            raise too_large()

    def _fold(self, key: Key, kept: CachedDocument, now_s: int) -> None:
        """Make the snapshot current, and drop all updates but the newest."""
        try:
            snapshot = kept.document.snapshot()
        except CrdtDecodeFailed as error:
            # The updates stay. The next use reads them, and makes a new document if need be.
            _log.error("document.not_folded", entity=key[0], row_id=key[1], error=error.message)
            return
        self._conn.execute(_PUT_SNAPSHOT, (*key, snapshot, _iso(now_s)))
        self._conn.execute(_FOLD, (*key, kept.number))
        kept.snapshot_bytes, kept.pending, kept.pending_bytes = len(snapshot), 0, 0


def _iso(now_s: int) -> str:
    """As the other server writes it."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _made(table: Table, row: Mapping[str, Any]) -> Document:
    document = Document(table.entity)
    document.assign({f.name: row.get(f.name) for f in table.entity.fields})
    return document


def _names_differing(document: Document, table: Table, row: Mapping[str, Any]) -> list[str]:
    try:
        return list(document.differing(row))
    except CrdtApplyFailed:  # another server let in what no row can hold
        return [field.name for field in table.entity.fields]


def _change(key: Key, kept: CachedDocument, *, bounded: bool = True) -> Change:
    """What of the document is not stored, and has to be.

    Raises:
        CrdtDecodeFailed: Loro cannot say it.
        LimitExceeded: the document is too large, and `bounded`.
    """
    if kept.version is None or kept.view is not None:
        whole, data = True, kept.document.snapshot()
        size_bytes = len(data)
    else:
        whole, data = False, kept.document.changes_since(kept.version)
        size_bytes = kept.stored_bytes + len(data)
    if (
        bounded and size_bytes > limits.DOCUMENT_BYTES
        and (whole or len(kept.document.snapshot()) > limits.DOCUMENT_BYTES)
    ):
        raise too_large()
    return Change(key, kept, data, whole)
