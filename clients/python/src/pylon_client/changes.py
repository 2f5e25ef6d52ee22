"""The stream of changes: every change that the caller may see, from a cursor on.

First the changes up to now are pulled, then the socket sends the others. Every change of the socket
is delivered at least once; a pull has the newest change of each row. The `seq` of a change is the
cursor to go on from. A snapshot (``since=0``) consists of inserts. All
but the last of them have seq 0, so that a reader who stops in between begins the snapshot again.

The stream has a socket of its own, which is read only when the application takes the next change.
So nothing queues up here: a slow application slows the server down, and the server may close the
socket (1013). The stream then goes on from its cursor, as after every other end of a connection.
Where no WebSocket opens, it takes server-sent events, then polls (`ladders`).

Called by both shells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from pylon_client.addresses import read_addresses, websocket_url, with_parameters
from pylon_client.effects import Deliver, EffectFailed, Pause, Request, Steps, Wake
from pylon_client.entities import Entity, encode
from pylon_client.errors import (
    APIConnectionError,
    APIStatusError,
    RowMismatch,
    SocketRefused,
)
from pylon_client.event_streams import open_events
from pylon_client.ladders import Ladder, Transport
from pylon_client.options import log
from pylon_client.requests import Core, current_token, may_pass, perform
from pylon_client.sockets import HandshakeRefused, SocketClosed, open_socket

T = TypeVar("T")

_FIRST_POLL_S: Final = 1.0
_LONGEST_POLL_S: Final = 15.0
_SESSION_ENDED: Final = 4401
_RESYNC: Final = 1012
_FATAL_CODES: Final = frozenset({1008, 4404})


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One change. `row` is the row after it, or None for a delete.

    `seq` is the cursor to go on from; 0 within a snapshot.
    """

    seq: int
    entity: str
    row_id: str
    kind: Literal["insert", "update", "delete"]
    row: T | None


class _Event(msgspec.Struct, gc=False):
    """A change on the wire, or another message, of which only `type` and `code` count."""

    seq: int = 0
    entity: str = ""
    row_id: str = ""
    kind: Literal["insert", "update", "delete", ""] = ""
    data: msgspec.Raw | UnsetType = UNSET
    type: str = ""


class _Cursor(msgspec.Struct):
    last_seq: int


class _Page(msgspec.Struct):
    changes: list[_Event]
    cursor: _Cursor
    has_more: bool


_EVENT: Final = msgspec.json.Decoder(_Event)
_PAGE: Final = msgspec.json.Decoder(_Page)


