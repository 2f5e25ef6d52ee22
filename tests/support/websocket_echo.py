"""An echo on the product's own WebSocket: its acceptor, handshake, parser, transport and
connections; only what is done with a message is different. Conformance suites talk to it.

`python -m tests.support.websocket_echo FD MAX_MESSAGE_BYTES [deflate]` serves on the listening
socket FD.
"""

# ruff: noqa: E402  (the patch must come before every other import)
from pylon.runtime.gevent_patch import patch
from pylon.runtime.raw_socket import RawSocket

patch()

import socket
import sys
from typing import Final

import gevent.event

from pylon import limits
from pylon.auth.origin import Origins
from pylon.auth.sessions import ANONYMOUS_CALLER
from pylon.auth_context import Caller
from pylon.clock import SystemClock
from pylon.errors import PylonError
from workers.hub.acceptor import Acceptor
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.hub.request import Request
from workers.ws import frames, protocol
from workers.ws.transport import WebSocketTransport

OUTBOX_BYTES: Final = 64 * 1024 * 1024  # a suite may send several large messages before it reads


class EchoHandler:
    def __init__(self, hub: Hub, transport: WebSocketTransport, deflates: bool) -> None:
        self._hub = hub
        self._transport = transport
        origins = Origins(allowed=frozenset(), any_loopback=True)
        self._handshakes = protocol.Handshakes(0, origins, "session", deflates=deflates)

    def open(
        self, request: Request, raw: RawSocket, early: bytes, *, on_main_port: bool
    ) -> None:
        """Talk to a client."""
        handshake = self._handshakes.read(request, on_main_port=on_main_port)
        caller: Caller = ANONYMOUS_CALLER
        connection = Connection(raw, self._transport, self._hub, caller, handshake.address)
        connection.deflate_window = handshake.deflate_window
        self._hub.add(connection)
        connection.send(handshake.answer)
        if connection.is_open:
            connection.start(early)

    def refusal(self, error: PylonError, request: Request | None) -> bytes:
        """See `protocol.refusal`."""
        return protocol.refusal(error)


def main(listener: socket.socket, max_message_bytes: int, deflates: bool) -> None:
    """Serve until the process is killed."""
    limits.OUTBOX_BYTES = OUTBOX_BYTES  # type: ignore[misc]
    limits.OUTBOX_FRAMES = 1_000_000  # type: ignore[misc]
    transport = WebSocketTransport("ws", max_message_bytes)

    def say(connection: Connection, opcode: int, payload: bytes) -> None:
        frame = frames.encode(opcode, payload)
        connection.send(transport.compress(frame, connection.deflate_window))

    transport.on_text = lambda connection, text: say(connection, frames.TEXT, text.encode())
    transport.on_binary = lambda connection, data: say(connection, frames.BINARY, data)
    clock = SystemClock()
    hub = Hub({}, transport, clock)
    Acceptor(listener, EchoHandler(hub, transport, deflates), clock).start()
    print("ready", flush=True)
    gevent.event.Event().wait()


if __name__ == "__main__":
    main(
        socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3:] == ["deflate"]
    )
