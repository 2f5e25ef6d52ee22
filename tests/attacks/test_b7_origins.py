"""B7, in a running server: cookies, origins of pages, addresses of clients.

The half that is judged at the start is in test_b7_settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon import config as settings
from pylon.auth.cookies import cookie_value
from pylon.auth.forwarded import client_address
from pylon.auth.session_cache import SessionCache
from pylon.errors import SocketLimit
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.wsgi import ask
from tests.test_api_auth import MANIFEST
from workers.hub.addresses import AddressCap

COOKIE = "My_App_session"
PAGE = "https://app.example.com"
PRODUCTION = {"PYLON_CSRF_ORIGINS": PAGE}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST, PRODUCTION) as made:
        yield made


def me(server: ApiStage, **headers: str) -> dict[str, object]:
    answer = server.call(
        "GET", "/api/auth/me", headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    found: dict[str, object] = answer.json
    return found


# --- The admin's token ---------------------------------------------------------------------


@pytest.mark.parametrize("token", [ADMIN_TOKEN, f'"{ADMIN_TOKEN}"'])
def test_the_admin_token_in_a_cookie_is_nobody(server: ApiStage, token: str) -> None:
    assert me(server, Authorization=f"Bearer {ADMIN_TOKEN}")["is_admin"] is True
    for _ in range(2):  # nor by what the header left
        found = me(server, Cookie=f"{COOKIE}={token}")
        assert (found["is_admin"], found["user_id"]) == (False, None)
    answer = server.call(
        "POST", "/api/auth/session", {"user_id": "u"}, headers={"Cookie": f"{COOKIE}={token}"}
    )
    assert answer.status_code == 403


def test_the_admin_token_in_a_cookie_is_nobody_on_sockets(server: ApiStage) -> None:
    """As sockets ask: by the token alone, which a header brought before."""
    callers: SessionCache[str] = SessionCache(
        server.services.requests.app, server.services.data.store, server.clock
    )
    assert callers.look_up(ADMIN_TOKEN, ADMIN_TOKEN).auth.is_admin
    token = cookie_value(f"{COOKIE}={ADMIN_TOKEN}", COOKIE)
    assert token is not None
    found = callers.find(token) or callers.look_up(token, token)
    assert not found.auth.is_admin


# --- Two cookies (B56) ---------------------------------------------------------------------


def test_two_session_cookies_that_differ_are_nobody_and_are_both_cleared(server: ApiStage) -> None:
    mine, planted = server.user("u1"), server.user("evil")
    for first, second in ((mine, planted), (planted, mine), ("stale", mine), (mine, "")):
        cookies = f"{COOKIE}={first}; a=b; {COOKIE}={second}"
        answer = ask(server, "GET", "/api/auth/me", headers=[("Cookie", cookies)])
        assert json.loads(answer.body)["user_id"] is None
        cleared = answer.values("set-cookie")
        for place in ("/", "/api", "/; Domain=example.com", "/api; Domain=api.example.com"):
            assert (
                f"{COOKIE}=; Path={place}; HttpOnly; Secure; SameSite=Lax; Max-Age=0" in cleared
            )
        assert all(line.startswith(f"{COOKIE}=; ") for line in cleared)


def test_a_session_that_is_sent_twice_counts(server: ApiStage) -> None:
    token = server.user("u1")
    answer = server.call(
        "GET", "/api/auth/me", headers={"Cookie": f"{COOKIE}={token}; {COOKIE}={token}"}
    )
    assert answer.json["user_id"] == "u1"
    assert "set-cookie" not in answer.headers


def test_a_sign_in_beside_two_cookies_leaves_the_new_one(server: ApiStage) -> None:
    """Browsers take Set-Cookie lines in order: ours comes behind the ones that clear."""
    answer = ask(
        server, "POST", "/api/auth/guest",
        headers=[("Cookie", f"{COOKIE}=a; {COOKIE}=b"), ("Origin", PAGE)],
    )
    assert answer.status == 201
    *cleared, made = answer.values("set-cookie")
    assert made.startswith(f"{COOKIE}={json.loads(answer.body)['token']}; Path=/; ")
    assert len(cleared) > 3
    assert all(line.endswith("; Max-Age=0") for line in cleared)


# --- Pages (B55) ---------------------------------------------------------------------------


@pytest.mark.parametrize(("headers", "status"), [
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "null"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Referer": "https://evil.example/page"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Origin": PAGE}, 200),
    ({"Sec-Fetch-Site": "cross-site", "Referer": f"{PAGE}/page"}, 200),
    ({"Sec-Fetch-Site": "same-origin"}, 200),
    ({"Sec-Fetch-Site": "none"}, 200),
    ({}, 200),  # no browser
])
def test_a_cookie_post_of_another_site(
    server: ApiStage, headers: dict[str, str], status: int
) -> None:
    cookie = {"Cookie": f"{COOKIE}={server.user('u1')}"}
    answer = server.call("DELETE", "/api/auth/session", headers={**cookie, **headers})
    assert answer.status_code == status
    still = "u1" if status == 403 else None
    assert server.call("GET", "/api/auth/me", headers=cookie).json["user_id"] == still


# --- Addresses -----------------------------------------------------------------------------


def test_hops_beyond_the_header_take_the_sockets_address() -> None:
    for forged in ("6.6.6.6", "6.6.6.6, 7.7.7.7"):
        assert client_address("10.0.0.1", forged, 3) == "10.0.0.1"
    assert client_address("10.0.0.1", "9.9.9.9, 10.0.0.3, 10.0.0.2", 3) == "9.9.9.9"


def test_sockets_of_one_ipv6_network_count_together() -> None:
    cap = AddressCap(3)
    for number in range(3):
        cap.add_socket(f"2001:db8:0:1::{number:x}")
    with pytest.raises(SocketLimit, match="2001:db8:0:1"):
        cap.add_socket("2001:db8:0:1:ffff::1")
    cap.add_socket("2001:db8:0:2::1")
    cap.remove_socket("2001:db8:0:1::0")
    cap.add_socket("2001:db8:0:1:ffff::1")


def test_the_settings_of_these_tests_are_production() -> None:
    assert not settings.load(PRODUCTION).config.dev_mode
