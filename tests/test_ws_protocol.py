"""workers.ws.protocol, workers.sse.protocol and workers.hub.request: what a request's head says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.auth.origin import Origins
from pylon.auth.response_headers import SocketHeaders
from pylon.errors import InvalidRequest
from workers.hub.request import Request, cursor_of, parse
from workers.sse.protocol import read_connect_request
from workers.ws.protocol import Handshakes, chosen_item, token_of, upgrade_fault

GOOD = {
    "Host": "x",
    "Upgrade": "WebSocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def request(
    fields: dict[str, str], target: str = "/", method: str = "GET", version: str = "HTTP/1.1",
    peer: str = "127.0.0.1",
) -> Request:
    """A request as it is read from the wire."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    found = parse(f"{method} {target} {version}\r\n{lines}\r\n".encode("latin-1"), peer)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("offered", "item", "token"),
    [
        (None, None, None),
        ("chat", None, None),
        ("bearer.abc", "bearer.abc", "abc"),
        ("chat, bearer.abc, bearer.def", "bearer.abc", "abc"),
        ("bearer.a%2Bb+c%20d", "bearer.a%2Bb+c%20d", "a+b c d"),
        ("bearer.", "bearer.", None),
        ("bearer.%", "bearer.%", None),
        ("bearer.%2", "bearer.%2", None),
        ("bearer.%ff", "bearer.%ff", None),
        ("bearer.a b", None, None),
        ("bearer.a\r\nSet-Cookie: x", None, None),
        ("bearer.\u00e9", None, None),
    ],
)
def test_subprotocol(offered: str | None, item: str | None, token: str | None) -> None:
    assert chosen_item(offered) == item
    assert token_of(item) == token


@given(st.text())
def test_no_offer_makes_an_item_that_cannot_be_a_header(offered: str) -> None:
    item = chosen_item(offered)
    assert item is None or (item.isascii() and item.isprintable() and " " not in item)
    token_of(item)


def test_a_good_handshake_has_no_fault() -> None:
    assert upgrade_fault(request(GOOD)) is None


@pytest.mark.parametrize(
    ("method", "version", "change"),
    [
        ("POST", "HTTP/1.1", {}),
        ("GET", "HTTP/1.0", {}),
        ("GET", "HTTP/1.1", {"Upgrade": "h2c"}),
        ("GET", "HTTP/1.1", {"Connection": "close"}),
        ("GET", "HTTP/1.1", {"Sec-WebSocket-Version": "12"}),
        ("GET", "HTTP/1.1", {"Sec-WebSocket-Key": "AAAA"}),
        ("GET", "HTTP/1.1", {"Sec-WebSocket-Key": "\u00e9" * 24}),
    ],
)
def test_faults(method: str, version: str, change: dict[str, str]) -> None:
    assert upgrade_fault(request({**GOOD, **change}, "/", method, version)) is not None


@pytest.mark.parametrize(
    ("text", "cursor"),
    [(None, None), ("", None), ("0", 0), ("17", 17), ("-1", None), ("1.5", None), ("x", None),
     ("9" * 18, 10**18 - 1), ("9" * 19, None), ("\u0663", None)],
)
def test_cursor(text: str | None, cursor: int | None) -> None:
    assert cursor_of(text) == cursor


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", None), ("Bearer ", ""),
     ("", None)],
)
def test_bearer(header: str, token: str | None) -> None:
    assert request({"Authorization": header}).bearer == token


def test_parameters_are_decoded_and_the_first_counts() -> None:
    found = request({}, "/?shard=a%20b&sid=c+d&shard=late&empty=").parameters
    assert found == {"shard": "a b", "sid": "c d", "empty": ""}


def test_address_behind_proxies() -> None:
    found = request({"X-Forwarded-For": "1.1.1.1, 2.2.2.2"})
    assert [found.address(hops) for hops in (0, 1, 2)] == ["127.0.0.1", "2.2.2.2", "1.1.1.1"]


def test_lines_of_one_name_are_joined() -> None:
    head = (
        b"GET / HTTP/1.1\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\n"
        b"Cookie: a=b\r\ncookie: c=d\r\n\r\nrest"
    )
    found = parse(head, "127.0.0.1")
    assert found is not None
    assert found.address(2) == "1.1.1.1"
    assert found.field(b"cookie") == "a=b; c=d"
    assert head[len(found.head):] == b"rest"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 66_000,
    ],
)
def test_what_is_no_request(head: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(head, "127.0.0.1")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_the_beginning_of_one_or_refused(data: bytes) -> None:
    try:
        found = parse(data, "127.0.0.1")
    except InvalidRequest:
        return
    assert found is None or 0 < len(found.head) <= len(data)


def test_a_head_is_complete_with_its_last_byte_only() -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in GOOD.items())
    head = f"GET /?since=7 HTTP/1.1\r\n{lines}\r\n".encode()
    assert all(parse(head[:size], "127.0.0.1") is None for size in range(len(head)))
    found = parse(head, "127.0.0.1")
    assert found is not None
    assert found.parameters == {"since": "7"}


@pytest.mark.parametrize(
    ("origin", "on_main_port", "token"),
    [
        ("https://app.example.com", True, "c"),
        ("https://APP.example.com/", True, None),
        ("https://evil.example", True, None),
        ("null", True, None),
        (None, True, None),
        ("https://app.example.com", False, None),
    ],
)
def test_the_cookie_counts_for_our_own_pages_on_the_main_port(
    origin: str | None, on_main_port: bool, token: str | None
) -> None:
    allowed = Origins(frozenset({"https://app.example.com"}))
    handshakes = Handshakes(0, allowed, "app_session", deflates=False)
    fields = {**GOOD, "Cookie": "app_session=c"} | ({} if origin is None else {"Origin": origin})
    assert handshakes.read(request(fields), on_main_port=on_main_port).token == token
    fields["Authorization"] = "Bearer b"
    assert handshakes.read(request(fields), on_main_port=on_main_port).token == "b"


def test_sse_visitor_prefers_the_header_and_the_last_event_id() -> None:
    fields = {"Authorization": "Bearer h", "Cookie": "app_session=c", "Last-Event-ID": "9"}
    page = "https://app.example.com"
    headers = SocketHeaders((), Origins(frozenset({page})))
    made = read_connect_request(
        request(fields, "/?token=q&since=3"), b"", "app_session", 0, headers
    )
    assert (made.token, made.cursor, made.headers) == ("h", 9, ())
    del fields["Authorization"], fields["Last-Event-ID"]
    made = read_connect_request(
        request(fields, "/?token=q&since=3"), b"", "app_session", 0, headers
    )
    assert (made.token, made.cursor) == ("q", 3)
    made = read_connect_request(request(fields), b"", "app_session", 0, headers)
    assert (made.token, made.cursor) == (None, None)
    made = read_connect_request(
        request({**fields, "Origin": page}), b"", "app_session", 0, headers
    )
    assert (made.token, made.headers) == ("c", headers.origins.cors(page))
