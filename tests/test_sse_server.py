"""The sse worker, as a process, over raw sockets: bytes on the wire, tokens, cursors, drain."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from pylon import limits
from pylon.bus.messages import SessionRevoked
from tests.support.stage import ADMIN_TOKEN, Stage, Worker
from tests.support.wait import wait_until
from tests.support.wire import Wire, parse_head
from workers.sse.stream import KEEPALIVE

pytestmark = pytest.mark.stores

HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\n"
    b"Connection: keep-alive\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"x-frame-options: DENY\r\n"
    b"x-xss-protection: 1; mode=block\r\n"
    b"referrer-policy: strict-origin-when-cross-origin\r\n"
    b"permissions-policy: accelerometer=(), camera=(), geolocation=(), gyroscope=(), "
    b"microphone=(), payment=(), usb=()\r\n"
    b"vary: Origin\r\n"
    b"%b"
    b"X-Accel-Buffering: no\r\n"
    b"\r\n"
    b": connected\n\n"
)
PAGE = "https://app.example.com"
OF_PAGE = (
    b"access-control-allow-origin: https://app.example.com\r\n"
    b"access-control-allow-credentials: true\r\n"
)


@pytest.fixture
def sse(stage: Stage) -> Worker:
    return stage.start("sse")


class Stream(Wire):
    """An EventSource that shows its bytes."""

    def __init__(
        self, port: int, path: str = "/events", method: str = "GET", *, greeted: bool = True,
        receive_buffer_bytes: int | None = None, **headers: str,
    ) -> None:
        super().__init__(port, receive_buffer_bytes=receive_buffer_bytes)
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        self.head = self.read_until(b": connected\n\n" if greeted else b"\r\n\r\n")

    def read_until(self, end: bytes) -> bytes:
        """Return everything up to `end` but keep-alive comments, whose turn comes at any time."""
        while True:
            found = super().read_until(end)
            if found != KEEPALIVE:
                return found

    def read_rest(self) -> bytes:
        """Return everything until the server ends the stream, but keep-alive comments."""
        return super().read_rest().replace(KEEPALIVE, b"")

    def event(self) -> tuple[int, Any]:
        """The next event: its id and its JSON."""
        block = self.read_until(b"\n\n").decode()
        if block.startswith(":"):
            return self.event()
        name, data = block.rstrip("\n").split("\n")
        assert name.startswith("id: ")
        assert data.startswith("data: ")
        return int(name[4:]), json.loads(data[6:])


def test_head_and_event_byte_for_byte(stage: Stage, sse: Worker) -> None:
    stream = Stream(sse.port)
    of_page = Stream(sse.port, Origin=PAGE)
    event = stage.write(stage.insert("Public", text="zwei\nZeilen")).events[0]
    assert stream.head == HEAD % OF_PAGE
    assert of_page.head == HEAD % OF_PAGE
    assert Stream(sse.port, Origin="https://evil.example").head == HEAD % b""
    assert stream.read_until(b"\n\n") == b"id: %d\ndata: %b\n\n" % (event.seq, event.wire())
    assert b"\\n" in event.wire()


def test_any_path_is_a_stream(sse: Worker) -> None:
    for path in ("/", "/a/b?x=1", "/events"):
        assert Stream(sse.port, path).head == HEAD % OF_PAGE


def test_head_has_the_headers_of_a_stream_and_ends(sse: Worker) -> None:
    stream = Stream(sse.port, method="HEAD", greeted=False)
    expected = (HEAD % OF_PAGE).removesuffix(b": connected\n\n")
    assert stream.head == expected.replace(b"keep-alive", b"close")
    assert stream.read_rest() == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE"])
def test_another_method_is_405_with_allow(sse: Worker, method: str) -> None:
    stream = Stream(sse.port, method=method, greeted=False, Content_Length="5", Origin=PAGE)
    status, headers = parse_head(stream.head)
    assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert headers["access-control-allow-origin"] == "https://app.example.com"
    assert json.loads(stream.read_rest())["error"]["code"] == "METHOD_NOT_ALLOWED"


@pytest.mark.parametrize("role", ["ws", "sse", "shards"])
def test_a_refusal_of_head_has_no_body(stage: Stage, role: str) -> None:
    worker = stage.start(role)
    stream = Stream(worker.port, "/api/shards/a/connect", "HEAD", greeted=False)
    assert b"\r\nContent-Length: " in stream.head or role == "sse"
    assert stream.read_rest() == b""


def test_a_request_body_is_left_alone(sse: Worker) -> None:
    stream = Stream(sse.port, "/", Content_Length="5", greeted=False)
    stream.send(b"hello")
    assert stream.read_until(b": connected\n\n")


def test_a_client_that_goes_on_sending_is_cut(stage: Stage, sse: Worker) -> None:
    stream, other = Stream(sse.port), Stream(sse.port)
    with pytest.raises(OSError):
        for _ in range(100 * limits.SSE_IGNORED_BYTES // 65_536):
            stream.sock.sendall(b"x" * 65_536)
    stage.write(stage.insert("Public", text="goes on"))
    assert other.event()[1]["data"]["text"] == "goes on"


def test_options_is_a_preflight(sse: Worker) -> None:
    stream = Stream(sse.port, method="OPTIONS", greeted=False, Origin=PAGE)
    status, headers = parse_head(stream.head)
    assert status == 204
    assert headers["access-control-max-age"] == "600"
    assert headers["access-control-allow-origin"] == "https://app.example.com"
    assert headers["access-control-allow-credentials"] == "true"
    assert headers["access-control-allow-methods"] == "GET, OPTIONS"
    assert "Last-Event-ID" in headers["access-control-allow-headers"]
    assert stream.read_rest() == b""


def test_in_dev_mode_the_pages_of_this_machine_may_read(stage: Stage) -> None:
    sse = stage.start("sse", PYLON_CORS_ORIGIN="*", PYLON_DEV_MODE="true")
    for origin, named in (("http://localhost:5173", True), ("http://evil.example", False)):
        head = Stream(sse.port, Origin=origin).head.partition(b"\r\n\r\n")[0]
        _, headers = parse_head(head)
        assert headers.get("access-control-allow-origin") == (origin if named else None)


def test_token_sources_and_anonymous(stage: Stage, sse: Worker) -> None:
    token, _ = stage.login("ada")
    streams = [
        Stream(sse.port, Authorization=f"Bearer {token}"),
        Stream(sse.port, f"/events?token={token}"),
        Stream(sse.port, Cookie=f"a=b; hub_session={token}", Origin=PAGE),
        Stream(sse.port, Cookie=f"a=b; hub_session={token}", Sec_Fetch_Site="same-origin"),
    ]
    anonymous = [
        Stream(sse.port, "/events?token=pylon_nobody"),
        Stream(sse.port, f"/events?token={ADMIN_TOKEN.replace(' ', '+')}"),
        Stream(sse.port, Cookie=f"hub_session={token}"),
        Stream(sse.port, Cookie=f"hub_session={token}", Origin="https://evil.example"),
        Stream(sse.port, f"/events?token={token}", Authorization="Bearer "),
    ]
    admin = Stream(sse.port, Authorization=f"Bearer {ADMIN_TOKEN}")
    stage.write(
        stage.insert("Mine", text="ada's", ownerId="ada"),
        stage.insert("Secret", text="secret"),
        stage.insert("Public", text="end"),
    )
    for stream in streams:
        assert [stream.event()[1]["data"]["text"] for _ in range(2)] == ["ada's", "end"]
    for stream in anonymous:
        assert stream.event()[1]["data"]["text"] == "end"
    assert [admin.event()[1]["entity"] for _ in range(3)] == ["Mine", "Secret", "Public"]


def test_a_lost_view_is_a_delete(stage: Stage, sse: Worker) -> None:
    row = stage.insert("Note", text="n", ownerId="ada", shared=True)
    stream = Stream(sse.port)
    stage.write(row)
    stage.write(stage.update("Note", row.row_id, shared=False))
    assert [stream.event()[1]["kind"] for _ in range(2)] == ["insert", "delete"]


def test_replay_by_last_event_id_and_since(stage: Stage, sse: Worker) -> None:
    rows = [stage.insert("Public", text=str(i)) for i in range(300)]
    seqs = [event.seq for event in stage.write(*rows).events]
    stage.mark(seqs[-1])
    for stream in (
        Stream(sse.port, Last_Event_ID=str(seqs[9])),
        Stream(sse.port, f"/events?since={seqs[9]}"),
        Stream(sse.port, "/events?since=3", Last_Event_ID=str(seqs[9])),
    ):
        assert [stream.event()[0] for _ in range(290)] == seqs[10:]
    for stream in (Stream(sse.port), Stream(sse.port, Last_Event_ID="nonsense")):
        assert stream.event()[0] == seqs[100]  # the newest 200


def test_replay_after_a_note(stage: Stage, sse: Worker) -> None:
    token, session_id = stage.login("ada")
    seqs = [e.seq for e in stage.write(*(stage.insert("Public") for _ in range(300))).events]
    stage.add_hint(session_id, seqs[289])
    stage.mark(seqs[-1])  # other nodes have no newer hint
    assert Stream(sse.port, f"/events?token={token}").event()[0] == seqs[290]


def test_a_new_worker_reads_the_notes_of_workers_that_have_died(stage: Stage) -> None:
    seqs = [e.seq for e in stage.write(*(stage.insert("Public") for _ in range(300))).events]
    stage.mark(seqs[-1])
    stage.add_hint(None, seqs[297])
    sse = stage.start("sse")
    assert Stream(sse.port).event()[0] == seqs[298]


def test_a_cursor_that_cannot_be_served_is_410(stage: Stage, sse: Worker) -> None:
    head = stage.write(stage.insert("Public")).events[0].seq
    stream = Stream(sse.port, Last_Event_ID=str(head + 5), greeted=False, Origin=PAGE)
    status, headers = parse_head(stream.head)
    assert status == 410
    assert headers["content-type"] == "application/json"
    assert headers["access-control-allow-origin"] == "https://app.example.com"
    body = json.loads(stream.read_rest())
    assert len(json.dumps(body, separators=(",", ":"))) == int(headers["content-length"])
    assert body["error"]["code"] == "RESYNC_REQUIRED"
    assert body["error"]["oldest_seq"] == head + 1


def test_a_closed_client_is_noticed_at_once_and_frees_its_slot(stage: Stage) -> None:
    sse = stage.start("sse", PYLON_SOCKETS_PER_IP="1")
    first = Stream(sse.port)
    refused = Stream(sse.port, greeted=False)
    assert parse_head(refused.head)[0] == 429
    assert json.loads(refused.read_rest())["error"]["code"] == "SOCKET_LIMIT"
    first.close()
    wait_until(
        "a free slot",
        lambda: Stream(sse.port, greeted=False).head.startswith(b"HTTP/1.1 200"),
    )


def test_a_slow_stream_ends_and_another_goes_on(stage: Stage, sse: Worker) -> None:
    slow, quick = Stream(sse.port, receive_buffer_bytes=4_096), Stream(sse.port)
    body = "x" * 500_000
    for number in range(40):
        stage.write(stage.insert("Public", text=f"{number}{body}"))
        assert quick.event()[1]["data"]["text"].startswith(str(number))
        if stage.metric(sse, "pylon_slow_clients_total", action="closed"):
            break
    wait_until("overflow", lambda: stage.metric(sse, "pylon_slow_clients_total", action="closed"))
    assert slow.read_rest().endswith(b"\n\n")


def test_a_revoked_session_ends_its_stream(stage: Stage, sse: Worker) -> None:
    token, session_id = stage.login("ada")
    stream = Stream(sse.port, f"/events?token={token}")
    stage.logout(session_id)
    stage.tell(SessionRevoked(session_id))
    assert stream.read_rest() == b""


def test_drain_says_when_to_come_back(stage: Stage, sse: Worker) -> None:
    streams = [Stream(sse.port) for _ in range(3)]
    sse.signal(signal.SIGTERM)
    for stream in streams:
        assert stream.read_rest() == b"retry: 1000\n\n"
        stream.close()
    assert sse.exit_code() == 0
