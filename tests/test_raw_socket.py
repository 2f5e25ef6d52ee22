"""pylon.runtime.raw_socket: what it needs of CPython's private module `_socket`."""

from __future__ import annotations

import _socket
import socket

import gevent.socket
import pytest

from pylon.runtime.raw_socket import RawSocket, accept, host_of, move_lower, take_over


@pytest.mark.parametrize("make", [socket.socket, gevent.socket.socket])
def test_raw_listener_accepts_without_waiting(make: type[socket.socket]) -> None:
    wrapper = make(socket.AF_INET, socket.SOCK_STREAM)
    wrapper.bind(("127.0.0.1", 0))
    wrapper.listen()
    listener = take_over(wrapper)
    assert type(listener) is RawSocket is _socket.socket
    assert wrapper.fileno() == -1
    with pytest.raises(BlockingIOError):
        accept(listener)
    client = socket.create_connection(listener.getsockname())
    client.send(b"x")
    raw, address = accept(listener)
    assert type(raw) is RawSocket
    assert raw.gettimeout() == 0.0
    assert host_of(address) == "127.0.0.1"
    assert raw.recv(1) == b"x"
    for sock in (client, raw, listener):
        sock.close()


def test_moved_socket_has_the_lowest_free_descriptor() -> None:
    lower, peer = socket.socketpair()
    ours, other = socket.socketpair()
    raw = take_over(ours)
    fd = lower.fileno()
    lower.close()
    moved = move_lower(raw)
    assert moved.fileno() == fd
    assert raw.fileno() == -1
    other.send(b"x")
    assert moved.recv(1) == b"x"
    with pytest.raises(BlockingIOError):
        moved.recv(1)
    for sock in (moved, other, peer):
        sock.close()


def test_unix_socket_has_no_host() -> None:
    assert host_of("") == ""
    assert host_of(b"/run/x") == ""
