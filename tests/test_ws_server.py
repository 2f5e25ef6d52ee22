"""The ws worker, as a process, over real sockets: handshake, conversation, fan-out, replay."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import websocket

from pylon import limits
from pylon.bus.messages import CursorNote, SessionRevoked
from tests.hub_kit import (
    ADMIN_TOKEN,
    RawClient,
    Stage,
    Worker,
    WsClient,
    client_frame,
    drain,
    until,
)
from workers.ws import frames

CASES = json.loads((Path(__file__).parent / "corpora/ws/frames.json").read_text())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


@pytest.fixture
def ws(stage: Stage) -> Worker:
    return stage.start("ws", PYLON_SOCKETS_PER_IP="0")


def joined(client: WsClient) -> WsClient:
    """Wait until the server has answered a ping: it reads, and its replay has been sent."""
    client.say(frames.PING, b"joined?")
    while client.frame() != (frames.PONG, b"joined?"):
        pass
    return client


# --- Handshake -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/ws", "/any/where?x=1"])
def test_any_path_is_upgraded(ws: Worker, path: str) -> None:
    client = WsClient(ws.port, path=path)
    assert client.headers["upgrade"].lower() == "websocket"
    assert "sec-websocket-protocol" not in client.headers
    assert "sec-websocket-extensions" not in client.headers


def test_accept_key_of_the_rfc(ws: Worker) -> None:
    client = WsClient(ws.port, headers={"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
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
    client = WsClient(ws.port, headers={"Sec-WebSocket-Protocol": offered})
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
    client = joined(WsClient(ws.port, headers=headers))
    stage.write(stage.insert("Mine", text="ada's", ownerId="ada"))
    assert client.events(1) == [("insert", "ada's")]


def test_token_in_subprotocol_is_percent_decoded(stage: Stage, ws: Worker) -> None:
    item = "bearer." + ADMIN_TOKEN.replace(" ", "+", 1).replace(" ", "%20")
    client = joined(WsClient(ws.port, headers={"Sec-WebSocket-Protocol": item}))
    stage.write(stage.insert("Secret", text="for admins"))
    assert client.events(1) == [("insert", "for admins")]


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
    client = WsClient(ws.port, headers=headers, upgraded=False)
    body = json.loads(client.rest())
    assert client.status == 426
    assert client.headers["upgrade"] == "websocket"
    assert client.headers["sec-websocket-version"] == "13"
    assert body["error"]["code"] == "BAD_UPGRADE"


def test_http_1_0_and_post_get_426(ws: Worker) -> None:
    for request in (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
                    b"GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"):
        client = RawClient(ws.port)
        client.send(request)
        assert client.rest().startswith(b"HTTP/1.1 426 ")


def test_frames_sent_with_the_handshake_are_heard(ws: Worker) -> None:
    client = WsClient(ws.port, early=client_frame(frames.PING, b"early"))
    assert client.frame() == (frames.PONG, b"early")


def test_sockets_per_address_are_capped_and_freed(stage: Stage) -> None:
    ws = stage.start("ws", PYLON_SOCKETS_PER_IP="2")
    first, _ = joined(WsClient(ws.port)), joined(WsClient(ws.port))
    refused = WsClient(ws.port, upgraded=False)
    assert refused.status == 429
    assert json.loads(refused.rest())["error"]["code"] == "SOCKET_LIMIT"
    first.close()

    def has_room() -> bool:
        return WsClient(ws.port, upgraded=False).status == 101

    until(has_room, "a slot is free again")


def test_cap_counts_behind_trusted_proxies(stage: Stage) -> None:
    ws = stage.start("ws", PYLON_SOCKETS_PER_IP="1", PYLON_TRUST_PROXY_HOPS="1")
    statuses = [
        WsClient(ws.port, headers={"X-Forwarded-For": address}, upgraded=False)
        for address in ("10.0.0.1", "10.0.0.2", "6.6.6.6, 10.0.0.1")
    ]
    assert [client.status for client in statuses] == [101, 101, 429]


# --- Conversation ----------------------------------------------------------------------------


def test_ping_is_answered_once(ws: Worker) -> None:
    client = WsClient(ws.port)
    client.say(frames.PING, b"one")
    client.say(frames.PING, b"two")
    assert [client.frame(), client.frame()] == [(frames.PONG, b"one"), (frames.PONG, b"two")]


@pytest.mark.parametrize(
    "message",
    [b"not json", b"[]", b'{"type":"ping"}', b'{"type":"presence","event":"update","data":{}}',
     b'{"type":"topic","topic":"t","data":1}', b'{"type":"crdt-subscribe","entity":"E"}'],
)
def test_messages_are_ignored(ws: Worker, message: bytes) -> None:
    client = WsClient(ws.port)
    client.say(frames.TEXT, message)
    client.say(frames.BINARY, message)
    client.say(frames.PING, b"still there?")
    assert client.frame() == (frames.PONG, b"still there?")


@pytest.mark.parametrize(("sent", "answered"), [(1000, 1000), (1001, 1001), (3999, 3999)])
def test_close_is_answered_with_its_code(ws: Worker, sent: int, answered: int) -> None:
    client = WsClient(ws.port)
    client.say(frames.CLOSE, sent.to_bytes(2, "big") + b"bye")
    assert client.closed() == (answered, "bye")
    assert client.rest() == b""


def test_close_without_a_code_is_answered_without_one(ws: Worker) -> None:
    client = WsClient(ws.port)
    client.say(frames.CLOSE, b"")
    assert client.frame() == (frames.CLOSE, b"")
    assert client.rest() == b""


def test_message_above_the_limit_closes_1009_before_it_is_sent(stage: Stage) -> None:
    ws = stage.start("ws", PYLON_WS_MAX_MESSAGE_BYTES="1024")
    client = WsClient(ws.port)
    client.send(client_frame(frames.TEXT, b"x" * 100_000)[:14])
    assert client.closed()[0] == 1009
    assert client.rest() == b""


def test_corpus_over_the_wire(stage: Stage) -> None:
    """Each violation gets its close code, each close its answer; afterwards the server lives."""
    ws = stage.start("ws", PYLON_WS_MAX_MESSAGE_BYTES="1024", PYLON_SOCKETS_PER_IP="0")
    for case in CASES:
        ending = case["expect"][-1] if case["expect"] else ["none"]
        client = WsClient(ws.port)
        client.send(bytes.fromhex(case["hex"]))
        pings = [bytes.fromhex(e[1]) for e in case["expect"] if e[0] == "ping"]
        for payload in pings:
            assert client.frame() == (frames.PONG, payload), case["name"]
        if ending[0] == "violation":
            assert client.closed()[0] == ending[1], case["name"]
        elif ending[0] == "close":
            code = b"" if ending[1] is None else ending[1].to_bytes(2, "big")
            assert client.frame() == (frames.CLOSE, code + ending[2].encode()), case["name"]
        client.close()
    until(lambda: stage.metric(ws, "pylon_connections") == 0, "every socket is gone")
    assert joined(WsClient(ws.port)).status == 101


def test_the_library_of_others_gets_along(stage: Stage, ws: Worker) -> None:
    token, _ = stage.login("ada")
    client = websocket.create_connection(
        f"ws://127.0.0.1:{ws.port}/", subprotocols=[f"bearer.{token}"], timeout=20
    )
    client.ping("x")
    assert client.recv_data(control_frame=True) == (frames.PONG, b"x")
    stage.write(stage.insert("Public", text="hello"))
    event = json.loads(client.recv())
    assert event["seq"] > 0
    assert event["entity"] == "Public"
    client.close(status=1000)


# --- Fan-out ---------------------------------------------------------------------------------


def test_three_contexts_and_an_admin_get_what_they_may_see(stage: Stage, ws: Worker) -> None:
    ada, bob = (joined(WsClient(ws.port, token=stage.login(u)[0])) for u in ("ada", "bob"))
    admin, anonymous = joined(WsClient(ws.port, token=ADMIN_TOKEN)), joined(WsClient(ws.port))
    stage.write(
        stage.insert("Public", text="for all"),
        stage.insert("Mine", text="ada's", ownerId="ada"),
        stage.insert("Mine", text="nobody's", ownerId=None),
        stage.insert("Note", text="bob's note", ownerId="bob", shared=False),
        stage.insert("Note", text="shared note", ownerId="ada", shared=True),
        stage.insert("Member", text="members"),
        stage.insert("Secret", text="secret"),
        stage.insert("Public", text="end"),
    )
    seen = {
        name: [text for _, text in client.events(count)]
        for name, client, count in (
            ("ada", ada, 5), ("bob", bob, 5), ("admin", admin, 8), ("anonymous", anonymous, 3),
        )
    }
    assert seen == {
        "ada": ["for all", "ada's", "shared note", "members", "end"],
        "bob": ["for all", "bob's note", "shared note", "members", "end"],
        "admin": ["for all", "ada's", "nobody's", "bob's note", "shared note", "members",
                  "secret", "end"],
        "anonymous": ["for all", "shared note", "end"],
    }


def test_a_lost_view_is_a_delete_and_a_won_one_an_update(stage: Stage, ws: Worker) -> None:
    ada, bob = (joined(WsClient(ws.port, token=stage.login(u)[0])) for u in ("ada", "bob"))
    anonymous = joined(WsClient(ws.port))
    keyed = stage.insert("Mine", text="m", ownerId="ada")
    general = stage.insert("Note", text="n", ownerId="ada", shared=True)
    stage.write(keyed, general)
    stage.write(
        stage.update("Mine", keyed.row_id, ownerId="bob"),
        stage.update("Note", general.row_id, ownerId="bob", shared=False),
        stage.insert("Public", text="end"),
    )
    stage.write(stage.delete("Mine", keyed.row_id), stage.insert("Public", text="end 2"))
    assert ada.events(6) == [
        ("insert", "m"), ("insert", "n"), ("delete", "m"), ("delete", "n"), ("insert", "end"),
        ("insert", "end 2"),
    ]
    assert bob.events(6) == [
        ("insert", "n"), ("update", "m"), ("update", "n"), ("insert", "end"), ("delete", "m"),
        ("insert", "end 2"),
    ]
    assert anonymous.events(4) == [
        ("insert", "n"), ("delete", "n"), ("insert", "end"), ("insert", "end 2"),
    ]


def test_lost_batches_are_read_from_the_log(stage: Stage, ws: Worker) -> None:
    client = joined(WsClient(ws.port))
    stage.write(stage.insert("Public", text="1"))
    stage.write(stage.insert("Public", text="2"), publish=False)
    stage.write(stage.insert("Public", text="3"), stage.insert("Public", text="4"), publish=False)
    stage.write(stage.insert("Public", text="5"))
    assert [text for _, text in client.events(5)] == ["1", "2", "3", "4", "5"]


def test_a_lost_last_batch_is_found_by_asking(stage: Stage, ws: Worker) -> None:
    client = joined(WsClient(ws.port))
    stage.write(stage.insert("Public", text="nobody tells"), publish=False)
    assert client.events(1) == [("insert", "nobody tells")]  # within HEAD_CHECK_S


def test_a_batch_twice_is_sent_once(stage: Stage, ws: Worker) -> None:
    client = joined(WsClient(ws.port))
    batch = stage.write(stage.insert("Public", text="once"))
    stage.publisher.publish(batch)
    stage.write(stage.insert("Public", text="end"))
    assert [text for _, text in client.events(2)] == ["once", "end"]


def test_a_slow_client_is_closed_and_others_are_not_held_up(stage: Stage, ws: Worker) -> None:
    slow = joined(WsClient(ws.port, receive_buffer_bytes=4_096))
    quick = joined(WsClient(ws.port))
    body = "x" * 500_000
    for number in range(40):
        stage.write(stage.insert("Public", text=f"{number}{body}"))
        assert quick.events(1)[0][1].startswith(str(number))
        if stage.metric(ws, "pylon_slow_clients_total", action="closed"):
            break
    until(lambda: stage.metric(ws, "pylon_slow_clients_total", action="closed"), "overflow")
    while (received := slow.frame())[0] == frames.TEXT:
        pass
    assert received == (frames.CLOSE, (1013).to_bytes(2, "big") + b"too slow")
    stage.write(stage.insert("Public", text="after"))
    while quick.text()["data"]["text"] != "after":
        pass


# --- Replay ----------------------------------------------------------------------------------


def fill(stage: Stage, count: int) -> list[int]:
    """Insert `count` rows in one batch; their seqs."""
    batch = stage.write(*(stage.insert("Public", text=str(i)) for i in range(count)))
    return [event.seq for event in batch.events]


def test_replay_after_since(stage: Stage, ws: Worker) -> None:
    seqs = fill(stage, 20)
    client = WsClient(ws.port, path=f"/?since={seqs[9]}")
    assert [client.text()["seq"] for _ in range(10)] == seqs[10:]
    stage.write(stage.insert("Public", text="live"))
    assert client.events(1) == [("insert", "live")]


def test_long_replay_from_the_log_is_paced_and_meets_live_events(
    stage: Stage, ws: Worker
) -> None:
    seqs = [seq for _ in range(5) for seq in fill(stage, 900)]
    client = WsClient(ws.port, path=f"/?since={seqs[0]}", receive_buffer_bytes=4_096)
    stage.write(stage.insert("Public", text="live"))
    assert [client.text()["seq"] for _ in range(len(seqs) - 1)] == seqs[1:]
    assert client.events(1) == [("insert", "live")]


def test_replay_reads_what_is_older_than_the_tail(stage: Stage) -> None:
    seqs = fill(stage, 900) + fill(stage, 900)
    ws = stage.start("ws")
    client = WsClient(ws.port, path=f"/?since={seqs[99]}")
    assert [client.text()["seq"] for _ in range(1_700)] == seqs[100:]


def test_replay_after_the_session_s_note(stage: Stage, ws: Worker) -> None:
    token, session_id = stage.login("ada")
    seqs = fill(stage, 300)

    def first_seq() -> int:
        stage.tell(CursorNote(f"s:{session_id}", seqs[289]))
        stage.tell(CursorNote(f"s:{session_id}", seqs[294]))  # a later pull of another tab
        return int(WsClient(ws.port, token=token).text()["seq"])

    until(lambda: first_seq() == seqs[290], "the replay begins at the smallest noted cursor")


def test_replay_after_the_address_s_note(stage: Stage, ws: Worker) -> None:
    seqs = fill(stage, 300)

    def first_seq() -> int:
        stage.tell(CursorNote("ip:127.0.0.1", seqs[297]))
        return int(WsClient(ws.port).text()["seq"])

    until(lambda: first_seq() == seqs[298], "the replay begins at the noted cursor")


def test_replay_of_the_newest_without_a_note(stage: Stage, ws: Worker) -> None:
    seqs = fill(stage, 300)
    client = WsClient(ws.port)
    wanted = seqs[-limits.REPLAY_WITHOUT_NOTE_EVENTS:]
    assert [client.text()["seq"] for _ in wanted] == wanted


def test_replay_is_policy_filtered(stage: Stage, ws: Worker) -> None:
    row = stage.insert("Note", text="n", ownerId="ada", shared=True)
    seq = stage.write(row).events[0].seq
    stage.write(stage.update("Note", row.row_id, shared=False))
    stage.write(stage.insert("Mine", text="ada's", ownerId="ada"))
    stage.write(stage.insert("Public", text="end"))
    client = WsClient(ws.port, path=f"/?since={seq - 1}")
    assert client.events(3) == [("insert", "n"), ("delete", "n"), ("insert", "end")]
    again = WsClient(ws.port, path=f"/?since={seq}", token=stage.login("ada")[0])
    assert again.events(3) == [("update", "n"), ("insert", "ada's"), ("insert", "end")]


@pytest.mark.parametrize("ahead", [1, 10**12])
def test_a_cursor_ahead_of_the_log_must_resync(stage: Stage, ws: Worker, ahead: int) -> None:
    head = fill(stage, 3)[-1]
    client = WsClient(ws.port, path=f"/?since={head + ahead}")
    assert client.text() == {
        "type": "resync", "code": "RESYNC_REQUIRED", "oldest_seq": head + 1,
    }
    assert client.closed() == (1012, "resync required")


# --- Sessions, drain -------------------------------------------------------------------------


def test_a_revoked_session_loses_its_sockets(stage: Stage, ws: Worker) -> None:
    token, session_id = stage.login("ada")
    mine = [joined(WsClient(ws.port, token=token)) for _ in range(2)]
    other = joined(WsClient(ws.port, token=stage.login("ada")[0]))
    stage.logout(session_id)
    stage.tell(SessionRevoked(session_id))
    assert [client.closed() for client in mine] == [(4401, "session revoked")] * 2
    stage.write(stage.insert("Mine", text="still mine", ownerId="ada"))
    assert other.events(1) == [("insert", "still mine")]


def test_drain_sends_1001_waits_for_the_answer_and_exits_0(stage: Stage, ws: Worker) -> None:
    clients = [joined(WsClient(ws.port)) for _ in range(3)]
    ws.signal(signal.SIGUSR1)

    def refused() -> bool:
        try:
            WsClient(ws.port, upgraded=False)
        except (OSError, AssertionError):
            return True
        return False

    until(refused, "no new connections")
    stage.write(stage.insert("Public", text="kept"))
    assert [client.events(1) for client in clients] == [[("insert", "kept")]] * 3
    ws.signal(signal.SIGTERM)
    for client in clients:
        assert client.closed() == (1001, "server is going away")
        client.say(frames.CLOSE, (1001).to_bytes(2, "big"))
        assert client.rest() == b""
    assert ws.exit_code() == 0


def test_drain_does_not_wait_for_ever(stage: Stage, ws: Worker) -> None:
    silent = joined(WsClient(ws.port))
    assert drain(ws) == 0
    assert silent.closed()[0] == 1001


def test_the_worker_dies_with_its_supervisor_s_pid_wrong(stage: Stage) -> None:
    with pytest.raises(AssertionError, match="died"):
        stage.start("ws", PYLON_SUPERVISOR_PID="1")
    assert stage.workers[-1].exit_code() == 1


def test_connections_and_messages_are_counted(stage: Stage, ws: Worker) -> None:
    client = joined(WsClient(ws.port))
    client.say(frames.TEXT, b"{}")
    stage.write(stage.insert("Public", text="x"))
    assert client.events(1)
    until(lambda: stage.metric(ws, "pylon_messages_received_total") == 1, "received")
    assert stage.metric(ws, "pylon_messages_sent_total") >= 1
    assert stage.metric(ws, "pylon_connections") == 1
    client.say(frames.CLOSE, (1000).to_bytes(2, "big"))
    client.rest()
    client.close()
    until(lambda: stage.metric(ws, "pylon_connections_closed_total", code="1000") == 1, "closed")


