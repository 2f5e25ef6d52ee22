"""Tunnels of shards workers: a client of one node, served by the other, byte for byte.

The owner's side is a hub with the transports of the shards worker, over `TunnelSocket`s.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from pylon import limits
from pylon.auth.origin import Origins
from pylon.auth.sessions import ANONYMOUS_CALLER
from pylon.errors import AuthRequired, PylonError, SocketLimit, Unavailable
from pylon.runtime.raw_socket import RawSocket, take_over
from tests.support.cluster import Nodes
from tests.support.wait import run_greenlets_until
from workers.hub.connection import ClientSocket, Connection
from workers.hub.hub import Hub
from workers.hub.request import Request, parse
from workers.shards.tunnel_entries import EntryTransport, TunnelEntries
from workers.shards.tunnel_exits import ShardExits, TunnelSocket
from workers.sse.stream import RETRY, EventStreamTransport
from workers.ws import frames, protocol
from workers.ws.transport import WebSocketTransport

KEY = base64.b64encode(bytes(16)).decode()
UPGRADE = (
    f"GET /?shard=arena HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    "X-Forwarded-For: 192.0.2.7\r\n\r\n"
).encode()
STREAM = b"GET /stream HTTP/1.1\r\n\r\n"


class Owner:
    """The worker of the shard: answers each text with the same in capitals."""

    def __init__(self, nodes: Nodes) -> None:
        self.transport = WebSocketTransport("shards", 1 << 20, clock=nodes.clock)
        self.transport.on_text = self._on_text
        self.hub = Hub({}, self.transport, nodes.clock)
        self.streaming = EventStreamTransport(())
        self.streams = Hub({}, self.streaming, nodes.clock)
        self.requests: list[tuple[Request, bool]] = []
        self._handshakes = protocol.Handshakes(
            1, Origins(frozenset(), any_origin=False), "session", deflates=False
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
            self._connect(raw, self.streams, request, self.streaming.preamble, early)
            return None
        handshake = self._handshakes.read(request, on_main_port=on_main_port)
        self._connect(raw, self.hub, request, handshake.answer, early)
        return None

    def refusal(self, error: PylonError) -> bytes:
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
    """What the entries need of `SubscriberAdmission`."""

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


class Stage:
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
            self.nodes.links, admission, self.sockets, self.streams, 1, protocol.refusal
        )

    def open(self, *args: Any, **options: Any) -> bytes | None:
        return self.owner.open(*args, **options)

    def refusal(self, error: PylonError) -> bytes:
        return self.owner.refusal(error)

    def connect(
        self, data: bytes = UPGRADE, *, on_main_port: bool = False,
        receive_bytes: int | None = None,
    ) -> Client:
        client = Client(receive_bytes)
        request = parse(data, "10.0.0.1")
        assert request is not None
        self.entries.enter(
            self.nodes.home, request, client.raw, data[len(request.head):],
            on_main_port=on_main_port, is_stream=request.path == "/stream",
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


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    for hub in (made.sockets, made.streams, made.owner.hub, made.owner.streams):
        for connection in hub.connections:
            connection.abort()
    made.nodes.close()


def masked(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    assert size < 65_536
    head = bytes([0x80 | opcode])
    head += bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + payload  # a mask of zeros


def close_of(data: bytes) -> tuple[int, str]:
    """Return code and reason of the close frame at the end of `data`."""
    at = data.rindex(b"\x88")
    payload = data[at + 2 :]
    assert len(payload) == data[at + 1]
    return int.from_bytes(payload[:2], "big"), payload[2:].decode()


def gone(hub: Hub) -> Callable[[], bool]:
    return lambda: not len(hub)


# --- What passes ---------------------------------------------------------------------------


def test_the_owner_sees_the_request_its_address_and_its_port(stage: Stage) -> None:
    early = masked(frames.TEXT, b"early")
    client = stage.connect(UPGRADE + early, on_main_port=True)
    data = client.read_until(b"EARLY")
    assert data.startswith(b"HTTP/1.1 101 ") and data.endswith(frames.encode(1, b"EARLY"))
    (request, on_main_port), = stage.owner.requests
    assert on_main_port and request.head == UPGRADE and request.peer == "10.0.0.1"
    assert stage.owner.connection.address == "192.0.2.7" == stage.admission.addresses[0]


def test_frames_pass_both_ways_and_the_owners_close_code_arrives(stage: Stage) -> None:
    client, connection = stage.play()
    for number in range(50):
        client.send(frames.TEXT, b"a%d" % number)
    client.read_until(b"A49")
    assert client.data == b"".join(frames.encode(1, b"A%d" % number) for number in range(50))
    big = frames.encode(frames.BINARY, bytes(3_000_000))
    assert connection.send(big)
    client.data = b""
    run_greenlets_until("all came", lambda: len(client.read()) == len(big))
    connection.close(4404, 'no such shard "arena"')
    client.data = b""
    client.read_until(b"arena")
    assert close_of(client.data) == (4404, 'no such shard "arena"')
    client.send(frames.CLOSE, (4404).to_bytes(2, "big"))
    assert client.read_all() and not len(stage.owner.hub)
    client.socket.close()
    run_greenlets_until("the entry is gone", gone(stage.sockets))
    assert not stage.nodes.link().is_used


def test_an_event_stream_passes_and_ends(stage: Stage) -> None:
    client = stage.connect(STREAM)
    client.read_until(b": connected\n\n")
    stage.owner.connection.send(b"id: 1\ndata: {}\n\n")
    stage.owner.connection.close(1001, "bye", awaits_peer=False)
    assert client.read_all().endswith(b"id: 1\ndata: {}\n\n" + RETRY)
    run_greenlets_until("the owner's is gone", gone(stage.owner.streams))


@pytest.mark.parametrize(("path", "status", "code"), [
    ("/refuse", 401, "AUTH_REQUIRED"), ("/break", 500, "INTERNAL"), ("/x", 426, "BAD_UPGRADE"),
])
def test_a_refusal_of_the_owner_arrives_as_it_is(
    stage: Stage, path: str, status: int, code: str
) -> None:
    client = stage.connect(b"GET %b HTTP/1.1\r\n\r\n" % path.encode())
    head, _, body = client.read_all().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]["code"].startswith(code)


def test_a_client_that_leaves_is_gone_at_the_owner(stage: Stage) -> None:
    client, _ = stage.play()
    client.socket.close()
    run_greenlets_until("both are gone", lambda: not len(stage.owner.hub) + len(stage.sockets))


def test_a_frame_for_many_clients_is_sent_once(stage: Stage) -> None:
    played = [stage.play() for _ in range(10)]
    frame = frames.encode(frames.BINARY, b"x" * 60_000)
    for _, connection in played:
        assert connection.send(frame)
    tunnel: Any = played[0][1]._raw
    assert tunnel._tunnel._queue.size_bytes < 2 * len(frame)
    for client, _ in played:
        run_greenlets_until("it came", lambda: client.read() == frame)  # noqa: B023


def test_a_client_that_the_admission_refuses_stays_the_callers(stage: Stage) -> None:
    stage.admission.refusal = SocketLimit("too many")
    with pytest.raises(SocketLimit):
        stage.connect()
    assert not stage.nodes.link().is_used


# --- What fails ----------------------------------------------------------------------------


def test_a_node_that_vanishes_closes_its_clients_with_1012(stage: Stage) -> None:
    client, _ = stage.play()
    stream = stage.connect(STREAM)
    stream.read_until(b": connected\n\n")
    client.send(frames.TEXT, b"hello")
    client.read_until(b"HELLO")
    stage.nodes.clock.advance(limits.CLUSTER_DEAD_S + 0.1)
    stage.nodes.links.tick()
    data = client.read_all()
    assert data.startswith(frames.encode(1, b"HELLO"))
    assert close_of(data) == (1012, "the node of this shard is gone")
    assert stream.read_all().endswith(RETRY)
    stage.nodes.port.tick()
    run_greenlets_until("the owner's are gone", lambda: not (
        len(stage.owner.hub) + len(stage.owner.streams)
    ))


def test_a_client_whose_request_is_not_answered_gets_an_http_error(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.exits, "open", lambda tunnel, opening: None)
    client = stage.connect()
    gevent.sleep(0.05)
    stage.nodes.clock.advance(limits.CLUSTER_DEAD_S + 0.1)
    stage.nodes.links.tick()
    head, _, body = client.read_all().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert "does not answer" in json.loads(body)["error"]["message"]


def test_too_many_requests_that_wait_are_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SOCKETS_PENDING", 0)
    head = stage.connect().read_all()
    assert head.startswith(b"HTTP/1.1 503 ")
    monkeypatch.setattr(limits, "CLUSTER_TUNNELS", 0)
    assert stage.connect().read_all().startswith(b"HTTP/1.1 503 ")


def test_a_malformed_node_refuses_before_the_socket_is_taken(stage: Stage) -> None:
    request = parse(UPGRADE, "10.0.0.1")
    assert request is not None
    stage.nodes.url = "nonsense"
    with pytest.raises(Unavailable):
        stage.entries.enter(
            stage.nodes.home, request, Client().raw, b"", on_main_port=False, is_stream=False
        )
    assert not len(stage.sockets)


# --- Who is slow ---------------------------------------------------------------------------


def test_a_client_that_does_not_read_is_closed_with_1013_and_delays_nobody(stage: Stage) -> None:
    slow, slow_connection = stage.play(receive_bytes=4_096)
    quick, quick_connection = stage.play()
    frame = frames.encode(frames.BINARY, b"x" * 50_000)
    sent = 0
    (entry,) = [each for each in stage.sockets.connections if each._raw is slow.raw]
    while entry.is_open:
        slow_connection.send(frame)
        quick_connection.send(frame)
        sent += 1
        assert entry.outbox_bytes < limits.OUTBOX_BYTES + 3 * len(frame)
        assert sent < 1_000
        run_greenlets_until("the quick one has it", lambda: (
            len(quick.read()) == sent * len(frame)  # noqa: B023
        ))
    run_greenlets_until("the owner's is gone", lambda: stage.owner.hub.connections == [
        quick_connection
    ])
    slow.read_until(b"too slow")
    assert close_of(slow.data[-12:]) == (1013, "too slow")
    quick.send(frames.TEXT, b"still here")
    quick.read_until(b"STILL HERE")


def test_a_client_that_sends_too_fast_is_not_read(stage: Stage) -> None:
    client, connection = stage.play()
    texts: list[str] = []
    stage.owner.transport.on_text = lambda _, text: texts.append(text)
    connection.pause(1)
    chunk, sent = masked(frames.TEXT, b"x" * 30_000), 0

    def send() -> bool:
        """Send as much as the kernel takes, whole frames in the end."""
        nonlocal sent
        try:
            sent += client.socket.send(chunk[sent % len(chunk) :])
        except BlockingIOError:
            return False
        return sent % len(chunk) == 0

    for _ in range(1_000):
        if not send():
            gevent.sleep(0.001)
    (entry,) = stage.sockets.connections
    assert not entry._requested & 1, "the worker reads the client no more"
    inbox: Any = connection._raw
    waiting_bytes = sum(map(len, inbox._inbox))
    assert 0 < waiting_bytes <= limits.CLUSTER_WINDOW_BYTES + 65_536
    connection.resume(1)
    run_greenlets_until("the rest is sent", send)
    run_greenlets_until("all came", lambda: len(texts) == sent // len(chunk))
    assert set(texts) == {"x" * 30_000}


def test_a_node_that_does_not_read_fills_outboxes_and_then_closes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other node is frozen for a while: whoever is sent too much meanwhile is closed."""
    busy_client, busy = stage.play()
    calm_client, calm = stage.play()
    link: Any = stage.nodes.link()
    link._socket._watcher.stop()
    frame = frames.encode(frames.BINARY, b"x" * 200_000)
    count = 0
    while busy.is_open:
        busy.send(bytes(frame))
        busy.send(frame[:5] + frame[5:])  # another object
        count += 1
        gevent.sleep(0)
        assert count < 1_000
    assert busy.outbox_bytes <= len(frame) + 200
    calm.send(frames.encode(1, b"calm"))
    assert calm.is_open
    link._socket._watcher.start(link._socket._read)
    link._socket._look_again()
    calm_client.read_until(b"calm")
    run_greenlets_until("the close came", lambda: busy_client.read().endswith(b"too slow"))
    assert close_of(busy_client.data[-12:]) == (1013, "too slow")
    calm_client.send(frames.TEXT, b"still here")
    calm_client.read_until(b"STILL HERE")
