"""workers.net.response: error responses of the HTTP port and of the socket ports, byte for byte."""

from __future__ import annotations

import sys
import time

import pytest

from pylon.errors import BadUpgrade, Draining, PylonError
from workers.http.response import Prefixes, http_date
from workers.http.response import refusal as http_refusal
from workers.hub.refusals import refusal as socket_refusal
from workers.net.head import RequestError
from workers.net.response import encode_head, without_body

# Python 3.13 has the name of RFC 9110, older ones that of RFC 2616. No client reads it.
PHRASE_413 = b"Content Too Large" if sys.version_info >= (3, 13) else b"Request Entity Too Large"
CORS = (("Access-Control-Allow-Origin", "*"),)


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (
            Draining("Not now", hint="Connect again"), None,
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            b"Access-Control-Allow-Origin: *\r\nRetry-After: 1\r\nConnection: close\r\n"
            b"Content-Length: 72\r\n\r\n"
            b'{"error":{"code":"DRAINING","message":"Not now","hint":"Connect again"}}',
        ),
        (
            BadUpgrade("No"), 426,
            b"HTTP/1.1 426 Upgrade Required\r\nContent-Type: application/json\r\n"
            b"Access-Control-Allow-Origin: *\r\nConnection: close\r\nContent-Length: 47\r\n\r\n"
            b'{"error":{"code":"BAD_UPGRADE","message":"No"}}',
        ),
    ],
)
def test_socket_refusal(error: PylonError, status: int | None, expected: bytes) -> None:
    assert socket_refusal(error, CORS, status) == expected


@pytest.mark.parametrize("with_body", [True, False])
@pytest.mark.parametrize(
    ("status", "phrase", "code"),
    [
        (400, b"Bad Request", b"INVALID_REQUEST"),
        (413, PHRASE_413, b"PAYLOAD_TOO_LARGE"),
        (408, b"Request Timeout", b"REQUEST_TIMEOUT"),
        (500, b"Internal Server Error", b"INTERNAL"),
        (503, b"Service Unavailable", b"UNAVAILABLE"),
    ],
)
def test_http_refusal(status: int, phrase: bytes, code: bytes, with_body: bool) -> None:
    prefixes = Prefixes()
    prefixes.tick()
    date = http_date(int(time.time()))
    body = b'{"error":{"code":"%b","message":"Why"}}' % code
    expected = (
        b"HTTP/1.1 %d %b\r\ndate: %b\r\ncontent-type: application/json\r\nx-a: b\r\n"
        b"%bconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
            status, phrase, date.encode(), b"retry-after: 1\r\n" if status == 503 else b"",
            len(body), body if with_body else b"",
        )
    )
    got = http_refusal(prefixes, RequestError(status, "Why"), b"x-a: b\r\n", with_body=with_body)
    if http_date(int(time.time())) == date:
        assert got == expected
    else:  # the second has changed meanwhile
        assert got.partition(b"content-type")[2] == expected.partition(b"content-type")[2]


def test_response_to_head_keeps_the_length_of_get() -> None:
    response = encode_head(200, (("Content-Length", "2"),)) + b"hi"
    assert without_body(response) == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
