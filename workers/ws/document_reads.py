"""Reads of documents as one caller may see them: whole, or with the next update.

A part of a document may date from a time when the row was hidden from a reader. That reader then
receives the document without content that the part wrote and removed again
(`pylon.crdt.redaction`).

Invariant: what a method returns is of a commit at which the caller could read the row. Every method
may switch greenlets (`Store.point`). Called by `documents`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from pylon.api.data.access import may_see_row, visible_row
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.crdt.document import merge_parts
from pylon.crdt.redaction import Run
from pylon.crdt.views import hidden_runs
from pylon.errors import CrdtDecodeFailed
from pylon.rates import subject_of
from pylon.storage.interface import Store
from pylon.storage.records import DocumentUpdate, StoredDocument
from pylon.storage.related import StoredRelated
from workers.hub.connection import Connection
from workers.merge_sandbox import MergeSandbox
from workers.ws.redaction_cache import RedactionCache

Key = tuple[str, str]  # entity, row id
Followers = Mapping[Connection, tuple[int, AuthContext]]  # of one row, with their last update


class CallerDocument(msgspec.Struct, frozen=True):
    """A document as one caller may see it. `payload` is None if the merge sandbox prepares it."""

    stored: StoredDocument
    payload: bytes | None


class UpdateReads(msgspec.Struct, frozen=True):
    """The reads for an update: what each follower of its row may get."""

    readers: frozenset[AuthContext]  # who may read the row
    data: bytes | None  # the update; None: nobody can apply it alone
    # By caller; None: the caller may not read the row any more.
    wholes: Mapping[AuthContext, CallerDocument | None]


class DocumentReads:
    """See the module."""

    __slots__ = ("_app", "_on_unreadable", "_redacted", "_related", "_store")

    def __init__(
        self, app: App, store: Store, on_unreadable: Callable[[Key, CrdtDecodeFailed], None]
    ) -> None:
        """
        Args:
            on_unreadable: called with a document that cannot be decoded.
        """
        self._app = app
        self._store = store
        self._on_unreadable = on_unreadable
        self._related = StoredRelated(store.point)
        self._redacted = RedactionCache(MergeSandbox())

    def read_document(self, key: Key, auth: AuthContext) -> StoredDocument | None:
        """Return the stored document; None unless its row exists and the caller may read it."""
        entity = self._app.manifest.by_name[key[0]]
        where = visible_row(self._app, entity, auth, key[1])
        return self._store.point(lambda reader: reader.document(*key, where))

    def may_read(self, key: Key, auth: AuthContext) -> bool:
        """Whether the row exists, and `auth` may read its current version."""
        entity = self._app.manifest.by_name[key[0]]
        return may_see_row(self._app, self._store.point, entity, auth, key[1])

    def read_payload(self, key: Key, stored: StoredDocument, connection: Connection) -> bytes:
        """Return the document in one piece, without content that was hidden from the caller.

        Switches greenlets if a part of it was hidden.
        """
        runs = self._hidden_runs(key, stored, connection.caller.auth)
        if not runs:
            return _join_parts(stored)
        caller = subject_of(connection.caller.auth, connection.address)
        return self._redacted.find(key, stored, runs, caller)

    def _hidden_runs(
        self, key: Key, stored: StoredDocument, auth: AuthContext
    ) -> tuple[Run, ...]:
        return hidden_runs(stored, self._app.rules.for_entity(key[0]), auth, self._related)

    def read_delivery(
        self, key: Key, update: DocumentUpdate, followers: Followers
    ) -> UpdateReads:
        """Read what followers get with an update. May switch greenlets."""
        behind = [
            (number, auth) for number, auth in followers.values() if number < update.number
        ]
        readers = frozenset(
            auth for auth in {auth for _, auth in behind} if self.may_read(key, auth)
        )
        data: bytes | None = None
        if any(number == update.prev and auth in readers for number, auth in behind):
            data = self._store.point(lambda reader: reader.document_update(update.number))
        # Without data the writer has merged the update into the snapshot meanwhile.
        outdated = {
            auth for number, auth in behind
            if auth in readers and (number != update.prev or not data)
        }
        wholes = {auth: self.read_whole(key, auth) for auth in outdated}
        return UpdateReads(readers, data or None, wholes)

    def read_whole(self, key: Key, auth: AuthContext) -> CallerDocument | None:
        """Read the document as a caller may see it. May switch greenlets."""
        stored = self.read_document(key, auth)
        if stored is None:
            return None
        if self._hidden_runs(key, stored, auth):
            return CallerDocument(stored, None)
        try:
            return CallerDocument(stored, _join_parts(stored))
        except CrdtDecodeFailed as ex:
            self._on_unreadable(key, ex)
            return None


def _join_parts(stored: StoredDocument) -> bytes:
    """Return the document in one piece."""
    if not stored.updates:
        return stored.snapshot
    return merge_parts(stored.parts)
