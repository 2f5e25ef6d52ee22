"""A shard: the newest state of a simulation, and inputs to it, over a socket of its own.

The socket lives as long as the `ShardLink` is open; after an end it connects again, with the token
of its reserved place if the server gave one. Only the newest state is kept. A connection that is
gone takes no inputs, since an input that comes late is worth nothing.

Invariants: everything happens under `lock`; only `run` writes to the socket. Bounds: 1,000 inputs
that wait to be sent, 1,000 refusals that nobody has read (the oldest go first). Called by both
shells: they run `run` in a thread or a task.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pylon_client.addresses import read_addresses, with_parameters
from pylon_client.auth import me
from pylon_client.effects import EffectFailed, Pause, Steps, Wake
from pylon_client.entities import encode, plain
from pylon_client.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    ClosedError,
    PylonError,
    SocketRefused,
)
from pylon_client.ladders import Ladder
from pylon_client.options import log
from pylon_client.requests import Core, current_token, may_pass
from pylon_client.sockets import HandshakeRefused, Message, SocketClosed, open_socket

QUEUED_INPUTS: Final = 1_000
_TICK_BYTES: Final = 8
_MAIN_PORT_PATH: Final = "/api/shards/ws"
# 1000: finished; 1008: refused; 1011: the simulation failed; the others: a wrong id, replaced.
_FINAL_CODES: Final = frozenset({1000, 1008, 1011, 4400, 4401, 4404, 4409})


@dataclass(frozen=True, slots=True)
class Refusal:
    """An input that the simulation has refused. `client_seq` is what `input` had returned."""

    client_seq: int | None
    reason: str


class _Text(msgspec.Struct):
    type: str = ""
    client_seq: int | None = None
    reason: str = ""
    token: str = ""


_TEXT: Final = msgspec.json.Decoder(_Text)


class ShardLink:
    """The connection to one shard. `notify` is called after each change."""

    def __init__(
        self, core: Core, shard_id: str, sid: str | None, make_wake: Callable[[], Wake]
    ) -> None:
        """
        Args:
            sid: the subscriber; the user's id without it.
        """
        self._core = core
        self._shard_id = shard_id
        self._sid = sid
        self.lock = threading.RLock()
        self.wake = make_wake()
        self.notify: Callable[[], None] = lambda: None
        self.state: Any = None
        self.tick = -1  # of the newest state
        self.version = 0  # counts the states
        self.is_open = False
        self.error: PylonError | None = None
        self._is_closed = False
        self._outbox: deque[bytes] = deque()
        self._client_seq = 0
        self._refusals: deque[Refusal] = deque(maxlen=QUEUED_INPUTS)
        self._seat: str | None = None
        self._ladder = Ladder()

    # --- For the shells, from any thread ------------------------------------------------------

    def send_input(self, value: Any) -> int:
        """Send an input, and return its number.

        Raises:
            APIConnectionError: there is no connection now, or too many inputs wait.
            SocketRefused, ClosedError: the shard has ended, or the client.
        """
        with self.lock:
            if self.error is not None:
                raise self.error
            if not self.is_open or len(self._outbox) >= QUEUED_INPUTS:
                raise APIConnectionError(f"the shard {self._shard_id} has no connection now")
            self._client_seq += 1
            self._outbox.append(encode({"input": plain(value), "client_seq": self._client_seq}))
            self.wake.set()
            return self._client_seq

    def take_refusals(self) -> list[Refusal]:
        """Return the refused inputs since the last call."""
        with self.lock:
            taken = [*self._refusals]
            self._refusals.clear()
            return taken

    def close(self) -> None:
        """End `run`."""
        with self.lock:
            self._is_closed = True
            self._fail(ClosedError("the shard is closed"))
            self.wake.set()

    # --- The life of the connection -------------------------------------------------------------

    def run(self) -> Steps[None]:
        """Keep the connection until it is closed or ends for good."""
        self._core.lifetime.add(self.wake)
        try:
            yield from self._run()
        finally:
            self._core.lifetime.remove(self.wake)
            with self.lock:
                self._fail(ClosedError("the client is closed"))
                self.wake.close()

    def _run(self) -> Steps[None]:
        failures = 0
        while self.error is None and not self._core.lifetime.is_closed:
            has_opened = False
            try:
                has_opened = yield from self._serve(failures)
            except (EffectFailed, HandshakeRefused, APIError) as ex:
                log.info("shard.failed shard=%s error=%s", self._shard_id, ex)
                if isinstance(ex, APIStatusError) and not may_pass(ex):
                    with self.lock:
                        self._fail(ex)
            with self.lock:
                self.is_open = False
                self._outbox.clear()
                self.notify()
            failures = 0 if has_opened else failures + 1
            if self.error is None:
                yield Pause(self._ladder.pause_s(), self.wake)

    def _serve(self, failures: int) -> Steps[bool]:
        core = self._core
        urls = yield from read_addresses(core)
        token = yield from current_token(core)
        if self._sid is None:
            self._sid = (yield from me(core)).user_id
        named = urls.get("shards")
        if not named or failures % 2:
            named = core.options.url.replace("http", "ws", 1) + _MAIN_PORT_PATH
        url = with_parameters(named, {"shard": self._shard_id, "sid": self._sid})
        seats = [] if self._seat is None else [f"seat.{self._seat}"]
        self._seat = None  # a token works once
        socket = yield from open_socket(url, token, self.wake, seats)
        self._ladder.note_opened()
        try:
            with self.lock:
                self.is_open = True
                self.notify()
            while not (self._is_closed or self._core.lifetime.is_closed):
                with self.lock:
                    texts = [*self._outbox]
                    self._outbox.clear()
                if texts:
                    yield from socket.send(texts)
                messages = yield from socket.read()
                with self.lock:
                    for message in messages:
                        self._receive(message)
        except SocketClosed as closed:
            log.info("shard.closed shard=%s code=%d", self._shard_id, closed.code)
            if closed.code in _FINAL_CODES:
                with self.lock:
                    self._fail(SocketRefused({"message": closed.reason or None}, closed.code))
        finally:
            yield from socket.close()
        self._ladder.note_ended()
        return True

    def _receive(self, message: Message) -> None:
        if message.is_binary:
            self.tick = int.from_bytes(message.data[:_TICK_BYTES], "big")
            self.state = msgspec.json.decode(message.data[_TICK_BYTES:])
            self.version += 1
            self.notify()
            return
        text = _TEXT.decode(message.data)
        if text.type == "input-rejected":
            self._refusals.append(Refusal(text.client_seq, text.reason))
            self.notify()
        elif text.type == "seat":
            self._seat = text.token

    def _fail(self, error: PylonError) -> None:
        if self.error is None:
            self.error = error
            self.notify()
