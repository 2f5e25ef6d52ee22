"""Bodies that the app reads while they arrive: framing, refusals, slow clients."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.echo import echo_server
from tests.support.wire import Wire

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.timeout(120)]

POST = b"POST /api/files/upload HTTP/1.1\r\nHost: h\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture(scope="module")
def port(processes: None) -> Iterator[int]:
    with echo_server() as (port, _):
        yield port


def test_a_body_of_a_length_ends_there_and_the_connection_goes_on(port: int) -> None:
    data = bytes(range(256)) * 4_096
    with Wire(port) as wire:
        wire.send(POST + b"Content-Length: %d\r\n\r\n" % len(data) + data + NEXT)
        assert wire.read_response().body.endswith(b" body=" + data)
        assert wire.read_response().body.startswith(b"GET /next")
        wire.send(POST + b"Content-Length: 0\r\n\r\n" + NEXT)
        assert wire.read_response().body.endswith(b" body=")
        assert wire.read_response().body.startswith(b"GET /next")


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_chunks_arrive_in_any_pieces(port: int, step: int) -> None:
    data = b"0123456789" * (20 if step < 100 else 30_000)
    size = 3 if step < 100 else 65_536
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part)
        for part in (data[at:at + size] for at in range(0, len(data), size))
    )
    sent = chunks + b"0\r\nX-Trailer: 1\r\n\r\n" + NEXT
    with Wire(port) as wire:
        wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(sent), step):
            wire.send(sent[at:at + step])
        assert wire.read_response().body.endswith(b" body=" + data)
        assert wire.read_response().body.startswith(b"GET /next")


def test_continue_is_sent_when_the_app_begins_to_read(port: int) -> None:
    with Wire(port) as wire:
        wire.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        wire.send(b"hello")
        assert wire.read_response().body.endswith(b" body=hello")


@pytest.mark.parametrize("rest", [
    b"Content-Length: 5\r\n\r\nhel",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n",
], ids=["half a body", "half a chunk", "no size", "long chunk"])
def test_a_broken_body_ends_its_connection(port: int, rest: bytes) -> None:
    with Wire(port) as wire:
        wire.send(POST + rest)
        wire.sock.shutdown(socket.SHUT_WR)
        response = wire.read_response()
        assert response.status == 400 and response.headers["connection"] == "close"


@pytest.mark.parametrize("field", [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Content-Length: -1\r\n\r\n", b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"Transfer-Encoding: gzip, chunked\r\n\r\n",
])
def test_an_ambiguous_length_is_refused(port: int, field: bytes) -> None:
    with Wire(port) as wire:
        wire.send(POST + field)
        assert wire.read_response().status in (400, 501)


def test_a_body_that_the_app_does_not_read_ends_the_connection(port: int) -> None:
    with Wire(port) as wire:
        wire.send(
            b"POST /api/files/upload/unread HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\n"
        )
        response = wire.read_response()
        assert response.status == 200 and response.headers["connection"] == "close"


def test_a_client_that_stalls_is_given_up(processes: None) -> None:
    with echo_server(HTTP_UPLOAD_SLOW_S=0.4) as (port, _):
        with Wire(port) as wire:
            wire.send(POST + b"Content-Length: 9\r\n\r\nhello")
            assert wire.read_response().status == 408
        with Wire(port) as wire:  # a byte now and then is too slow as well
            wire.sock.settimeout(0.1)
            wire.send(POST + b"Content-Length: 999999\r\n\r\n")
            got = b""
            while not got:
                wire.send(b"x")
                try:
                    got = wire.sock.recv(65_536)
                except TimeoutError:
                    continue
            assert got.startswith(b"HTTP/1.1 408 ")
