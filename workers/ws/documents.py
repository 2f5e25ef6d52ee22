"""Documents: sockets that follow rows' CRDT documents (spec/realtime.md §6.2, §6.3).

The first subscription to a row has the writer make the document; then it is read from the store
and sent whole, in one frame. What comes later is read from the store too, as updates in the order
of their numbers: the bus only says that there is something to read, so nothing depends on what
it loses, nor on which worker was told first. An update is sent when its row's event has been.

A part of a document may have been made while the row was hidden from a reader. Then the reader
gets the document without content that this part wrote and removed again (`pylon.crdt.redaction`).
The merge sandbox prepares it; while followers wait for it, they get no update.

Invariants: a subscriber's frames, merged, are the document as it was stored, at each moment up to
some update without a hole; a subscriber who may no longer read the row, and every subscriber
of a row that is gone, gets no further frame. Reading, judging and sending of one update happen
without a switch of greenlets. A feature of `workers.ws.conversation`; made by
`workers.ws.server`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import gevent
from gevent.event import AsyncResult, Event
from gevent.lock import BoundedSemaphore

from pylon import limits, log, metrics
from pylon.api.data.access import may_see_row, visible_row
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.bus.messages import DocumentsChanged
from pylon.bus.runtime import Runtime
from pylon.bus.signals import SignalReceiver
from pylon.bus.writer_client import WriterClient
from pylon.changelog.change import Change
from pylon.crdt import frame
from pylon.crdt.document import merged
from pylon.crdt.redaction import Run
from pylon.crdt.views import hidden_runs
from pylon.errors import CrdtDecodeFailed, LimitExceeded, NotFound, PylonError, Unavailable
from pylon.limiter import RateLimiter
from pylon.rates import DOCUMENT_OPENS, subject_of
from pylon.storage.interface import Store
from pylon.storage.ops import OpenDocument
from pylon.storage.records import DocumentUpdate, StoredDocument
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.merge_sandbox import MergeSandbox
from workers.ws import frames

Key = tuple[str, str]  # entity, row id
_Version = tuple[Key, int]  # and a hash of what is stored

_RETRY_S: Final = 0.5
_WAITING: Final = 1 << 62  # the number of a follower whose document is being prepared

_log = log.get_logger("documents")


class Documents:
    """`workers.ws.conversation.Feature`: crdt-subscribe and crdt-unsubscribe."""

    message_types: tuple[str, ...] = ("crdt-subscribe", "crdt-unsubscribe")

    def __init__(
        self, app: App, store: Store, writer: WriterClient, runtime: Runtime, hub: Hub,
        limiter: RateLimiter,
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._shown = _Shown(MergeSandbox())
        self._store = store
        self._writer = writer
        self._hub = hub
        self._signals = SignalReceiver(runtime, DocumentsChanged)
        # Of each subscriber, the number of the update up to which it has the document.
        self._watches: dict[Key, dict[Connection, int]] = {}
        self._of: dict[Connection, set[Key]] = {}
        self._number = 0  # updates up to here were sent, or nobody wanted them
        self._held = False  # an update waits for its row's event
        self._news = Event()
        self._opening = BoundedSemaphore(limits.DOCUMENTS_OPENING)
        hub.on_published(self._published)

    def start(self, spawn: Callable[[Callable[[], NoReturn]], None]) -> None:
        """Begin to send. `spawn` runs a loop whose failure ends the process."""
        spawn(self._run)
        spawn(self._hear)

    # --- Subscriptions ---------------------------------------------------------------------

    def take(self, connection: Connection, message: dict[str, Any]) -> None:
        """Subscribe or unsubscribe. What cannot be subscribed to is passed over in silence.

        Raises:
            LimitExceeded: the socket has as many as it may, or the row is too large.
            RateLimited: its user or address has subscribed too often.
            WriterUnavailable, WriteQueueFull, StoreUnavailable: not now.
        """
        row_id = message.get("rowId", message.get("row_id"))
        entity = self._app.manifest.by_name.get(str(message.get("entity")))
        if entity is None or not entity.crdt or not isinstance(row_id, str):
            return
        key = (entity.name, row_id)
        if message["type"] == "crdt-unsubscribe":
            self._drop(connection, key)
            return
        own = self._of.get(connection, ())
        if key not in own and len(own) >= limits.DOCUMENT_SUBSCRIPTIONS:
            raise LimitExceeded(
                f"A socket may follow {limits.DOCUMENT_SUBSCRIPTIONS} documents",
                hint="Unsubscribe from some, or open another socket",
            )
        if not self._may_read(key, connection.caller.auth):
            return
        auth = connection.caller.auth
        if not auth.is_admin:
            self._limiter.require(DOCUMENT_OPENS, subject_of(auth, connection.address))
        if key not in self._watches:
            try:
                with self._opening:
                    self._writer.submit(OpenDocument(*key))
            except NotFound:
                return  # it was deleted just now
        self._subscribe(connection, key)

    def gone(self, connection: Connection) -> None:
        """The connection has closed, or speaks for somebody else now."""
        for key in list(self._of.get(connection, ())):
            self._drop(connection, key)

    def _subscribe(self, connection: Connection, key: Key) -> None:
        """Send the whole document, and what comes after it."""
        stored = self._readable(key, connection)
        if stored is None:
            return
        if not self._watches:  # nobody read along until now
            self._number = self._store.point_inline(lambda reader: reader.document_number())
        payload = self._payload(key, stored, connection)
        # The payload is of a commit at which the row was the caller's to read; it still is.
        if not connection.is_open or not self._may_read(key, connection.caller.auth):
            return
        self._watches.setdefault(key, {})[connection] = stored.number
        own = self._of.setdefault(connection, set())
        if key not in own:
            own.add(key)
            metrics.DOCUMENT_SUBSCRIPTIONS.inc()
        _send((connection,), key, payload)
        self._reread(stored.number)

    def _reread(self, number: int) -> None:
        """Look again at the updates after `number`: a follower has none of them."""
        if number < self._number:
            self._number = number
            self._news.set()

    def _payload(self, key: Key, stored: StoredDocument, connection: Connection) -> bytes:
        """The document in one piece, as it may be handed out. Switches greenlets where a part
        of it was hidden."""
        runs = self._hidden_runs(key, stored, connection)
        if not runs:
            return _whole(stored)
        caller = subject_of(connection.caller.auth, connection.address)
        return self._shown.find(key, stored, runs, caller)

    def _hidden_runs(
        self, key: Key, stored: StoredDocument, connection: Connection
    ) -> tuple[Run, ...]:
        return hidden_runs(stored, self._app.rules.of(key[0]), connection.caller.auth)

    def _drop(self, connection: Connection, key: Key) -> None:
        watch = self._watches.get(key)
        if watch is None or watch.pop(connection, None) is None:
            return
        if not watch:
            del self._watches[key]
        own = self._of[connection]
        own.discard(key)
        if not own:
            del self._of[connection]
        metrics.DOCUMENT_SUBSCRIPTIONS.dec()

    def _end(self, key: Key) -> None:
        """The row is gone, and so are all its subscriptions."""
        for connection in list(self._watches.get(key, ())):
            self._drop(connection, key)

    # --- Changes ---------------------------------------------------------------------------

    def _published(self, changes: Sequence[Change]) -> None:
        """The events of a batch have been delivered. Does not block."""
        if not self._watches:
            return
        wanted = self._held
        for change in changes:
            key = (change.event.entity, change.event.row_id)
            if key in self._watches:
                if change.event.kind == "delete":
                    self._end(key)
                wanted = True
        if wanted:
            self._news.set()

    def _hear(self) -> NoReturn:
        while True:
            self._signals.receive()
            self._news.set()

    def _run(self) -> NoReturn:
        while True:
            self._news.wait(limits.HEAD_CHECK_S)  # a signal may have been lost
            self._news.clear()
            try:
                while self._watches and self._advance():
                    gevent.sleep(0)
            except PylonError as ex:
                _log.warning("documents.delayed", code=ex.code, message=ex.message)
                gevent.sleep(_RETRY_S)
                self._news.set()

    def _advance(self) -> bool:
        """Send the next updates; whether there may be more. Does not switch greenlets."""
        page = self._store.point_inline(
            lambda reader: reader.document_updates(self._number, limits.DOCUMENT_PAGE_UPDATES)
        )
        self._held = False
        for update in page:
            if update.seq > self._hub.head:
                self._held = True
                return False
            if (update.entity, update.row_id) in self._watches:
                self._deliver(update)
            self._number = update.number
        return len(page) == limits.DOCUMENT_PAGE_UPDATES

    def _deliver(self, update: DocumentUpdate) -> None:
        key = (update.entity, update.row_id)
        watch = self._watches[key]
        next_ones: list[Connection] = []  # who have all that came before
        others: list[Connection] = []
        verdicts: dict[AuthContext, bool] = {}
        for connection, number in list(watch.items()):
            if number >= update.number:
                continue  # it was in what it got first
            auth = connection.caller.auth
            if auth not in verdicts:
                verdicts[auth] = self._may_read(key, auth)
            if not verdicts[auth]:
                self._drop(connection, key)
            elif number == update.prev:
                next_ones.append(connection)
            else:
                others.append(connection)
        if next_ones:
            data = self._store.point_inline(lambda reader: reader.document_update(update.number))
            if data:
                self._note(watch, next_ones, update.number)
                _send(next_ones, key, data)
            else:  # folded into the snapshot meanwhile
                others += next_ones
        if others:
            self._renew(key, others)

    def _renew(self, key: Key, followers: Sequence[Connection]) -> None:
        """Send the whole document to followers whose copy the next update does not fit."""
        by_auth: dict[AuthContext, list[Connection]] = {}
        for connection in followers:
            by_auth.setdefault(connection.caller.auth, []).append(connection)
        for connections in by_auth.values():
            stored = self._readable(key, connections[0])
            if stored is None:
                for connection in connections:
                    self._drop(connection, key)
            elif not self._hidden_runs(key, stored, connections[0]):
                try:
                    payload = _whole(stored)
                except CrdtDecodeFailed as ex:
                    self._unreadable(key, ex)
                    return
                self._note(self._watches[key], connections, stored.number)
                _send(connections, key, payload)
            else:
                self._note(self._watches[key], connections, _WAITING)
                gevent.spawn(self._send_shown, key, stored, connections)

    def _send_shown(
        self, key: Key, stored: StoredDocument, connections: Sequence[Connection]
    ) -> None:
        """Prepare a document for followers of one auth context, which wait for it meanwhile."""
        try:
            payload = self._payload(key, stored, connections[0])
        except CrdtDecodeFailed as ex:
            self._unreadable(key, ex)
            return
        except PylonError as ex:
            _log.warning("documents.delayed", code=ex.code, message=ex.message)
            gevent.sleep(_RETRY_S)
            payload = None
        watch = self._watches.get(key, {})
        waiting = [c for c in connections if watch.get(c) == _WAITING]
        if not waiting:
            return
        if payload is None or not self._may_read(key, waiting[0].caller.auth):
            self._renew(key, waiting)
            return
        self._note(watch, waiting, stored.number)
        _send(waiting, key, payload)
        self._reread(stored.number)

    def _unreadable(self, key: Key, error: PylonError) -> None:
        _log.error("document.unreadable", entity=key[0], row_id=key[1], error=error.message)
        self._end(key)

    @staticmethod
    def _note(watch: dict[Connection, int], who: Sequence[Connection], number: int) -> None:
        for connection in who:
            watch[connection] = number

    # --- The store -------------------------------------------------------------------------

    def _readable(self, key: Key, connection: Connection) -> StoredDocument | None:
        """The stored document, if its row exists and the caller may read it."""
        entity = self._app.manifest.by_name[key[0]]
        where = visible_row(self._app, entity, connection.caller.auth, key[1])
        return self._store.point_inline(lambda reader: reader.document(*key, where))

    def _may_read(self, key: Key, auth: AuthContext) -> bool:
        """Whether the row is there, and `auth` may see it as it is now."""
        entity = self._app.manifest.by_name[key[0]]
        return may_see_row(self._app, self._store.point_inline, entity, auth, key[1])


class _Shown:
    """A cache of documents without their hidden history. The key has a hash of the stored parts:
    numbers of updates alone do not tell a row from a later one with the same id."""

    __slots__ = ("_making", "_payloads", "_size_bytes", "_tasting")

    def __init__(self, tasting: MergeSandbox) -> None:
        self._tasting = tasting
        self._payloads: OrderedDict[_Version, bytes] = OrderedDict()
        self._size_bytes = 0
        self._making: dict[_Version, AsyncResult[bytes]] = {}

    def find(
        self, key: Key, stored: StoredDocument, runs: tuple[Run, ...], caller: str
    ) -> bytes:
        """The document, prepared once for all who ask for it.

        Raises:
            CrdtDecodeFailed, Unavailable: see `MergeSandbox.shown`.
        """
        version = (key, hash((stored.parts, runs)))
        payload = self._payloads.get(version)
        if payload is not None:
            self._payloads.move_to_end(version)
            return payload
        making = self._making.get(version)
        if making is not None:
            found: bytes = making.get()
            return found
        making = self._making[version] = AsyncResult()
        try:
            payload = self._tasting.shown(stored, runs, caller)
        except BaseException as ex:
            making.set_exception(ex if isinstance(ex, PylonError) else Unavailable("Try again"))
            raise
        finally:
            del self._making[version]
        making.set(payload)
        self._keep(version, payload)
        return payload

    def _keep(self, version: _Version, payload: bytes) -> None:
        self._payloads[version] = payload
        self._size_bytes += len(payload)
        while self._size_bytes > limits.REDACTED_DOCUMENTS_BYTES:
            self._size_bytes -= len(self._payloads.popitem(last=False)[1])


def _whole(stored: StoredDocument) -> bytes:
    """The document in one piece."""
    if not stored.updates:
        return stored.snapshot
    return merged(stored.parts)


def _send(connections: Sequence[Connection], key: Key, payload: bytes) -> None:
    message = frame.encode(*key, payload)
    if message is None:
        return
    data = frames.encode(frames.BINARY, message)
    for connection in connections:
        if connection.send(data):
            metrics.MESSAGES_SENT.inc()
