"""Documents: sends the CRDT documents of rows, and their updates, to subscribed sockets.

The first subscription to a row makes the writer create its document. The module then reads the
document from the store and sends it whole, in one frame. It also reads later updates from the
store, in the order of their numbers. The bus only signals that updates exist, so a lost signal
loses no update. The module sends an update after its row's event (spec/realtime.md §6.2, §6.3).

A reader may have to receive the document without a part of its history (`document_reads`). The
merge sandbox prepares it, and followers that wait for it receive no update meanwhile.

Invariants: the merged frames of a subscriber are at each moment the stored document up to some
update, without a gap. A subscriber who may no longer read the row receives no further frame; nor
does any subscriber of a deleted row. Reads may switch greenlets (`Store.point`). So what an update
needs is read for the subscribers of the moment, and read again if they change meanwhile; then it is
sent without a switch. Bounds: `limits.DOCUMENT_SUBSCRIPTIONS` and `DOCUMENTS_OPENING`. Metric:
pylon_document_subscriptions. A feature of `workers.ws.conversation`; `workers.ws.server` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from pylon import limits, log, metrics
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.bus.messages import DocumentsChanged
from pylon.bus.runtime import Runtime
from pylon.bus.signals import SignalReceiver
from pylon.bus.writer_client import WriterClient
from pylon.changelog.change import Change
from pylon.crdt import frame
from pylon.errors import CrdtDecodeFailed, LimitExceeded, NotFound, PylonError
from pylon.key_scopes import require_entity
from pylon.limiter import RateLimiter
from pylon.rates import DOCUMENT_OPENS, subject_of
from pylon.storage.interface import Store, read_settled
from pylon.storage.ops import OpenDocument
from pylon.storage.records import DocumentUpdate, StoredDocument
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws import frames
from workers.ws.document_reads import CallerDocument, DocumentReads, Followers, Key

_RETRY_S: Final = 0.5
_WAITING: Final = 1 << 62  # number of a follower that waits for the merge sandbox

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
        self._store = store
        self._reads = DocumentReads(app, store, self._end_unreadable)
        self._writer = writer
        self._hub = hub
        self._signals = SignalReceiver(runtime, DocumentsChanged)
        # By subscriber: the number of the last update that it has.
        self._watches: dict[Key, dict[Connection, int]] = {}
        self._keys_by_connection: dict[Connection, set[Key]] = {}
        self._sent_number = 0  # number of the last update that needs no more sending
        self._waits_for_event = False  # an update waits for its row's event
        self._wake_up = Event()
        self._opening = BoundedSemaphore(limits.DOCUMENTS_OPENING)
        hub.on_published(self._on_published)

    def start(self, spawn: Callable[[Callable[[], NoReturn]], None]) -> None:
        """Start sending. `spawn` runs a loop whose failure ends the process."""
        spawn(self._send_updates)
        spawn(self._receive_signals)

    # --- Subscriptions ---------------------------------------------------------------------

    def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
        """Subscribe or unsubscribe. Ignore a row that does not exist or is hidden.

        Raises:
            LimitExceeded: the socket has `limits.DOCUMENT_SUBSCRIPTIONS`, or the row is too large.
        ScopeDenied: the caller's API key does not reach the entity.
            RateLimited: its user or address has subscribed too often.
            WriterUnavailable, WriteQueueFull, StoreUnavailable: the client may try again.
        """
        row_id = message.get("rowId", message.get("row_id"))
        entity = self._app.manifest.by_name.get(str(message.get("entity")))
        if entity is None or not entity.crdt or not isinstance(row_id, str):
            return
        require_entity(connection.caller.auth, entity.name, "read")
        key = (entity.name, row_id)
        if message["type"] == "crdt-unsubscribe":
            self._unsubscribe(connection, key)
            return
        own_keys = self._keys_by_connection.get(connection, ())
        if key not in own_keys and len(own_keys) >= limits.DOCUMENT_SUBSCRIPTIONS:
            raise LimitExceeded(
                f"A socket may follow {limits.DOCUMENT_SUBSCRIPTIONS} documents",
                hint="Unsubscribe from some, or open another socket",
            )
        if not self._reads.may_read(key, connection.caller.auth):
            return
        auth = connection.caller.auth
        if not auth.is_admin:
            self._limiter.require(DOCUMENT_OPENS, subject_of(auth, connection.address))
        if key not in self._watches:
            try:
                with self._opening:
                    self._writer.submit(OpenDocument(*key))
            except NotFound:
                return  # another client has just deleted the row
        self._subscribe(connection, key)

    def drop_connection(self, connection: Connection) -> None:
        """End all subscriptions of a connection that has closed or changes identity."""
        for key in list(self._keys_by_connection.get(connection, ())):
            self._unsubscribe(connection, key)

    def _subscribe(self, connection: Connection, key: Key) -> None:
        """Send the whole document, and the updates after it from now on."""
        stored = self._reads.read_document(key, connection.caller.auth)
        if stored is None:
            return
        if not self._watches:  # the number is stale: nobody was subscribed until now
            newest = self._store.point(lambda reader: reader.document_number())
            if not self._watches:
                self._sent_number = newest
        payload = self._reads.read_payload(key, stored, connection)
        # The payload is of a commit at which the caller could read the row. Check it again.
        if not self._reads.may_read(key, connection.caller.auth) or not connection.is_open:
            return
        self._watches.setdefault(key, {})[connection] = stored.number
        own_keys = self._keys_by_connection.setdefault(connection, set())
        if key not in own_keys:
            own_keys.add(key)
            metrics.DOCUMENT_SUBSCRIPTIONS.inc()
        _send((connection,), key, payload)
        self._rewind(stored.number)

    def _rewind(self, number: int) -> None:
        """Read the updates after `number` again, because a follower lacks them."""
        if number < self._sent_number:
            self._sent_number = number
            self._wake_up.set()

    def _unsubscribe(self, connection: Connection, key: Key) -> None:
        watch = self._watches.get(key)
        if watch is None or watch.pop(connection, None) is None:
            return
        if not watch:
            del self._watches[key]
        own_keys = self._keys_by_connection[connection]
        own_keys.discard(key)
        if not own_keys:
            del self._keys_by_connection[connection]
        metrics.DOCUMENT_SUBSCRIPTIONS.dec()

    def _end_subscriptions(self, key: Key) -> None:
        """End all subscriptions to a row."""
        for connection in list(self._watches.get(key, ())):
            self._unsubscribe(connection, key)

    # --- Changes ---------------------------------------------------------------------------

    def _on_published(self, changes: Sequence[Change]) -> None:
        """Handle a batch whose events the hub has sent. Must not block."""
        if not self._watches:
            return
        wanted = self._waits_for_event
        for change in changes:
            key = (change.event.entity, change.event.row_id)
            if key in self._watches:
                if change.event.kind == "delete":
                    self._end_subscriptions(key)
                wanted = True
        if wanted:
            self._wake_up.set()

    def _receive_signals(self) -> NoReturn:
        while True:
            self._signals.receive()
            self._wake_up.set()

    def _send_updates(self) -> NoReturn:
        while True:
            self._wake_up.wait(limits.HEAD_CHECK_S)  # the timeout covers a lost signal
            self._wake_up.clear()
            try:
                while self._watches and self._advance():
                    gevent.sleep(0)
            except PylonError as ex:
                _log.warning("documents.delayed", code=ex.code, message=ex.message)
                gevent.sleep(_RETRY_S)
                self._wake_up.set()

    def _advance(self) -> bool:
        """Send the next updates, and return whether there may be more."""
        self._waits_for_event = False
        page = read_settled(
            self._store,
            lambda reader: reader.document_updates(
                self._sent_number, limits.DOCUMENT_PAGE_UPDATES
            ),
            lambda: self._sent_number,  # a new follower may have set it back (`_rewind`)
        )
        before = self._sent_number
        for update in page:
            if update.seq > self._hub.head:
                self._waits_for_event = True
                return False
            if (update.entity, update.row_id) in self._watches:
                self._deliver(update)
                if self._sent_number != before:  # set back during a read
                    return True
            before = self._sent_number = update.number
        return len(page) == limits.DOCUMENT_PAGE_UPDATES

    def _deliver(self, update: DocumentUpdate) -> None:
        """Send an update to the followers of its row. May switch greenlets before that."""
        key = (update.entity, update.row_id)
        while True:
            followers = self._followers(key)
            delivery = self._reads.read_delivery(key, update, followers)
            if self._followers(key) == followers:
                break
        watch = self._watches.get(key)
        if watch is None:
            return
        up_to_date: list[Connection] = []  # their last update is the one before this
        outdated: list[Connection] = []  # they need the whole document
        for connection, (number, auth) in followers.items():
            if number >= update.number:
                continue  # its first frame had the update already
            if auth not in delivery.readers:
                self._unsubscribe(connection, key)
            elif number == update.prev and delivery.data is not None:
                up_to_date.append(connection)
            else:
                outdated.append(connection)
        if up_to_date and delivery.data is not None:
            self._set_numbers(watch, up_to_date, update.number)
            _send(up_to_date, key, delivery.data)
        self._send_wholes(key, outdated, delivery.wholes)

    def _followers(self, key: Key) -> Followers:
        return {
            connection: (number, connection.caller.auth)
            for connection, number in self._watches.get(key, {}).items()
        }

    def _send_wholes(
        self, key: Key, followers: Sequence[Connection],
        wholes: Mapping[AuthContext, CallerDocument | None],
    ) -> None:
        """Send the whole document to followers that cannot apply the next update."""
        by_auth: dict[AuthContext, list[Connection]] = {}
        for connection in followers:
            by_auth.setdefault(connection.caller.auth, []).append(connection)
        for auth, connections in by_auth.items():
            whole = wholes.get(auth)
            watch = self._watches.get(key)
            if watch is None:
                return
            if whole is None:
                for connection in connections:
                    self._unsubscribe(connection, key)
            elif whole.payload is not None:
                self._set_numbers(watch, connections, whole.stored.number)
                _send(connections, key, whole.payload)
            else:
                self._set_numbers(watch, connections, _WAITING)
                gevent.spawn(self._send_redacted, key, whole.stored, connections)

    def _send_redacted(
        self, key: Key, stored: StoredDocument, connections: Sequence[Connection]
    ) -> None:
        """Prepare a redacted document for the waiting followers of one auth context; send it."""
        auth = connections[0].caller.auth
        try:
            payload = self._reads.read_payload(key, stored, connections[0])
        except CrdtDecodeFailed as ex:
            self._end_unreadable(key, ex)
            return
        except PylonError as ex:
            _log.warning("documents.delayed", code=ex.code, message=ex.message)
            gevent.sleep(_RETRY_S)
            payload = None
        try:
            whole = None
            if payload is None or not self._reads.may_read(key, auth):
                payload, whole = None, self._reads.read_whole(key, auth)
        except PylonError as ex:
            _log.warning("documents.delayed", code=ex.code, message=ex.message)
            if any(self._watches.get(key, {}).get(each) == _WAITING for each in connections):
                gevent.spawn_later(_RETRY_S, self._send_redacted, key, stored, connections)
            return
        watch = self._watches.get(key, {})
        waiting = [
            c for c in connections if watch.get(c) == _WAITING and c.caller.auth == auth
        ]
        if not waiting:
            return
        if payload is None:
            self._send_wholes(key, waiting, {auth: whole})
            return
        self._set_numbers(watch, waiting, stored.number)
        _send(waiting, key, payload)
        self._rewind(stored.number)

    def _end_unreadable(self, key: Key, error: PylonError) -> None:
        _log.error("document.unreadable", entity=key[0], row_id=key[1], error=error.message)
        self._end_subscriptions(key)

    @staticmethod
    def _set_numbers(
        watch: dict[Connection, int], connections: Sequence[Connection], number: int
    ) -> None:
        for connection in connections:
            watch[connection] = number

def _send(connections: Sequence[Connection], key: Key, payload: bytes) -> None:
    message = frame.encode(*key, payload)
    if message is None:
        return
    data = frames.encode(frames.BINARY, message)
    for connection in connections:
        if connection.send(data):
            metrics.MESSAGES_SENT.inc()
