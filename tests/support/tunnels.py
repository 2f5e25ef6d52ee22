"""Two nodes in one process, and clients of the one that the other serves through tunnels.

The owner's side is a hub with the transports of the shards worker, over `TunnelSocket`s. Used by
the tests of tunnels.
"""

from __future__ import annotations

import base64
import socket
from typing import Any

from pylon.auth.origin import Origins
from pylon.auth.sessions import ANONYMOUS_CALLER
from pylon.errors import AuthRequired, PylonError
from pylon.runtime.raw_socket import RawSocket, take_over
from tests.support.cluster import Nodes
from tests.support.wait import run_greenlets_until
from workers.hub.connection import ClientSocket, Connection
from workers.hub.hub import Hub
from workers.hub.request import Request, parse
from workers.shards.tunnel_entries import EntryTransport, TunnelEntries
from workers.shards.tunnel_exits import ShardExits, TunnelSocket
from workers.sse.stream import EventStreamTransport
from workers.ws import frames, protocol
from workers.ws.transport import WebSocketTransport

KEY = base64.b64encode(bytes(16)).decode()
UPGRADE = (
    f"GET /?shard=arena HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    "X-Forwarded-For: 192.0.2.7\r\n\r\n"
).encode()
STREAM = b"GET /stream HTTP/1.1\r\n\r\n"


ANSWER = b"HTTP/1.1 101 the entry's own\r\n\r\n"


class Owner:
    """The worker of the shard: answers each text with the same in capitals."""

    def __init__(self, nodes: Nodes) -> None:
        self.transport = WebSocketTransport("shards", 1 << 20, clock=nodes.clock)
        self.transport.on_text = self._on_text
        self.hub = Hub({}, self.transport, nodes.clock)
        self.streaming = EventStreamTransport()
        self.streams = Hub({}, self.streaming, nodes.clock)
        self.requests: list[tuple[Request, bool]] = []
        self._handshakes = protocol.Handshakes(
            1, Origins(frozenset()), "session", deflates=False
        )

    def open(
        self, request: Request, raw: TunnelSocket, early: bytes, *, on_main_port: bool
    ) -> bytes | None:
        self.requests.append((request, on_main_port))
        if request.path == "/refuse":
            raise AuthRequired("log in first")
        if request.path == "/break":
            raise RuntimeError("a defect")
        if request.path == "/stream":
            self._connect(raw, self.streams, request, self.streaming.stream_head(()), early)
            return None
        handshake = self._handshakes.read(request, on_main_port=on_main_port)
        self._connect(raw, self.hub, request, handshake.answer, early)
        return None

    def refusal(self, error: PylonError, request: Request | None) -> bytes:
        return protocol.refusal(error)

    @property
    def connection(self) -> Connection:
        (found,) = (*self.hub.connections, *self.streams.connections)
        return found

    @staticmethod
    def _connect(
        raw: ClientSocket, hub: Hub, request: Request, answer: bytes, early: bytes
    ) -> None:
        connection = Connection(raw, hub.transport, hub, ANONYMOUS_CALLER, request.address(1))
        hub.add(connection)
        connection.send(answer)
        connection.start(early)

    @staticmethod
    def _on_text(connection: Connection, text: str) -> None:
        connection.send(frames.encode(frames.TEXT, text.upper().encode()))


class Admission:
    """The part of `SubscriberAdmission` that the entries use."""

    def __init__(self) -> None:
        self.refusal: PylonError | None = None
        self.addresses: list[str] = []

    def serve(self, hub: Hub) -> None:
        pass

    def enter_tunnel(self, raw: RawSocket, address: str, hub: Hub) -> Connection:
        if self.refusal is not None:
            raise self.refusal
        self.addresses.append(address)
        connection = Connection(raw, hub.transport, hub, ANONYMOUS_CALLER, address)
        hub.add(connection)
        return connection


class Client:
    """The end of a client that node A has accepted."""

    def __init__(self, receive_bytes: int | None = None) -> None:
        self.socket, ours = socket.socketpair()
        self.socket.setblocking(False)
        if receive_bytes is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, receive_bytes)
        self.raw = take_over(ours)
        self.data = b""
        self.is_closed = False

    def send(self, opcode: int, payload: bytes) -> None:
        self.socket.sendall(masked(opcode, payload))

    def read(self) -> bytes:
        """Read what has come."""
        try:
            while chunk := self.socket.recv(1 << 20):
                self.data += chunk
            self.is_closed = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.is_closed = True
        return self.data

    def read_until(self, part: bytes) -> bytes:
        run_greenlets_until(f"{part!r} came", lambda: part in self.read())
        return self.data

    def read_all(self) -> bytes:
        def ended() -> bool:
            self.read()
            return self.is_closed

        run_greenlets_until("the connection has ended", ended)
        return self.data


class TunnelStage:
    """Both nodes, and the entries of node A."""

    def __init__(self) -> None:
        self.exits = ShardExits(self)
        self.nodes = Nodes(self.exits)
        self.owner = Owner(self.nodes)
        self.admission = Admission()
        self.sockets = Hub({}, EntryTransport(is_stream=False), self.nodes.clock)
        self.streams = Hub({}, EntryTransport(is_stream=True), self.nodes.clock)
        admission: Any = self.admission
        self.entries = TunnelEntries(
            self.nodes.links, admission, self.sockets, self.streams, 1, self.owner.refusal
        )

    def open(self, *args: Any, **options: Any) -> bytes | None:
        return self.owner.open(*args, **options)

    def refusal(self, error: PylonError, request: Request | None) -> bytes:
        return self.owner.refusal(error, request)

    def connect(
        self, data: bytes = UPGRADE, *, on_main_port: bool = False,
        receive_bytes: int | None = None,
    ) -> Client:
        client = Client(receive_bytes)
        request = parse(data, "10.0.0.1")
        assert request is not None
        self.entries.enter(
            self.nodes.home, request, client.raw, data[len(request.head):],
            on_main_port=on_main_port, answer=None if request.path == "/stream" else ANSWER,
        )
        return client

    def play(self, **options: Any) -> tuple[Client, Connection]:
        """A WebSocket client after its handshake, and the owner's connection."""
        before = set(self.owner.hub.connections)
        client = self.connect(**options)
        client.read_until(b"\r\n\r\n")
        client.data = b""
        (connection,) = set(self.owner.hub.connections) - before
        return client, connection


def masked(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    assert size < 65_536
    head = bytes([0x80 | opcode])
    head += bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + payload  # a mask of zeros
