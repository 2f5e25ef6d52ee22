"""The handshake filter: a listener before its end takes no new connection, and loses none."""

from __future__ import annotations

import socket

import pytest

from pylon.runtime.handshake_filter import refuse_handshakes

HOSTS = {"IPv4": "127.0.0.1", "IPv6": "::1"}


@pytest.mark.parametrize("family", list(HOSTS))
def test_a_waiting_connection_is_accepted_and_a_new_one_is_not(family: str) -> None:
    kind = socket.AF_INET6 if family == "IPv6" else socket.AF_INET
    with socket.create_server((HOSTS[family], 0), family=kind) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address) as waiting:
            assert refuse_handshakes(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.1)
            waiting.sendall(b"request")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(100) == b"request"
                accepted.sendall(b"response")
                assert waiting.recv(100) == b"response"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_socket_of_another_kind_is_left_alone() -> None:
    gone = socket.socket()
    gone.close()
    assert not refuse_handshakes(gone)
