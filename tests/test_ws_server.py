"""The ws worker, as a process, over real sockets: handshake, conversation, drain."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import websocket

from pylon.bus.messages import SessionRevoked
from tests.support.stage import ADMIN_TOKEN, Stage, Worker, connect_at_head, drain
from tests.support.stores import TestStore
from tests.support.wait import WAIT_S, wait_until
from tests.support.websocket_client import WebSocketClient, client_frame
from tests.support.wire import Wire
from workers.ws import frames

pytestmark = pytest.mark.stores

CASES = json.loads((Path(__file__).parent / "corpora/ws/frames.json").read_text())


@pytest.fixture(scope="module")
def stage(
    tested_store: TestStore, processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Shared: rows of earlier tests are replayed to later clients, until they have joined."""
    made = Stage(tmp_path_factory.mktemp("ws"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def ws(stage: Stage) -> Worker:
    return stage.start("ws", PYLON_SOCKETS_PER_IP="0")


@pytest.mark.parametrize("path", ["/", "/ws", "/any/where?x=1"])
def test_any_path_is_upgraded(ws: Worker, path: str) -> None:
    client = WebSocketClient(ws.port, path=path)
    assert client.headers["upgrade"].lower() == "websocket"
    assert "sec-websocket-protocol" not in client.headers
    assert "sec-websocket-extensions" not in client.headers


def test_accept_key_of_the_rfc(ws: Worker) -> None:
    client = WebSocketClient(ws.port, headers={"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
    assert client.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("offered", "echoed"),
    [
        ("bearer.pylon_nobody", "bearer.pylon_nobody"),
        ("chat, bearer.a%20b+c ,bearer.second", "bearer.a%20b+c"),
        ("bearer.%zz", "bearer.%zz"),
        ("chat", None),
    ],
)
def test_subprotocol_is_echoed_verbatim(ws: Worker, offered: str, echoed: str | None) -> None:
    client = WebSocketClient(ws.port, headers={"Sec-WebSocket-Protocol": offered})
    assert client.headers.get("sec-websocket-protocol") == echoed


@pytest.mark.parametrize("how", ["header", "subprotocol", "header wins"])
def test_token_sources(stage: Stage, ws: Worker, how: str) -> None:
    token, _ = stage.login("ada")
    headers = {
        "header": {"Authorization": f"Bearer {token}"},
        "subprotocol": {"Sec-WebSocket-Protocol": f"bearer.{quote(token, safe='')}"},
        "header wins": {
            "Authorization": f"Bearer {token}", "Sec-WebSocket-Protocol": "bearer.nobody",
        },
    }[how]
    client = connect_at_head(stage, ws, headers=headers)
    stage.write(stage.insert("Mine", text="ada's", ownerId="ada"))
    assert client.read_events(1) == [("insert", "ada's")]


def test_token_in_subprotocol_is_percent_decoded(stage: Stage, ws: Worker) -> None:
    item = "bearer." + ADMIN_TOKEN.replace(" ", "+", 1).replace(" ", "%20")
    client = connect_at_head(stage, ws, headers={"Sec-WebSocket-Protocol": item})
    stage.write(stage.insert("Secret", text="for admins"))
    assert client.read_events(1) == [("insert", "for admins")]


@pytest.mark.parametrize(
    "headers",
    [
        {"Upgrade": ""},
        {"Upgrade": "h2c"},
        {"Connection": "keep-alive"},
        {"Sec-WebSocket-Version": ""},
        {"Sec-WebSocket-Version": "8"},
        {"Sec-WebSocket-Key": ""},
        {"Sec-WebSocket-Key": "short"},
        {"Sec-WebSocket-Key": "not base64!!!!!!!!!!!!!!"},
    ],
)
def test_what_is_no_handshake_gets_426(ws: Worker, headers: dict[str, str]) -> None:
    client = WebSocketClient(ws.port, headers=headers, upgraded=False)
    body = json.loads(client.read_rest())
    assert client.status == 426
    assert client.headers["upgrade"] == "websocket"
    assert client.headers["sec-websocket-version"] == "13"
    assert body["error"]["code"] == "BAD_UPGRADE"


def test_http_1_0_and_post_get_426(ws: Worker) -> None:
    for request in (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
                    b"GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"):
        client = Wire(ws.port)
        client.send(request)
        assert client.read_rest().startswith(b"HTTP/1.1 426 ")


def test_frames_sent_with_the_handshake_are_heard(ws: Worker) -> None:
    client = WebSocketClient(ws.port, early=client_frame(frames.PING, b"early"))
    assert client.read_control() == (frames.PONG, b"early")


def test_sockets_per_address_are_capped_and_freed(own_stage: Stage) -> None:
    ws = own_stage.start("ws", PYLON_SOCKETS_PER_IP="2")
    first, _ = connect_at_head(own_stage, ws), connect_at_head(own_stage, ws)
    refused = WebSocketClient(ws.port, upgraded=False)
    assert refused.status == 429
    assert json.loads(refused.read_rest())["error"]["code"] == "SOCKET_LIMIT"
    first.close()

    def has_room() -> bool:
        return WebSocketClient(ws.port, upgraded=False).status == 101

    wait_until("a slot is free again", has_room)


def test_cap_counts_behind_trusted_proxies(own_stage: Stage) -> None:
    ws = own_stage.start("ws", PYLON_SOCKETS_PER_IP="1", PYLON_TRUST_PROXY_HOPS="1")
    statuses = [
        WebSocketClient(ws.port, headers={"X-Forwarded-For": address}, upgraded=False)
        for address in ("10.0.0.1", "10.0.0.2", "6.6.6.6, 10.0.0.1")
    ]
    assert [client.status for client in statuses] == [101, 101, 429]


def test_ping_is_answered_once(ws: Worker) -> None:
    client = WebSocketClient(ws.port)
    client.send_frame(frames.PING, b"one")
    client.send_frame(frames.PING, b"two")
    assert client.read_control() == (frames.PONG, b"one")
    assert client.read_control() == (frames.PONG, b"two")


@pytest.mark.parametrize(
    "message",
    [b"not json", b"[]", b'{"type":"ping"}', b'{"type":"presence","event":"update","data":{}}',
     b'{"type":"topic","topic":"t","data":1}', b'{"type":"crdt-subscribe","entity":"E"}'],
)
def test_messages_are_ignored(ws: Worker, message: bytes) -> None:
    client = WebSocketClient(ws.port)
    client.send_frame(frames.TEXT, message)
    client.send_frame(frames.BINARY, message)
    client.send_frame(frames.PING, b"still there?")
    assert client.read_control() == (frames.PONG, b"still there?")


@pytest.mark.parametrize(("sent", "answered"), [(1000, 1000), (1001, 1001), (3999, 3999)])
def test_close_is_answered_with_its_code(ws: Worker, sent: int, answered: int) -> None:
    client = WebSocketClient(ws.port)
    client.send_frame(frames.CLOSE, sent.to_bytes(2, "big") + b"bye")
    assert client.read_close() == (answered, "bye")
    assert client.read_rest() == b""


def test_close_without_a_code_is_answered_without_one(ws: Worker) -> None:
    client = WebSocketClient(ws.port)
    client.send_frame(frames.CLOSE, b"")
    assert client.read_control() == (frames.CLOSE, b"")
    assert client.read_rest() == b""


def test_message_above_the_limit_closes_1009_before_it_is_sent(own_stage: Stage) -> None:
    ws = own_stage.start("ws", PYLON_WS_MAX_MESSAGE_BYTES="1024")
    client = WebSocketClient(ws.port)
    client.send(client_frame(frames.TEXT, b"x" * 100_000)[:14])
    assert client.read_close()[0] == 1009
    assert client.read_rest() == b""


def test_corpus_over_the_wire(own_stage: Stage) -> None:
    """Each violation gets its close code, each close its answer; afterwards the server lives."""
    ws = own_stage.start("ws", PYLON_WS_MAX_MESSAGE_BYTES="1024", PYLON_SOCKETS_PER_IP="0")
    for case in CASES:
        ending = case["expect"][-1] if case["expect"] else ["none"]
        offer = {"Sec-WebSocket-Extensions": "permessage-deflate"} if "unpacks" in case else {}
        client = WebSocketClient(ws.port, headers=offer)
        client.send(bytes.fromhex(case["hex"]))
        pings = [bytes.fromhex(e[1]) for e in case["expect"] if e[0] == "ping"]
        for payload in pings:
            assert client.read_control() == (frames.PONG, payload), case["name"]
        if ending[0] == "violation":
            assert client.read_close()[0] == ending[1], case["name"]
        elif ending[0] == "close":
            code = b"" if ending[1] is None else int(ending[1]).to_bytes(2, "big")
            assert client.read_control() == (frames.CLOSE, code + ending[2].encode()), case["name"]
        client.close()
    wait_until("every socket is gone", lambda: own_stage.metric(ws, "pylon_connections") == 0)
    assert connect_at_head(own_stage, ws).status == 101


def test_the_library_of_others_gets_along(stage: Stage, ws: Worker) -> None:
    token, _ = stage.login("ada")
    client = websocket.create_connection(
        f"ws://127.0.0.1:{ws.port}/?since={stage.engine.head}",
        subprotocols=[f"bearer.{token}"], timeout=WAIT_S,
    )
    client.ping("x")
    assert client.recv_data(control_frame=True) == (frames.PONG, b"x")
    stage.write(stage.insert("Public", text="hello"))
    event = json.loads(client.recv())
    assert event["seq"] > 0
    assert event["entity"] == "Public"
    client.close(status=1000)


def test_a_revoked_session_loses_its_sockets(own_stage: Stage, own_ws: Worker) -> None:
    token, session_id = own_stage.login("ada")
    mine = [connect_at_head(own_stage, own_ws, token=token) for _ in range(2)]
    other = connect_at_head(own_stage, own_ws, token=own_stage.login("ada")[0])
    own_stage.logout(session_id)
    own_stage.tell(SessionRevoked(session_id))
    assert [client.read_close() for client in mine] == [(4401, "session revoked")] * 2
    own_stage.write(own_stage.insert("Mine", text="still mine", ownerId="ada"))
    assert other.read_events(1) == [("insert", "still mine")]


def test_drain_sends_1001_waits_for_the_answer_and_exits_0(
    own_stage: Stage, own_ws: Worker
) -> None:
    clients = [connect_at_head(own_stage, own_ws) for _ in range(3)]
    own_ws.signal(signal.SIGUSR1)

    def refused() -> bool:
        try:
            WebSocketClient(own_ws.port, upgraded=False)
        except (OSError, AssertionError):
            return True
        return False

    wait_until("no new connections", refused)
    own_stage.write(own_stage.insert("Public", text="kept"))
    assert [client.read_events(1) for client in clients] == [[("insert", "kept")]] * 3
    own_ws.signal(signal.SIGTERM)
    for client in clients:
        assert client.read_close() == (1001, "server is going away")
        client.send_frame(frames.CLOSE, (1001).to_bytes(2, "big"))
        assert client.read_rest() == b""
    assert own_ws.exit_code() == 0


def test_drain_does_not_wait_for_ever(own_stage: Stage, own_ws: Worker) -> None:
    silent = connect_at_head(own_stage, own_ws)
    assert drain(own_ws) == 0
    assert silent.read_close()[0] == 1001


def test_the_worker_dies_with_its_supervisor_s_pid_wrong(own_stage: Stage) -> None:
    with pytest.raises(AssertionError, match="died"):
        own_stage.start("ws", PYLON_SUPERVISOR_PID="1")
    assert own_stage.workers[-1].exit_code() == 1


def test_connections_and_messages_are_counted(own_stage: Stage, own_ws: Worker) -> None:
    client = connect_at_head(own_stage, own_ws)
    client.send_frame(frames.TEXT, b"{}")
    own_stage.write(own_stage.insert("Public", text="x"))
    assert client.read_events(1)
    wait_until(
        "received",
        lambda: own_stage.metric(own_ws, "pylon_messages_received_total", type="ignored") == 1,
    )
    assert own_stage.metric(own_ws, "pylon_messages_sent_total") >= 1
    assert own_stage.metric(own_ws, "pylon_connections") == 1
    client.send_frame(frames.CLOSE, (1000).to_bytes(2, "big"))
    client.read_rest()
    client.close()
    wait_until(
        "closed",
        lambda: own_stage.metric(own_ws, "pylon_connections_closed_total", code="1000") == 1,
    )


def test_new_sockets_of_an_address_are_rated(own_stage: Stage) -> None:
    ws = own_stage.start(
        "ws", PYLON_SOCKETS_PER_IP="0", PYLON_RATE_LIMIT_MAX="3", PYLON_TRUST_PROXY_HOPS="1"
    )

    def opened(address: str, token: str | None = None) -> WebSocketClient:
        headers = {"X-Forwarded-For": address}
        return WebSocketClient(ws.port, headers=headers, token=token, upgraded=False)

    assert [opened("192.0.2.1").status for _ in range(3)] == [101] * 3
    refused = opened("192.0.2.1")
    assert (refused.status, refused.headers["retry-after"]) == (429, "20")
    assert json.loads(refused.read_rest())["error"]["code"] == "RATE_LIMITED"
    assert opened("192.0.2.2").status == 101
    assert opened("192.0.2.1", ADMIN_TOKEN).status == 101
