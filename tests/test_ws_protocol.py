"""workers.ws.protocol and workers.hub.handover: what is read from a request's head."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.hub.handover import address_of, bearer_of, cursor_of, parameters_of
from workers.sse.protocol import visitor_of
from workers.ws.protocol import chosen_item, token_of, upgrade_fault

GOOD: dict[str, Any] = {
    "HTTP_UPGRADE": "WebSocket",
    "HTTP_CONNECTION": "keep-alive, Upgrade",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
}


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
    assert upgrade_fault("GET", "HTTP/1.1", GOOD) is None


@pytest.mark.parametrize(
    ("command", "version", "change"),
    [
        ("POST", "HTTP/1.1", {}),
        ("GET", "HTTP/1.0", {}),
        ("GET", "HTTP/1.1", {"HTTP_UPGRADE": "h2c"}),
        ("GET", "HTTP/1.1", {"HTTP_CONNECTION": "close"}),
        ("GET", "HTTP/1.1", {"HTTP_SEC_WEBSOCKET_VERSION": "12"}),
        ("GET", "HTTP/1.1", {"HTTP_SEC_WEBSOCKET_KEY": "AAAA"}),
        ("GET", "HTTP/1.1", {"HTTP_SEC_WEBSOCKET_KEY": "\u00e9" * 24}),
    ],
)
def test_faults(command: str, version: str, change: dict[str, str]) -> None:
    assert upgrade_fault(command, version, {**GOOD, **change}) is not None


@pytest.mark.parametrize(
    ("text", "cursor"),
    [(None, None), ("", None), ("0", 0), ("17", 17), ("-1", None), ("1.5", None), ("x", None),
     ("9" * 18, 10**18 - 1), ("9" * 19, None), ("\u0663", None)],
)
def test_cursor(text: str | None, cursor: int | None) -> None:
    assert cursor_of(text) == cursor


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", None), ("Bearer ", None),
     ("", None)],
)
def test_bearer(header: str, token: str | None) -> None:
    assert bearer_of({"HTTP_AUTHORIZATION": header}) == token


def test_parameters_are_decoded_and_the_first_counts() -> None:
    environ = {"QUERY_STRING": "shard=a%20b&sid=c+d&shard=late&empty="}
    assert parameters_of(environ) == {"shard": "a b", "sid": "c d", "empty": ""}


def test_address_behind_proxies() -> None:
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "1.1.1.1, 2.2.2.2"}
    assert [address_of(environ, hops) for hops in (0, 1, 2)] == [
        "127.0.0.1", "2.2.2.2", "1.1.1.1",
    ]


def test_sse_visitor_prefers_the_header_and_the_last_event_id() -> None:
    environ = {
        "REMOTE_ADDR": "127.0.0.1", "QUERY_STRING": "token=q&since=3",
        "HTTP_AUTHORIZATION": "Bearer h", "HTTP_COOKIE": "app_session=c",
        "HTTP_LAST_EVENT_ID": "9",
    }
    visitor = visitor_of(environ, "app_session", 0)
    assert (visitor.token, visitor.cursor) == ("h", 9)
    del environ["HTTP_AUTHORIZATION"], environ["HTTP_LAST_EVENT_ID"]
    visitor = visitor_of(environ, "app_session", 0)
    assert (visitor.token, visitor.cursor) == ("q", 3)
    environ["QUERY_STRING"] = ""
    visitor = visitor_of(environ, "app_session", 0)
    assert (visitor.token, visitor.cursor) == ("c", None)