class Feed(Generic[T]):
    """The state of one stream of changes."""

    def __init__(
        self, core: Core, since: int | None, entities: Sequence[Entity[T]],
        make_wake: Callable[[], Wake],
    ) -> None:
        """
        Args:
            since: the cursor; 0: a snapshot first; None: from now on.
            entities: those to see; empty: all, with rows as dicts.
        """
        self._core = core
        self._by_name = {entity.name: entity for entity in entities}
        self._names = ",".join(self._by_name) or None
        self._plain: Entity[Any] = Entity("", dict[str, Any])
        self.cursor = since
        self._ladder = Ladder()
        self._make_wake = make_wake
        self._wake: Wake | None = None

    def run(self) -> Steps[None]:
        """Deliver changes until the client closes.

        Raises:
            ClosedError: the client is closed.
            ResyncRequired: the log no longer reaches back to the cursor.
            APIStatusError: the server refuses a pull for good.
            SocketRefused: the server closes the socket for good.
        """
        lifetime = self._core.lifetime
        wake = self._wake = self._make_wake()
        lifetime.add(wake)
        try:
            yield from self._run()
        finally:
            lifetime.remove(wake)
            wake.close()

    def _run(self) -> Steps[None]:
        if self.cursor is None:
            self.cursor = yield from self._find_head()
        while True:
            self._core.lifetime.check()
            # Only a pull says whether the log reaches back to the cursor.
            yield from self._pull()
            transport = self._ladder.next_transport()
            has_opened = False
            try:
                if transport is Transport.POLL:
                    yield from self._poll()
                    continue
                urls = yield from read_addresses(self._core)
                token = yield from current_token(self._core)
                if transport is Transport.WEBSOCKET:
                    steps = self._read_socket(urls, token)
                else:
                    steps = self._read_events(urls, token)
                has_opened = yield from steps
            except (EffectFailed, HandshakeRefused, APIConnectionError, APIStatusError) as ex:
                if isinstance(ex, APIStatusError) and not may_pass(ex):
                    raise
                log.info("changes.lost transport=%s error=%s", transport.value, ex)
            if has_opened:
                self._ladder.note_ended()
            else:
                self._ladder.note_failed()
            yield Pause(self._ladder.pause_s(), self._wake)

    # --- One transport each -------------------------------------------------------------------

    def _read_socket(self, urls: Any, token: str | None) -> Steps[bool]:
        """Deliver what a WebSocket sends. Return whether it had opened."""
        url = websocket_url(self._core, urls, self._ladder.failures)
        url = with_parameters(url, {"since": self.cursor, "entities": self._names})
        socket = yield from open_socket(url, token, self._wake)
        self._ladder.note_opened()
        try:
            while True:
                self._core.lifetime.check()
                messages = yield from socket.read()
                changes = self._take([message.data for message in messages])
                if changes:
                    yield Deliver(changes)
        except SocketClosed as closed:
            yield from self._judge_close(closed)
        except EffectFailed as failed:
            log.info("changes.lost transport=websocket error=%s", failed)
        finally:
            yield from socket.close()
        return True

    def _judge_close(self, closed: SocketClosed) -> Steps[None]:
        log.info("changes.closed code=%d reason=%s", closed.code, closed.reason)
        if closed.code in _FATAL_CODES:
            raise SocketRefused({"message": closed.reason or None}, closed.code) from closed
        if closed.code == _SESSION_ENDED:
            if not callable(self._core.session.source):
                raise SocketRefused(
                    {"code": "UNAUTHORIZED", "message": "the session has ended"}, closed.code
                ) from closed
            yield from current_token(self._core, anew=True)

    def _read_events(self, urls: Any, token: str | None) -> Steps[bool]:
        """Deliver what an event stream sends. Return whether it had opened."""
        if "sse" not in urls:
            return False
        url = with_parameters(urls["sse"], {"since": self.cursor, "entities": self._names})
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        stream = yield from open_events(url, headers, self._wake)
        self._ladder.note_opened()
        try:
            while not self._ladder.is_websocket_due:
                self._core.lifetime.check()
                changes = self._take((yield from stream.read(_LONGEST_POLL_S)))
                if changes:
                    yield Deliver(changes)
        except EffectFailed as failed:
            log.info("changes.lost transport=events error=%s", failed)
        finally:
            yield from stream.close()
        return True

    def _poll(self) -> Steps[None]:
        """Deliver what pulls return, until another transport is due."""
        wait_s = _FIRST_POLL_S
        self._ladder.note_opened()
        while not self._ladder.is_websocket_due:
            yield Pause(wait_s, self._wake)
            before = self.cursor
            yield from self._pull()
            wait_s = min(wait_s * 1.5, _LONGEST_POLL_S) if self.cursor == before else _FIRST_POLL_S

    # --- Pulls --------------------------------------------------------------------------------

    def _pull(self) -> Steps[None]:
        """Deliver what is behind the cursor. Waits while there is no network."""
        while True:
            path = with_parameters(
                "/api/sync/pull", {"since": self.cursor, "entities": self._names}
            )
            try:
                answer = yield from perform(self._core, Request("GET", path))
            except (APIConnectionError, APIStatusError) as error:
                if isinstance(error, APIStatusError) and not may_pass(error):
                    raise
                log.info("changes.pull_failed error=%s", error)
                yield Pause(self._ladder.pause_s(), self._wake)
                continue
            try:
                page = _PAGE.decode(answer.content)
            except msgspec.DecodeError as ex:
                raise RowMismatch(f"the answer of a pull has another form: {ex}") from ex
            is_snapshot = self.cursor == 0
            changes = [self._change(event) for event in page.changes]
            if is_snapshot:
                changes = [
                    Change(0, c.entity, c.row_id, c.kind, c.row) for c in changes[:-1]
                ] + changes[-1:]
            last_seq = max(page.cursor.last_seq, self.cursor or 0)
            if changes:
                yield Deliver(changes)
            self.cursor = last_seq
            if not page.has_more:
                return

    def _find_head(self) -> Steps[int]:
        """Return the cursor of now: the seq that a socket without changes names."""
        while True:
            try:
                urls = yield from read_addresses(self._core)
                token = yield from current_token(self._core)
                url = websocket_url(self._core, urls, self._ladder.failures)
                socket = yield from open_socket(with_parameters(url, {"changes": 0}), token)
                try:
                    yield from socket.send([encode({"type": "ping", "id": "head"})])
                    ends_at_s = time.monotonic() + self._core.options.timeout_s
                    while time.monotonic() < ends_at_s:
                        for message in (yield from socket.read()):
                            event = _EVENT.decode(message.data)
                            if event.type == "pong":
                                return event.seq
                finally:
                    yield from socket.close()
            except (EffectFailed, HandshakeRefused, SocketClosed) as ex:
                log.info("changes.head_failed error=%s", ex)
            self._ladder.failures += 1
            if self._ladder.failures > 2:
                raise APIConnectionError("no socket opens, so the cursor of now is not known; "
                                         "give since=")
            yield Pause(self._ladder.pause_s())

    # --- Decoding -----------------------------------------------------------------------------

    def _take(self, texts: Sequence[bytes]) -> list[Change[T]]:
        """Return the changes above the cursor, and advance it."""
        found: list[Change[T]] = []
        cursor = self.cursor or 0
        decode = _EVENT.decode
        for text in texts:
            event = decode(text)
            if event.seq > cursor and event.kind:
                cursor = event.seq
                found.append(self._change(event))
        self.cursor = cursor
        return found

    def _change(self, event: _Event) -> Change[T]:
        row: T | None = None
        if event.kind != "delete" and event.data is not UNSET:
            row = self._by_name.get(event.entity, self._plain).read(event.data)
        kind = event.kind or "update"
        return Change(event.seq, event.entity, event.row_id, kind, row)
