"""Tunnels of shards workers: a client of one node, served by the other, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from pylon import limits
from pylon.errors import SocketLimit, Unavailable
from tests.support.tunnels import ANSWER, STREAM, UPGRADE, Client, TunnelStage, masked
from tests.support.wait import run_greenlets_until
from workers.hub.hub import Hub
from workers.hub.request import parse
from workers.sse.stream import RETRY
from workers.ws import frames


@pytest.fixture
def stage() -> Iterator[TunnelStage]:
    made = TunnelStage()
    yield made
    for hub in (made.sockets, made.streams, made.owner.hub, made.owner.streams):
        for connection in hub.connections:
            connection.abort()
    made.nodes.close()


def close_of(data: bytes) -> tuple[int, str]:
    """Return code and reason of the close frame at the end of `data`."""
    at = data.rindex(b"\x88")
    payload = data[at + 2 :]
    assert len(payload) == data[at + 1]
    return int.from_bytes(payload[:2], "big"), payload[2:].decode()


def gone(hub: Hub) -> Callable[[], bool]:
    return lambda: not len(hub)


# --- What passes ---------------------------------------------------------------------------


def test_the_owner_sees_the_request_its_address_and_its_port(stage: TunnelStage) -> None:
    early = masked(frames.TEXT, b"early")
    client = stage.connect(UPGRADE + early, on_main_port=True)
    data = client.read_until(b"EARLY")
    assert data.startswith(b"HTTP/1.1 101 ") and data.endswith(frames.encode(1, b"EARLY"))
    (request, on_main_port), = stage.owner.requests
    assert on_main_port and request.head == UPGRADE and request.peer == "10.0.0.1"
    assert stage.owner.connection.address == "192.0.2.7" == stage.admission.addresses[0]


def test_frames_pass_both_ways_and_the_owners_close_code_arrives(stage: TunnelStage) -> None:
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


def test_an_event_stream_passes_and_ends(stage: TunnelStage) -> None:
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
    stage: TunnelStage, path: str, status: int, code: str
) -> None:
    client = stage.connect(b"GET %b HTTP/1.1\r\n\r\n" % path.encode())
    head, _, body = client.read_all().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]["code"].startswith(code)


def test_a_client_that_leaves_is_gone_at_the_owner(stage: TunnelStage) -> None:
    client, _ = stage.play()
    client.socket.close()
    run_greenlets_until("both are gone", lambda: not len(stage.owner.hub) + len(stage.sockets))


def test_a_frame_for_many_clients_is_sent_once(stage: TunnelStage) -> None:
    played = [stage.play() for _ in range(10)]
    frame = frames.encode(frames.BINARY, b"x" * 60_000)
    for _, connection in played:
        assert connection.send(frame)
    tunnel: Any = played[0][1]._raw
    assert tunnel._tunnel._queue.size_bytes < 2 * len(frame)
    for client, _ in played:
        run_greenlets_until("it came", lambda: client.read() == frame)  # noqa: B023


def test_a_client_that_the_admission_refuses_stays_the_callers(stage: TunnelStage) -> None:
    stage.admission.refusal = SocketLimit("too many")
    with pytest.raises(SocketLimit):
        stage.connect()
    assert not stage.nodes.link().is_used


# --- What fails ----------------------------------------------------------------------------


def test_a_node_that_vanishes_closes_its_clients_with_1012(stage: TunnelStage) -> None:
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


def test_a_client_whose_request_is_not_answered_is_told_so_all_the_same(
    stage: TunnelStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.exits, "open", lambda tunnel, opening: None)
    client, stream = stage.connect(), stage.connect(STREAM)
    gevent.sleep(0.05)
    stage.nodes.clock.advance(limits.CLUSTER_DEAD_S + 0.1)
    stage.nodes.links.tick()
    data = client.read_all()
    assert data.startswith(ANSWER) and close_of(data)[0] == 1012
    head, _, body = stream.read_all().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert "is gone" in json.loads(body)["error"]["message"]


def test_too_many_requests_that_wait_are_refused(
    stage: TunnelStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SOCKETS_PENDING", 0)
    assert close_of(stage.connect().read_all()) == (1013, "UNAVAILABLE")
    monkeypatch.setattr(limits, "CLUSTER_TUNNELS", 0)
    assert close_of(stage.connect().read_all()) == (1013, "UNAVAILABLE")
    assert stage.connect(STREAM).read_all().startswith(b"HTTP/1.1 503 ")


def test_a_malformed_node_refuses_before_the_socket_is_taken(stage: TunnelStage) -> None:
    request = parse(UPGRADE, "10.0.0.1")
    assert request is not None
    stage.nodes.url = "nonsense"
    with pytest.raises(Unavailable):
        stage.entries.enter(
            stage.nodes.home, request, Client().raw, b"", on_main_port=False, answer=b""
        )
    assert not len(stage.sockets)


# --- Who is slow ---------------------------------------------------------------------------


def test_a_client_that_does_not_read_is_closed_with_1013_and_delays_nobody(
    stage: TunnelStage,
) -> None:
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


def test_a_client_that_sends_too_fast_is_not_read(stage: TunnelStage) -> None:
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
    stage: TunnelStage, monkeypatch: pytest.MonkeyPatch
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
