"""The fault proxy itself: each fault does what its name says."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.wait import WAIT_S, wait_until

UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets, in threads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(conn: socket.socket) -> None:
            with conn:
                try:
                    while piece := conn.recv(65536):
                        conn.sendall(piece)
                except OSError:
                    return

        def accept() -> None:
            while True:
                try:
                    conn = listener.accept()[0]
                except OSError:
                    return
                threading.Thread(target=serve, args=(conn,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.fixture
def proxy(echo_port: int) -> Iterator[FaultProxy]:
    with FaultProxy([("127.0.0.1", echo_port)]) as made:
        yield made


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.ports[0]), timeout=WAIT_S)


def is_echoed(conn: socket.socket, text: bytes = b"hello") -> bool:
    try:
        conn.sendall(text)
        return conn.recv(65536) == text
    except (ConnectionError, TimeoutError):
        return False


def is_refused(proxy: FaultProxy) -> bool:
    try:
        with connect(proxy) as conn:
            return not is_echoed(conn)
    except ConnectionError:
        return True


def test_bytes_pass_until_they_are_cut(proxy: FaultProxy) -> None:
    with connect(proxy) as conn:
        assert is_echoed(conn)
        proxy.cut()
        assert not is_echoed(conn)
    with connect(proxy) as conn:
        assert is_echoed(conn)
    assert proxy.accepted_connections == 2


def test_stalled_bytes_go_on_when_the_fault_ends(proxy: FaultProxy) -> None:
    with connect(proxy) as conn:
        assert is_echoed(conn)
        proxy.set(stall=True)
        conn.settimeout(0.2)
        assert not is_echoed(conn, b"later")
        conn.settimeout(WAIT_S)
        proxy.heal()
        assert conn.recv(65536) == b"later"


def test_refused_connections_are_reset(proxy: FaultProxy) -> None:
    assert not is_refused(proxy)
    proxy.set(refuse=True)
    assert is_refused(proxy)


def test_only_websockets_are_blocked_and_cut(proxy: FaultProxy) -> None:
    with connect(proxy) as plain, connect(proxy) as upgraded:
        assert is_echoed(plain)
        assert is_echoed(upgraded, UPGRADE)
        proxy.cut(only_websockets=True)
        assert not is_echoed(upgraded)
        assert is_echoed(plain)
    proxy.set(block_websocket=True)
    with connect(proxy) as plain, connect(proxy) as upgraded:
        assert is_echoed(plain)
        upgraded.sendall(UPGRADE)
        assert upgraded.recv(65536).startswith(b"HTTP/1.1 403 ")


def test_a_lost_answer_reached_the_server(proxy: FaultProxy) -> None:
    proxy.set(lose_answers=True)
    with connect(proxy) as conn:
        assert not is_echoed(conn)
    wait_until("the connection is gone", lambda: proxy.open_connections == 0)


def test_the_control_port_sets_faults_and_names_unknown_ones(proxy: FaultProxy) -> None:
    def ask(method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
        control = http.client.HTTPConnection("127.0.0.1", proxy.control_port, timeout=WAIT_S)
        control.request(method, path, None if body is None else json.dumps(body))
        answer = control.getresponse()
        return answer.status, json.loads(answer.read())

    assert ask("POST", "/faults", {"refuse": True})[1]["faults"]["refuse"] is True  # type: ignore[index]
    assert is_refused(proxy)
    assert ask("POST", "/heal")[1]["faults"]["refuse"] is False  # type: ignore[index]
    status, answer = ask("POST", "/faults", {"refused": True})
    assert status == 400
    assert "refused is no fault" in str(answer["error"])
    with connect(proxy) as conn:
        assert is_echoed(conn)
        assert ask("POST", "/cut")[0] == 200
        assert not is_echoed(conn)
