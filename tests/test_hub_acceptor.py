"""workers.hub.acceptor: requests that are slow, cut, too many, refused; over real sockets."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from pylon import limits
from pylon.clock import ManualClock
from pylon.errors import Draining, PylonError
from pylon.runtime.raw_socket import RawSocket
from tests.support.wait import run_greenlets_until
from workers.hub import refusals
from workers.hub.acceptor import Acceptor
from workers.hub.request import Request

pytestmark = pytest.mark.stores

HEAD = b"GET /?since=1 HTTP/1.1\r\nHost: x\r\n\r\n"


class Handler:
    """Echoes what it got, and keeps the sockets."""

    def __init__(self) -> None:
        self.taken: list[RawSocket] = []
        self.error: Exception | None = None

    def open(
        self, request: Request, raw: RawSocket, early: bytes, *, on_main_port: bool
    ) -> None:
        if self.error is not None:
            raise self.error
        raw.send(b"%b|%b|%d" % (request.query.encode(), early, on_main_port))
        self.taken.append(raw)

    def refusal(self, error: PylonError, request: Request | None) -> bytes:
        return refusals.refusal(error)


class AcceptorStage:
    """An acceptor whose time goes as it is told."""

    def __init__(self) -> None:
        self.handler = Handler()
        self.clock = ManualClock()
        self.acceptor = Acceptor(socket.create_server(("127.0.0.1", 0)), self.handler, self.clock)
        self.acceptor.start()
        self.clients: list[socket.socket] = []

    def client(self, data: bytes = b"") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.acceptor.port))
        made.setblocking(False)
        self.clients.append(made)
        if data:
            made.send(data)
        return made

    def close(self) -> None:
        self.acceptor.close()
        for sock in (*self.clients, *self.handler.taken):
            sock.close()


@pytest.fixture
def stage() -> Iterator[AcceptorStage]:
    made = AcceptorStage()
    yield made
    made.close()


def said(client: socket.socket, size: int = 65_536) -> bytes:
    """What comes next; empty at the end."""
    got: list[bytes] = []

    def came() -> bool:
        try:
            got.append(client.recv(size))
        except BlockingIOError:
            return False
        except ConnectionResetError:
            got.append(b"")
        return True

    run_greenlets_until("the acceptor has said something", came)
    return got[0]


def test_a_request_in_one_piece_with_what_follows_it(stage: AcceptorStage) -> None:
    assert said(stage.client(HEAD + b"early")) == b"since=1|early|0"


def test_a_request_byte_by_byte(stage: AcceptorStage) -> None:
    client = stage.client()
    for at in range(len(HEAD)):
        client.send(HEAD[at:at + 1])
        gevent.sleep(0)
    client.send(b"late")  # for whoever has the socket now
    assert said(client).startswith(b"since=1|")
    assert len(stage.handler.taken) == 1


def test_a_request_that_does_not_come_is_cut_and_one_that_came_is_not(stage: AcceptorStage) -> None:
    slow, silent, done = stage.client(HEAD[:-1]), stage.client(), stage.client(HEAD)
    assert said(done) == b"since=1||0"
    stage.clock.advance(limits.SOCKET_HEADER_S - 1)
    later = stage.client(HEAD[:-1])
    later.send(b"")
    run_greenlets_until("three arrive", lambda: len(stage.acceptor.pending) == 3)
    stage.clock.advance(1)
    assert said(slow) == b""
    assert said(silent) == b""
    later.send(HEAD[-1:])
    assert said(later) == b"since=1||0"


def test_an_acceptor_without_a_deadline_has_no_timer(stage: AcceptorStage) -> None:
    timer = stage.acceptor._timer
    assert said(stage.client(HEAD)) == b"since=1||0"
    assert not timer.active
    stage.client(HEAD[:-1])
    run_greenlets_until("one arrives", lambda: len(stage.acceptor.pending) == 1)
    assert timer.active
    stage.clock.advance(limits.SOCKET_HEADER_S)
    run_greenlets_until("it is cut, and the timer ends", lambda: not timer.active)
    assert not stage.acceptor.pending


def test_silent_connections_do_not_keep_others_out(
    stage: AcceptorStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SOCKETS_PENDING", 3)
    silent = [stage.client() for _ in range(4)]
    assert said(silent[0]) == b"", "the oldest is cut"
    assert said(stage.client(HEAD)) == b"since=1||0"
    silent[3].send(HEAD)
    assert said(silent[3]) == b"since=1||0"


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"nonsense\r\n\r\n", 400), (b"GET / HTTP/1.1\nHost: x\n\n", 400),
     (b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000, 400)],
)
def test_what_is_no_request_is_refused(stage: AcceptorStage, data: bytes, status: int) -> None:
    answer = said(stage.client(data))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "INVALID_REQUEST"


def test_a_refused_client_can_read_why_though_it_goes_on_sending(stage: AcceptorStage) -> None:
    stage.handler.error = Draining("not now")
    client = stage.client(HEAD)
    answer = said(client)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in answer
    for _ in range(20):
        client.send(b"x" * 1_000)  # a reset would destroy the answer for one that reads late
        gevent.sleep(0.001)
    assert said(client) == b"", "our side has ended"
    silent = stage.client(HEAD)
    assert said(silent).startswith(b"HTTP/1.1 503 ")
    run_greenlets_until("two leave", lambda: len(stage.acceptor.refused) == 2)
    stage.clock.advance(limits.SOCKET_CLOSE_S)
    run_greenlets_until("none leaves", lambda: not stage.acceptor.refused)


def test_a_defect_of_the_handler_harms_one_client(stage: AcceptorStage) -> None:
    stage.handler.error = ZeroDivisionError()
    assert said(stage.client(HEAD)).startswith(b"HTTP/1.1 500 ")
    stage.handler.error = None
    assert said(stage.client(HEAD)) == b"since=1||0"


def test_without_descriptors_clients_wait(stage: AcceptorStage) -> None:
    assert said(stage.client(HEAD)) == b"since=1||0"
    client = stage.client(HEAD)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    try:
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass  # none is left
        gevent.sleep(0.01)
        assert len(stage.handler.taken) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    assert said(client) == b"since=1||0"


def test_an_adopted_connection_is_of_the_main_port(stage: AcceptorStage) -> None:
    client, ours = socket.socketpair()
    client.setblocking(False)
    stage.acceptor.add_passed_socket(RawSocket(fileno=ours.detach()), HEAD[:9])
    client.send(HEAD[9:] + b"rest")
    assert said(client) == b"since=1|rest|1"
    client.close()
