"""The control socket: the client and the server against each other, and against nonsense."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon import limits
from pylon.control import ControlClient
from pylon.errors import InternalError, InvalidData, NotRunning, PolicyDenied, Unavailable
from supervisor.control import ClientLeft, ControlServer, Dialogue, Line, SendLine
from tests.support.wait import WAIT_S


def count(request: Line, send_line: SendLine) -> Line:
    for n in range(int(request["to"])):
        send_line({"n": n})
    return {"total": request["to"]}


def deny(_request: Line, _send_line: SendLine) -> Line:
    raise PolicyDenied("no", hint="ask", entity="Todo")


def broken(_request: Line, _send_line: SendLine) -> Line:
    raise ZeroDivisionError("secret detail")


def disk(_request: Line, _send_line: SendLine) -> Line:
    raise OSError(28, "No space left on device")


class Blocking:
    """An answer that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, _request: Line, _send_line: SendLine) -> Line:
        self.entered.release()
        assert self.go_on.wait(WAIT_S)
        return {"waited": True}


@pytest.fixture
def blocking() -> Blocking:
    return Blocking()


@pytest.fixture
def server(tmp_path: Path, blocking: Blocking) -> Iterator[ControlServer]:
    answers = {"count": count, "deny": deny, "broken": broken, "disk": disk, "wait": blocking}
    made = ControlServer(tmp_path / "control.sock", answers)
    made.start()
    yield made
    blocking.go_on.set()
    made.close()


@pytest.fixture
def client(server: ControlServer, tmp_path: Path) -> ControlClient:
    assert server is not None
    return ControlClient(tmp_path / "control.sock", 10.0)


def test_answers_stream_and_end(client: ControlClient) -> None:
    assert list(client.call("count", to=2)) == [{"n": 0}, {"n": 1}, {"total": 2, "done": True}]
    assert client.ask("count", to=0) == {"total": 0, "done": True}


def test_errors_arrive_as_themselves(client: ControlClient) -> None:
    with pytest.raises(PolicyDenied) as denied:
        client.ask("deny")
    assert (denied.value.hint, denied.value.details) == ("ask", {"entity": "Todo"})
    with pytest.raises(InvalidData, match="known: count"):
        client.ask("nope")
    with pytest.raises(InternalError) as defect:
        client.ask("broken")
    assert "secret" not in defect.value.message
    with pytest.raises(InternalError, match="No space left"):
        client.ask("disk")
    assert client.ask("count", to=1)["total"] == 1


def test_the_socket_is_private(client: ControlClient, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o600
    assert client.ask("count", to=0)["done"]


@pytest.mark.parametrize("sent", [
    b"\n", b"not json\n", b"[]\n", b"1\n", b"\xff\xfe\n", b"x" * (limits.CONTROL_LINE_BYTES + 1),
])
def test_nonsense_is_refused(client: ControlClient, tmp_path: Path, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(tmp_path / "control.sock"))
        sock.sendall(sent)
        answer = json.loads(sock.makefile("rb").readline())
    assert (answer["error"]["code"], answer["done"]) == ("INVALID_DATA", True)
    assert client.ask("count", to=0)["done"]


def test_connections_are_bounded(client: ControlClient, blocking: Blocking, tmp_path: Path) -> None:
    def wait() -> None:
        waited.append(ControlClient(tmp_path / "control.sock", 20.0).ask("wait"))

    waited: list[Line] = []
    threads = [threading.Thread(target=wait) for _ in range(limits.CONTROL_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert blocking.entered.acquire(timeout=WAIT_S)
    with pytest.raises(Unavailable):
        client.ask("count", to=0)
    blocking.go_on.set()
    for thread in threads:
        thread.join()
    assert len(waited) == limits.CONTROL_CONNECTIONS


def test_a_client_that_leaves_harms_nobody(client: ControlClient, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "control.sock"))
        sock.sendall(b'{"cmd": "count", "to": 100000}\n')
    assert client.ask("count", to=1)["total"] == 1


def test_close_gives_open_connections_their_last_line(
    server: ControlServer, client: ControlClient, blocking: Blocking
) -> None:
    answers: list[Line] = []
    thread = threading.Thread(target=lambda: answers.append(client.ask("wait")))
    thread.start()
    assert blocking.entered.acquire(timeout=WAIT_S)
    threading.Timer(0.1, blocking.go_on.set).start()
    server.close()
    server.close()
    thread.join(10)
    assert answers == [{"waited": True, "done": True}]
    with pytest.raises(NotRunning):
        client.ask("count", to=0)


def test_a_missing_or_silent_or_dying_supervisor_is_not_running(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="No supervisor listens"):
        ControlClient(tmp_path / "nobody.sock").ask("ping")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()
        with pytest.raises(NotRunning, match="said nothing"):
            ControlClient(tmp_path / "s.sock", 0.05).ask("ping")
        listener.accept()[0].close()

        def die_half_way() -> None:
            conn, _ = listener.accept()
            with conn:
                conn.recv(100)
                conn.sendall(b'{"step": 1}\n{"st')

        thread = threading.Thread(target=die_half_way)
        thread.start()
        seen = []
        with pytest.raises(NotRunning, match="without a last answer"):
            for line in ControlClient(tmp_path / "s.sock", 5).call("stop"):
                seen.append(line)
        thread.join()
        assert seen == [{"step": 1}]


def test_a_dialogue_goes_both_ways(tmp_path: Path) -> None:
    heard: list[Line | None] = []
    ended = threading.Event()

    def talk(request: Line, dialogue: Dialogue) -> Line:
        dialogue.send_line({"hello": request["name"], "pid": dialogue.peer_pid})
        heard.append(dialogue.read_line(10))
        heard.append(dialogue.read_line(10))
        heard.append(dialogue.read_line(0.0))
        return {"sum": 3}

    def left(_request: Line, dialogue: Dialogue) -> Line:
        with pytest.raises(ClientLeft):
            dialogue.read_line(10)
        ended.set()
        return {}

    made = ControlServer(tmp_path / "s.sock", {}, {"talk": talk, "left": left})
    made.start()
    client = ControlClient(tmp_path / "s.sock", WAIT_S)
    with client.open_dialogue("talk", name="x") as dialogue:
        assert dialogue.receive_line() == {"hello": "x", "pid": os.getpid()}
        assert dialogue.poll_line() is None
        dialogue.send_line(n=1)
        dialogue.send_line(n=2)
        assert dialogue.receive_line() == {"sum": 3, "done": True}
        with pytest.raises(NotRunning):
            dialogue.receive_line()
    assert heard == [{"n": 1}, {"n": 2}, None]
    with client.open_dialogue("left"):
        pass
    assert ended.wait(WAIT_S)
    with client.open_dialogue("talk") as dialogue, pytest.raises(InternalError):
        dialogue.receive_line()  # a request without a name is a defect of the talk above
    made.close()
    with pytest.raises(NotRunning):
        client.open_dialogue("talk")
