"""workers.http.loop in this process: what the app learns of a connection that ends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent.event import Event

from tests.support.wait import run_greenlets_until
from workers.http.loop import Loop


class Parts:
    """A streamed response that notes whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield b"first"
        yield b"second"

    def close(self) -> None:
        self.closed = True


def test_response_is_closed_if_its_connection_ended_while_the_app_was_blocked() -> None:
    parts, begun, released = Parts(), Event(), Event()

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Parts:
        begun.set()
        released.wait()
        start("200 OK", [("content-type", "text/plain")])
        return parts

    loop = Loop(app, [socket.create_server(("127.0.0.1", 0))], 1, 1)
    port = loop._accepting._listeners.sockets[0].getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        run_greenlets_until("the app is called", begun.is_set)
        drain = gevent.spawn(loop.drain, 0.0, lambda: 0.0, lambda: None)
        run_greenlets_until("the connection is closed", drain.ready)
        drain.get()
        released.set()
        run_greenlets_until("the response is closed", lambda: parts.closed)
        assert client.recv(1) == b""
