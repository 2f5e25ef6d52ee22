"""Documents: sends the CRDT documents of rows, and their updates, to subscribed sockets.

The first subscription to a row makes the writer create its document. The module then reads the
document from the store and sends it whole, in one frame. It also reads later updates from the
store, in the order of their numbers. The bus only signals that updates exist, so a lost signal
loses no update. The module sends an update after its row's event (spec/realtime.md §6.2, §6.3).

A part of a document may date from a time when the row was hidden from a reader. That reader then
receives the document without content that the part wrote and removed again
(`pylon.crdt.redaction`). The merge sandbox prepares it. Followers that wait for it receive no
update meanwhile.

Invariants: the merged frames of a subscriber are at each moment the stored document up to some
update, without a gap. A subscriber who may no longer read the row receives no further frame; nor
does any subscriber of a deleted row. Reads may switch greenlets (`Store.point`). So what an update
needs is read for the subscribers of the moment, and read again if they change meanwhile; then it is
sent without a switch. Bounds: `limits.DOCUMENT_SUBSCRIPTIONS`, `DOCUMENTS_OPENING` and
`REDACTED_DOCUMENTS_BYTES`. Metric: pylon_document_subscriptions. A feature of
`workers.ws.conversation`; `workers.ws.server` makes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from pylon.crdt.document import merge_parts
from pylon.crdt.redaction import Run
from pylon.crdt.views import hidden_runs
from pylon.errors import CrdtDecodeFailed, LimitExceeded, NotFound, PylonError, Unavailable
from pylon.limiter import RateLimiter
from pylon.rates import DOCUMENT_OPENS, subject_of
from pylon.storage.interface import Store, read_settled
from pylon.storage.ops import OpenDocument
from pylon.storage.records import DocumentUpdate, StoredDocument
from pylon.storage.related import StoredRelated
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.merge_sandbox import MergeSandbox
from workers.ws import frames

Key = tuple[str, str]  # entity, row id
_Version = tuple[Key, int]  # with a hash of the stored parts and the hidden runs
_Followers = Mapping[Connection, tuple[int, AuthContext]]  # of one row, with their last update

_RETRY_S: Final = 0.5
_WAITING: Final = 1 << 62  # number of a follower that waits for the merge sandbox

_log = log.get_logger("documents")


@dataclass(frozen=True, slots=True)
class _Whole:
    """A document as one caller may see it. `payload` is None if the merge sandbox prepares it."""

    stored: StoredDocument
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class _Delivery:
    """What the followers of a row get with an update, as read for them."""

    readers: frozenset[AuthContext]  # who may read the row
    data: bytes | None  # the update; None: nobody can apply it alone
    wholes: Mapping[AuthContext, _Whole | None]  # None: the caller may not read the row any more


class Documents:
    """`workers.ws.conversation.Feature`: crdt-subscribe and crdt-unsubscribe."""

    message_types: tuple[str, ...] = ("crdt-subscribe", "crdt-unsubscribe")

    def __init__(
        self, app: App, store: Store, writer: WriterClient, runtime: Runtime, hub: Hub,
        limiter: RateLimiter,
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._redacted = _RedactedDocuments(MergeSandbox())
        self._store = store
        self._related = StoredRelated(store.point)
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
            RateLimited: its user or address has subscribed too often.
            WriterUnavailable, WriteQueueFull, StoreUnavailable: the client may try again.
        """
        row_id = message.get("rowId", message.get("row_id"))
        entity = self._app.manifest.by_name.get(str(message.get("entity")))
        if entity is None or not entity.crdt or not isinstance(row_id, str):
            return
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
                return  # another client has just deleted the row
        self._subscribe(connection, key)

    def drop_connection(self, connection: Connection) -> None:
        """End all subscriptions of a connection that has closed or changes identity."""
        for key in list(self._keys_by_connection.get(connection, ())):
            self._unsubscribe(connection, key)

    def _subscribe(self, connection: Connection, key: Key) -> None:
        """Send the whole document, and the updates after it from now on."""
        stored = self._read_document(key, connection.caller.auth)
        if stored is None:
            return
        if not self._watches:  # the number is stale: nobody was subscribed until now
            newest = self._store.point(lambda reader: reader.document_number())
            if not self._watches:
                self._sent_number = newest
        payload = self._payload(key, stored, connection)
        # The payload is of a commit at which the caller could read the row. Check it again.
        if not self._may_read(key, connection.caller.auth) or not connection.is_open:
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

    def _payload(self, key: Key, stored: StoredDocument, connection: Connection) -> bytes:
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
            delivery = self._read_delivery(key, update, followers)
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

    def _followers(self, key: Key) -> _Followers:
        return {
            connection: (number, connection.caller.auth)
            for connection, number in self._watches.get(key, {}).items()
        }

    def _read_delivery(
        self, key: Key, update: DocumentUpdate, followers: _Followers
    ) -> _Delivery:
        """Read what followers get with an update. May switch greenlets."""
        behind = [
            (number, auth) for number, auth in followers.values() if number < update.number
        ]
        readers = frozenset(
            auth for auth in {auth for _, auth in behind} if self._may_read(key, auth)
        )
        data: bytes | None = None
        if any(number == update.prev and auth in readers for number, auth in behind):
            data = self._store.point(lambda reader: reader.document_update(update.number))
        # Without data the writer has merged the update into the snapshot meanwhile.
        outdated = {
            auth for number, auth in behind
            if auth in readers and (number != update.prev or not data)
        }
        wholes = {auth: self._read_whole(key, auth) for auth in outdated}
        return _Delivery(readers, data or None, wholes)

    def _read_whole(self, key: Key, auth: AuthContext) -> _Whole | None:
        """Read the document as a caller may see it. May switch greenlets."""
        stored = self._read_document(key, auth)
        if stored is None:
            return None
        if self._hidden_runs(key, stored, auth):
            return _Whole(stored, None)
        try:
            return _Whole(stored, _join_parts(stored))
        except CrdtDecodeFailed as ex:
            self._end_unreadable(key, ex)
            return None

    def _send_wholes(
        self, key: Key, followers: Sequence[Connection],
        wholes: Mapping[AuthContext, _Whole | None],
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
            payload = self._payload(key, stored, connections[0])
        except CrdtDecodeFailed as ex:
            self._end_unreadable(key, ex)
            return
        except PylonError as ex:
            _log.warning("documents.delayed", code=ex.code, message=ex.message)
            gevent.sleep(_RETRY_S)
            payload = None
        try:
            whole = None
            if payload is None or not self._may_read(key, auth):
                payload, whole = None, self._read_whole(key, auth)
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

    # --- The store -------------------------------------------------------------------------

    def _read_document(self, key: Key, auth: AuthContext) -> StoredDocument | None:
        """Return the stored document; None unless its row exists and the caller may read it."""
        entity = self._app.manifest.by_name[key[0]]
        where = visible_row(self._app, entity, auth, key[1])
        return self._store.point(lambda reader: reader.document(*key, where))

    def _may_read(self, key: Key, auth: AuthContext) -> bool:
        """Whether the row exists, and `auth` may read its current version."""
        entity = self._app.manifest.by_name[key[0]]
        return may_see_row(self._app, self._store.point, entity, auth, key[1])


class _RedactedDocuments:
    """Cache of documents without their hidden history.

    The key has a hash of the stored parts. An update number alone would not do: a new row may get
    the id of a deleted one.
    """

    __slots__ = ("_payloads", "_pending", "_sandbox", "_size_bytes")

    def __init__(self, sandbox: MergeSandbox) -> None:
        self._sandbox = sandbox
        self._payloads: OrderedDict[_Version, bytes] = OrderedDict()
        self._size_bytes = 0
        self._pending: dict[_Version, AsyncResult[bytes]] = {}

    def find(
        self, key: Key, stored: StoredDocument, runs: tuple[Run, ...], caller: str
    ) -> bytes:
        """Return the redacted document, prepared once for all callers at the same time.

        Raises:
            CrdtDecodeFailed, Unavailable: see `MergeSandbox.redact`.
        """
        version = (key, hash((stored.parts, runs)))
        payload = self._payloads.get(version)
        if payload is not None:
            self._payloads.move_to_end(version)
            return payload
        pending = self._pending.get(version)
        if pending is not None:
            found: bytes = pending.get()
            return found
        pending = self._pending[version] = AsyncResult()
        try:
            payload = self._sandbox.redact(stored, runs, caller)
        except BaseException as ex:
            pending.set_exception(ex if isinstance(ex, PylonError) else Unavailable("Try again"))
            raise
        finally:
            del self._pending[version]
        pending.set(payload)
        self._keep(version, payload)
        return payload

    def _keep(self, version: _Version, payload: bytes) -> None:
        self._payloads[version] = payload
        self._size_bytes += len(payload)
        while self._size_bytes > limits.REDACTED_DOCUMENTS_BYTES:
            self._size_bytes -= len(self._payloads.popitem(last=False)[1])


def _join_parts(stored: StoredDocument) -> bytes:
    """Return the document in one piece."""
    if not stored.updates:
        return stored.snapshot
    return merge_parts(stored.parts)


def _send(connections: Sequence[Connection], key: Key, payload: bytes) -> None:
    message = frame.encode(*key, payload)
    if message is None:
        return
    data = frames.encode(frames.BINARY, message)
    for connection in connections:
        if connection.send(data):
            metrics.MESSAGES_SENT.inc()
