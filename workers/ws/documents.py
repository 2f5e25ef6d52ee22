"""Documents: sockets that follow rows' CRDT documents (spec/realtime.md §6.2, §6.3).

The first subscription to a row has the writer make the document; then it is read from the store
and sent whole, in one frame. What comes later is read from the store too, as updates in the order
of their numbers: the bus only says that there is something to read, so nothing depends on what
it loses, nor on which worker was told first. An update is sent when its row's event has been.

Invariants: a subscriber's frames, merged, are the document as it was stored, at each moment up to
some update without a hole; a subscriber who may no longer read the row, and every subscriber
of a row that is gone, gets no further frame. Reading, judging and sending of one update happen
without a switch of greenlets. A feature of `workers.ws.conversation`; made by
`workers.ws.server`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from pylon import limits, log, metrics
from pylon.api.access import may_see
from pylon.app import App
from pylon.auth.context import AuthContext
from pylon.bus.messages import DocumentsChanged, OpenDocument
from pylon.bus.runtime import Runtime
from pylon.bus.signals import SignalReceiver
from pylon.bus.writer_client import WriterClient
from pylon.changelog.change import Change
from pylon.crdt import frame
from pylon.crdt.document import merged
from pylon.errors import CrdtDecodeFailed, LimitExceeded, NotFound, PylonError
from pylon.storage.contract import DocumentUpdate, Store, StoredDocument
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws import frames

Key = tuple[str, str]  # entity, row id

_RETRY_S: Final = 0.5

_log = log.get_logger("documents")


class Documents:
    """`workers.ws.conversation.Feature`: crdt-subscribe and crdt-unsubscribe."""

    message_types: tuple[str, ...] = ("crdt-subscribe", "crdt-unsubscribe")

    def __init__(
        self, app: App, store: Store, writer: WriterClient, runtime: Runtime, hub: Hub
    ) -> None:
        self._app = app
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
        """Send the whole document, and what comes after it. Does not switch greenlets."""
        if not connection.is_open or not self._may_read(key, connection.caller.auth):
            return
        if not self._watches:  # nobody read along until now
            self._number = self._store.point(lambda reader: reader.document_number())
        stored = self._stored(key)
        if stored is None:
            return
        payload = _whole(stored)
        self._watches.setdefault(key, {})[connection] = stored.number
        own = self._of.setdefault(connection, set())
        if key not in own:
            own.add(key)
            metrics.DOCUMENT_SUBSCRIPTIONS.inc()
        _send((connection,), key, payload)

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
        page = self._store.point(
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
            data = self._store.point(lambda reader: reader.document_update(update.number))
            if data:
                self._note(watch, next_ones, update.number)
                _send(next_ones, key, data)
            else:  # folded into the snapshot meanwhile
                others += next_ones
        if others:
            stored = self._stored(key)
            try:
                payload = None if stored is None else _whole(stored)
            except CrdtDecodeFailed as ex:
                _log.error("document.unreadable", entity=key[0], row_id=key[1], error=ex.message)
                payload = None
            if stored is None or payload is None:
                self._end(key)
                return
            self._note(watch, others, stored.number)
            _send(others, key, payload)

    @staticmethod
    def _note(watch: dict[Connection, int], who: Sequence[Connection], number: int) -> None:
        for connection in who:
            watch[connection] = number

    # --- The store -------------------------------------------------------------------------

    def _stored(self, key: Key) -> StoredDocument | None:
        return self._store.point(lambda reader: reader.document(*key))

    def _may_read(self, key: Key, auth: AuthContext) -> bool:
        """Whether the row is there, and `auth` may see it as it is now."""
        row_json = self._store.point(lambda reader: reader.get(*key))
        if row_json is None:
            return False
        return may_see(self._app, self._app.manifest.by_name[key[0]], auth, row_json)


def _whole(stored: StoredDocument) -> bytes:
    """The document in one piece."""
    if not stored.updates:
        return stored.snapshot
    return merged((stored.snapshot, *stored.updates))


def _send(connections: Sequence[Connection], key: Key, payload: bytes) -> None:
    message = frame.encode(*key, payload)
    if message is None:
        return
    data = frames.encode(frames.BINARY, message)
    for connection in connections:
        if connection.send(data):
            metrics.MESSAGES_SENT.inc()
