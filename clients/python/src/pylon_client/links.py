"""The shared connection of a client: live windows and rooms over one WebSocket.

It opens with the first subscription, and closes 10 s after the last. `Link.run` is its whole life:
connect, subscribe everything, apply messages, and after every end wait and connect again
(`ladders`). Where no WebSocket opens, an event stream says which entities have changed, and their
windows are read anew; where that does not open either, windows are read every 1 to 15 s.

Invariants: everything here happens under `lock`, which nobody holds while waiting for the network.
Only `run` writes to the socket; others put texts into `outbox` and wake it.

Called by both shells: they run `run` in a thread or a task of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import msgspec

from pylon_client.addresses import read_addresses, websocket_url, with_parameters
from pylon_client.effects import EffectFailed, Pause, Steps, Wake
from pylon_client.entities import encode
from pylon_client.errors import APIError, APIStatusError, ClosedError, PylonError, SocketRefused
from pylon_client.event_streams import open_events
from pylon_client.ladders import STABLE_S, Ladder, Transport
from pylon_client.options import log
from pylon_client.queries import Query
from pylon_client.requests import Core, current_token, may_pass
from pylon_client.rooms import RoomView, join, read_members
from pylon_client.rows import read_raw
from pylon_client.sockets import HandshakeRefused, Message, Socket, SocketClosed, open_socket
from pylon_client.windows import WINDOW_ROWS, Incoming, Window

LINGER_S: Final = 10.0
_TICK_S: Final = 5.0
_GATHER_S: Final = 0.1  # changes of an event stream within this time cause one read
_FIRST_POLL_S: Final = 1.0
_LONGEST_POLL_S: Final = 15.0
_ROOM_POLL_S: Final = 5.0
_SESSION_ENDED: Final = 4401
_FATAL_CODES: Final = frozenset({1008, 4404})
_AGAIN: Final = frozenset({"IDENTITY_CHANGED", "RESYNC_REQUIRED", "UNAVAILABLE", "DRAINING"})
_AGAIN_S: Final = 1.0

_INCOMING: Final = msgspec.json.Decoder(Incoming)


class _Event(msgspec.Struct):
    entity: str = ""
    type: str = ""


_EVENT: Final = msgspec.json.Decoder(_Event)


class Link:
    """The shared connection. `start` is called, under the lock, when `run` has to begin."""

    def __init__(
        self, core: Core, make_wake: Callable[[], Wake], start: Callable[[], None]
    ) -> None:
        self._core = core
        self.lock = threading.RLock()
        self.wake = make_wake()
        self._start = start
        self._windows: dict[str, Window[Any]] = {}
        self._rooms: dict[str, RoomView] = {}
        self._outbox: deque[bytes] = deque()
        self._is_running = False
        self._is_open = False
        self._is_closed = False
        self._again_at_s: dict[str, float] = {}
        self._ladder = Ladder()
        self.transport: Transport | None = None  # that is open now

    # --- For the shells, from any thread ------------------------------------------------------

    def add_window(self, query: Query[Any], notify: Callable[[], None]) -> Window[Any]:
        """Open a window. Raises: ClosedError."""
        with self.lock:
            window = Window(query, notify)
            self._windows[window.sub_id] = window
            if self._is_open:
                self._outbox.append(window.subscribe_text())
            self._go()
            return window

    def remove_window(self, window: Window[Any]) -> None:
        """Close a window."""
        with self.lock:
            if self._windows.pop(window.sub_id, None) is not None and self._is_open:
                self._outbox.append(encode({"type": "unsubscribe", "sub_id": window.sub_id}))
                self.wake.set()

    def widen(self, window: Window[Any], count: int) -> None:
        """Ask for more rows of a window; the answer is in `window.more_answer`.

        Raises:
            ClosedError: the window is closed, or has no connection now.
        """
        with self.lock:
            if not self._is_open or window.sub_id not in self._windows:
                raise ClosedError("the window has no WebSocket now, so it cannot be widened")
            window.more_answer, window.more_error = None, None
            sent = {"type": "more", "sub_id": window.sub_id, "count": count}
            self._outbox.append(encode(sent))
            self.wake.set()

    def add_room(self, room: RoomView) -> None:
        """Follow a room that the caller has joined. Raises: ClosedError."""
        with self.lock:
            self._rooms[room.name] = room
            if self._is_open:
                self._outbox.append(room.subscribe_text())
            self._go()

    def remove_room(self, room: RoomView) -> None:
        """Follow a room no longer."""
        with self.lock:
            if self._rooms.get(room.name) is room:
                del self._rooms[room.name]
                if self._is_open:
                    self._outbox.append(room.unsubscribe_text())
                    self.wake.set()

    def close(self) -> None:
        """End `run`, and all windows and rooms with ClosedError."""
        with self.lock:
            self._is_closed = True
            self._fail_all(ClosedError("the client is closed"))
            self.wake.set()
            if not self._is_running:
                self.wake.close()

    def note_token(self) -> None:
        """The session has another token; the socket takes it over."""
        with self.lock:
            self.wake.set()

    def _go(self) -> None:
        if self._is_closed:
            raise ClosedError("the client is closed")
        if not self._is_running:
            self._is_running = True
            self._start()
        self.wake.set()

    # --- The life of the connection -----------------------------------------------------------

    def run(self) -> Steps[None]:
        """Keep the connection until nobody needs it."""
        try:
            while not self._is_over():
                transport = self._ladder.next_transport()
                has_opened = False
                pause_s: float | None = None
                try:
                    has_opened = yield from self._serve(transport)
                except (EffectFailed, HandshakeRefused, APIError) as ex:
                    log.info("link.failed transport=%s error=%s", transport.value, ex)
                    if isinstance(ex, APIStatusError) and not may_pass(ex):
                        self._fail_all(ex)
                self._lose(has_opened)
                if has_opened:
                    self._ladder.note_ended()
                    if self._ladder.is_websocket_due:
                        pause_s = 0.0
                else:
                    self._ladder.note_failed()
                yield from self._wait(self._ladder.pause_s() if pause_s is None else pause_s)
        except BaseException as error:
            with self.lock:
                self._is_running = False
            if isinstance(error, Exception):
                failed = error if isinstance(error, PylonError) else ClosedError(
                    f"the connection ended with a defect: {error!r}"
                )
                self._fail_all(failed)
            raise

    def _is_over(self) -> bool:
        """Return whether `run` ends. It then counts as ended at once, so that the next
        subscription starts another."""
        with self.lock:
            if self._is_closed or not (self._windows or self._rooms):
                self._is_running = False
                if self._is_closed:
                    self.wake.close()
                return True
            return False

    def _wait(self, seconds: float) -> Steps[None]:
        ends_at_s = time.monotonic() + seconds
        while not self._is_closed:
            left_s = ends_at_s - time.monotonic()
            if left_s <= 0:
                return
            yield Pause(left_s, self.wake)

    def _serve(self, transport: Transport) -> Steps[bool]:
        """Serve the subscriptions until the transport ends. Return whether it had opened."""
        if transport is Transport.POLL:
            return (yield from self._poll())
        urls = yield from read_addresses(self._core)
        token = yield from current_token(self._core)
        if transport is Transport.EVENTS:
            return (yield from self._follow_events(urls, token))
        url = with_parameters(
            websocket_url(self._core, urls, self._ladder.failures), {"changes": 0}
        )
        socket = yield from open_socket(url, token, self.wake)
        try:
            self._ladder.note_opened()
            yield from self._converse(socket)
        except SocketClosed as closed:
            yield from self._judge_close(closed)
        finally:
            yield from socket.close()
        return True

    def _judge_close(self, closed: SocketClosed) -> Steps[None]:
        log.info("link.closed code=%d reason=%s", closed.code, closed.reason)
        if closed.code in _FATAL_CODES:
            self._fail_all(SocketRefused({"message": closed.reason or None}, closed.code))
        elif closed.code == _SESSION_ENDED:
            if callable(self._core.session.source):
                yield from current_token(self._core, anew=True)
            else:
                said = {"code": "UNAUTHORIZED", "message": "the session has ended"}
                self._fail_all(SocketRefused(said, closed.code))

    # --- Over a WebSocket ---------------------------------------------------------------------

    def _converse(self, socket: Socket) -> Steps[None]:
        generation = self._core.session.generation
        with self.lock:
            self._is_open = True
            self.transport = Transport.WEBSOCKET
            self._outbox.clear()
            self._again_at_s.clear()
            for window in self._windows.values():
                window.begin()
                self._outbox.append(window.subscribe_text())
            for room in self._rooms.values():
                if not room.needs_join:
                    self._outbox.append(room.subscribe_text())
        opened_at_s = idle_since_s = time.monotonic()
        is_new = True
        while not self._is_closed:
            yield from self._rejoin()
            yield from current_token(self._core)  # refreshes it in time
            if self._core.session.generation != generation:
                generation = self._core.session.generation
                with self.lock:
                    self._outbox.append(encode({"type": "auth", "token": self._core.session.token}))
            with self.lock:
                texts = [*self._outbox]
                self._outbox.clear()
                if self._windows or self._rooms:
                    idle_since_s = time.monotonic()
            if texts:
                yield from socket.send(texts)
            if time.monotonic() - idle_since_s >= LINGER_S:
                return
            messages = yield from socket.read(self._next_wait_s())
            with self.lock:
                for message in messages:
                    self._receive(message)
                self._subscribe_again()
            if is_new and time.monotonic() - opened_at_s >= STABLE_S:
                is_new = False
                self._ladder.note_ended()  # stable: the next pause is short
                self._ladder.note_opened()

    def _next_wait_s(self) -> float:
        if not self._again_at_s:
            return _TICK_S
        return max(min(self._again_at_s.values()) - time.monotonic(), 0.0)

    def _subscribe_again(self) -> None:
        now_s = time.monotonic()
        for sub_id in [k for k, at_s in self._again_at_s.items() if at_s <= now_s]:
            del self._again_at_s[sub_id]
            window = self._windows.get(sub_id)
            if window is not None:
                window.begin()
                self._outbox.append(window.subscribe_text())

    def _rejoin(self) -> Steps[None]:
        with self.lock:
            rooms = [room for room in self._rooms.values() if room.needs_join]
        for room in rooms:
            try:
                yield from join(self._core, room)
            except APIStatusError as error:
                if may_pass(error):
                    raise
                with self.lock:
                    self._rooms.pop(room.name, None)
                    room.fail(error)
                continue
            with self.lock:
                room.needs_join = False
                self._outbox.append(room.subscribe_text())

    def _receive(self, message: Message) -> None:
        if message.is_binary:
            return
        incoming = _INCOMING.decode(message.data)
        if incoming.type == "error":
            self._receive_error(incoming)
            return
        if incoming.sub_id is not None:
            window = self._windows.get(incoming.sub_id)
            if window is not None:
                try:
                    window.receive(incoming)
                except PylonError as error:
                    self._end_window(window, error)
        elif incoming.room is not None:
            room = self._rooms.get(incoming.room)
            if room is not None:
                room.receive(incoming)
        elif incoming.type == "auth":
            # Everything of the former identity has ended.
            for window in self._windows.values():
                self._again_at_s[window.sub_id] = 0.0
            for room in self._rooms.values():
                room.lose()

    def _receive_error(self, incoming: Incoming) -> None:
        error = SocketRefused(incoming.refusal())
        log.info("link.refused for=%s code=%s", incoming.about, incoming.code)
        window = self._windows.get(incoming.sub_id or "")
        if window is not None:
            if incoming.about == "more":
                window.more_error = error
                window.notify()
            elif incoming.code in _AGAIN:
                is_slow = incoming.code in ("UNAVAILABLE", "DRAINING")
                delay_s = _AGAIN_S if is_slow else 0.0
                self._again_at_s[window.sub_id] = time.monotonic() + delay_s
            else:
                self._end_window(window, error)
            return
        room = self._rooms.get(incoming.room or "")
        if room is not None:
            if incoming.code == "NOT_IN_ROOM":
                room.lose()  # joins again
            else:
                del self._rooms[room.name]
                room.fail(error)

    def _end_window(self, window: Window[Any], error: PylonError) -> None:
        self._windows.pop(window.sub_id, None)
        if self._is_open:
            self._outbox.append(encode({"type": "unsubscribe", "sub_id": window.sub_id}))
        window.fail(error)

    # --- Without a WebSocket ------------------------------------------------------------------

    def _follow_events(self, urls: Any, token: str | None) -> Steps[bool]:
        """Read windows anew when an event stream names their entity."""
        if "sse" not in urls:
            return False
        names = self._entity_names()
        url = with_parameters(urls["sse"], {"entities": ",".join(sorted(names)) or None})
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        stream = yield from open_events(url, headers, self.wake)
        try:
            self._ladder.note_opened()
            self.transport = Transport.EVENTS
            due = names
            room_poll_at_s = 0.0
            while not self._is_over_or_due() and self._entity_names() <= names:
                yield from self._read_windows(due)
                now_s = time.monotonic()
                if now_s >= room_poll_at_s:
                    yield from self._read_rooms()
                    room_poll_at_s = now_s + _ROOM_POLL_S
                events = yield from stream.read(_TICK_S)
                if events:  # more of the same commit follow at once
                    yield Pause(_GATHER_S)
                    events += yield from stream.read(0.0)
                due = {_EVENT.decode(event).entity for event in events}
                with self.lock:
                    due |= {
                        w.query.entity.name for w in self._windows.values() if not w.is_complete
                    }
        except EffectFailed as failed:
            log.info("link.lost transport=events error=%s", failed)
        finally:
            yield from stream.close()
        return True

    def _poll(self) -> Steps[bool]:
        """Read all windows again and again."""
        wait_s = _FIRST_POLL_S
        has_opened = False
        while not self._is_over_or_due():
            has_changed = yield from self._read_windows(self._entity_names())
            yield from self._read_rooms()
            if not has_opened:
                has_opened = True
                self._ladder.note_opened()
                self.transport = Transport.POLL
            wait_s = _FIRST_POLL_S if has_changed else min(wait_s * 1.5, _LONGEST_POLL_S)
            yield Pause(wait_s, self.wake)
        return has_opened

    def _is_over_or_due(self) -> bool:
        with self.lock:
            is_over = self._is_closed or not (self._windows or self._rooms)
        return is_over or self._ladder.is_websocket_due

    def _entity_names(self) -> set[str]:
        with self.lock:
            return {window.query.entity.name for window in self._windows.values()}

    def _read_windows(self, names: set[str]) -> Steps[bool]:
        """Read the windows of these entities. Return whether any has changed."""
        with self.lock:
            windows = [w for w in self._windows.values() if w.query.entity.name in names]
        has_changed = False
        for window in windows:
            try:
                query = window.query
                if window.is_window and query.limit is None:
                    query = replace(query, limit=WINDOW_ROWS)
                raws = yield from read_raw(self._core, query)
                with self.lock:
                    has_changed |= window.replace_rows(raws)
            except APIStatusError as error:
                if may_pass(error):
                    raise
                with self.lock:
                    self._end_window(window, error)
        return has_changed

    def _read_rooms(self) -> Steps[None]:
        yield from self._rejoin()
        with self.lock:
            rooms = [*self._rooms.values()]
            self._outbox.clear()
        for room in rooms:
            members = yield from read_members(self._core, room.name)
            with self.lock:
                room.replace_members(members)

    # --- Ends ---------------------------------------------------------------------------------

    def _lose(self, has_opened: bool) -> None:
        with self.lock:
            self._is_open = False
            self.transport = None
            self._outbox.clear()
            for window in self._windows.values():
                window.lose(is_reachable=has_opened)
            for room in self._rooms.values():
                room.lose()

    def _fail_all(self, error: PylonError) -> None:
        with self.lock:
            windows, rooms = [*self._windows.values()], [*self._rooms.values()]
            self._windows.clear()
            self._rooms.clear()
            for window in windows:
                window.fail(error)
            for room in rooms:
                room.fail(error)
