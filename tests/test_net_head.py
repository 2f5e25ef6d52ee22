"""workers.net.head: the rules that the HTTP port and the socket ports share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon import limits
from pylon.errors import InvalidRequest
from workers.http import request as http_request
from workers.hub import request as hub_request
from workers.net.head import CHUNKED, RequestError, parse_head, wsgi_name

HOST = b"Host: h\r\n"
SMUGGLED = {
    "bare LF": b"GET / HTTP/1.1\r\nHost: h\nX: 1\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
    "folded line": b"GET / HTTP/1.1\r\nHost: h\r\nX: 1\r\n 2\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost: h\r\nX : 1\r\n\r\n",
    "both lengths": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
    "two codings": b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
                   b"Transfer-Encoding: chunked\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\nHost: h\r\nX: \0\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
    "a version that there is not": b"GET / HTTP/1.2\r\nHost: h\r\n\r\n",
    "an authority as target": b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
}


@pytest.mark.parametrize("data", SMUGGLED.values(), ids=SMUGGLED)
def test_both_ports_refuse_what_two_servers_could_read_differently(data: bytes) -> None:
    with pytest.raises(RequestError):
        http_request.parse(data, {})
    with pytest.raises(InvalidRequest):
        hub_request.parse(data, "127.0.0.1")


def test_a_connect_to_a_path_is_refused_even_where_the_header_block_repeats() -> None:
    first = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
    request = http_request.parse(first, {})
    assert request is not None
    template = http_request.make_head_template(first, request)
    assert template is not None
    assert template.parse_repeat(b"CONNECT /a HTTP/1.1\r\nHost: h\r\n\r\n") is None


def test_the_raw_path_of_one_request_is_not_the_next_ones() -> None:
    first = b"GET /a%2Fb HTTP/1.1\r\nHost: h\r\n\r\n"
    request = http_request.parse(first, {})
    assert request is not None
    assert request.environ["pylon.raw_path"] == "/a%2Fb"
    assert request.environ["PATH_INFO"] == "/a/b"
    template = http_request.make_head_template(first, request)
    assert template is not None
    plain = template.parse_repeat(b"GET /c HTTP/1.1\r\nHost: h\r\n\r\n")
    assert plain is not None
    assert "pylon.raw_path" not in plain.environ
    again = template.parse_repeat(b"GET /c%2Fd HTTP/1.1\r\nHost: h\r\n\r\n")
    assert again is not None
    assert again.environ["pylon.raw_path"] == "/c%2Fd"


def test_a_name_with_an_underscore_is_dropped() -> None:
    head = parse_head(b"GET / HTTP/1.1\r\nHost: h\r\nContent_Length: 5\r\nX_Y: 1\r\n\r\n", {})
    assert head is not None
    assert (head.length, head.fields) == (0, {"HTTP_HOST": "h"})
    assert wsgi_name("X_Y") is None


def test_names_that_clients_make_up_are_not_kept_for_ever() -> None:
    for number in range(5_000):
        wsgi_name(f"X-Made-Up-{number}")
    from workers.net import head

    assert len(head._names) <= 1_024


@pytest.mark.parametrize(("data", "expected"), [
    (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", (0, True)),
    (b"GET / HTTP/1.1\r\n" + HOST + b"Connection: x, Close\r\n\r\n", (0, False)),
    (b"GET / HTTP/1.0\r\n\r\n", (0, False)),
    (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", (0, True)),
    (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 12\r\n\r\n", (12, True)),
    (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: Chunked\r\n\r\n", (CHUNKED, True)),
])
def test_body_and_connection(data: bytes, expected: tuple[int, bool]) -> None:
    head = parse_head(data + b"rest", {})
    assert head is not None
    assert (head.length, head.keep) == expected
    assert head.consumed == len(data)


@pytest.mark.parametrize(("data", "status"), [
    (b"GET /" + b"p" * limits.HTTP_LINE_BYTES, 414),
    (b"GET / HTTP/1.1\r\nX: " + b"v" * limits.HTTP_HEAD_BYTES, 431),
    (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (limits.HTTP_FIELDS + 3), 431),
    (b"\x16\x03\x01\x02", 400),
    (b"get", 400),
    (b"\r\n\r\n", 400),
    (b"GET /a\x00", 400),
    (b"GET /a HTTP/3.0\r\n", 505),
    (b"GET / HTTP/1.1\r\nHost: h\n", 400),
])
def test_what_cannot_become_a_head_is_refused_before_it_is_complete(
    data: bytes, status: int
) -> None:
    with pytest.raises(RequestError) as caught:
        parse_head(data, {})
    assert caught.value.status == status


@given(st.binary(max_size=300), st.integers(0, 300))
def test_a_head_is_the_same_however_its_bytes_arrive(data: bytes, cut: int) -> None:
    """What has been refused stays refused, and what waits is not complete."""
    stream = b"GET /a HTTP/1.1\r\nHost: h\r\n" + data + b"\r\n\r\n"

    def outcome(given: bytes) -> object:
        try:
            head = parse_head(given, {})
        except RequestError:
            return "refused"
        return None if head is None else (head.consumed, head.fields)

    part, whole = outcome(stream[:cut]), outcome(stream)
    if part is not None:
        assert part == whole
