"""C2: pages of other origins (identity.md §1.13, attacks 24, 25, 27 and 28).

A page that nobody trusts reads no answer, sends no write and opens no stream as the browser's user.
Every answer has the security headers, whatever its status and whoever made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import config as settings
from pylon.errors import StartRefused
from pylon.startup import load_checked
from pylon.storage.auth_ops import CheckRecords, PutRecord
from pylon.storage.ops import Transact
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.wsgi import ask
from tests.test_api_auth import MANIFEST as SESSIONS

MANIFEST = {**SESSIONS, "policies": [{"name": "all", "entity": "User", "allow": "true"}]}
COOKIE = "My_App_session"
PAGE, SECOND, TRUSTED = (
    "https://app.example.com", "https://second.example.com", "https://trusted.example.com"
)
PRODUCTION = {
    "PYLON_CORS_ORIGIN": f"{PAGE},{SECOND}", "PYLON_PUBLIC_URL": "https://api.example.com",
    "PYLON_GUESTS_PER_IP_PER_MIN": "1", "PYLON_CSRF_ORIGINS": "",
}
TRICKS = [
    "https://app.example.com.evil.example", "https://evilapp.example.com", "null", "",
    "https://app.example.com:444", "https://app.example.com:443", "http://app.example.com",
    "https://APP.example.com", "HTTPS://app.example.com", "https://app.example.com/",
    "https://app.example.com.", "https://user@app.example.com", "https://app.example.com@evil.example",
    "https://app.example.com, https://evil.example", " https://evil.example", "*",
    "https://app.example.com%00.evil.example", "https://example.com", "https://localhost",
    "http://localhost:3000", "http://127.0.0.1", "file://", "chrome-extension://app.example.com",
]
SECURITY = (
    "x-content-type-options", "x-frame-options", "x-xss-protection", "referrer-policy",
    "permissions-policy", "strict-transport-security",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    manifest = {**MANIFEST, "auth": {**SESSIONS["auth"], "trusted_origins": [TRUSTED]}}
    with serve_api(tmp_path, manifest, PRODUCTION) as made:
        yield made


# --- 24: CORS ------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [PAGE, SECOND, TRUSTED])
def test_each_trusted_origin_is_named_alone(server: ApiStage, origin: str) -> None:
    for method in ("GET", "OPTIONS"):
        answer = ask(server, method, "/api/auth/me", headers=[("Origin", origin)])
        assert answer.values("access-control-allow-origin") == [origin]
        assert answer.values("access-control-allow-credentials") == ["true"]
        assert answer.values("vary") == ["Origin"]
        assert answer.values("access-control-max-age") == (["600"] if method == "OPTIONS" else [])


@pytest.mark.parametrize("origin", TRICKS)
def test_a_trick_is_not_named(server: ApiStage, origin: str) -> None:
    for method, target in (
        ("GET", "/api/auth/me"), ("OPTIONS", "/api/auth/me"), ("GET", "/health"),
        ("GET", "/api/nothing"),
    ):
        answer = ask(server, method, target, headers=[("Origin", origin)])
        assert answer.values("access-control-allow-origin") == []
        assert answer.values("access-control-allow-credentials") == []
        assert answer.values("vary") == ["Origin"]


def test_in_dev_mode_only_this_machine_is_named(tmp_path: Path) -> None:
    dev_mode = {"PYLON_DEV_MODE": "1", "PYLON_CORS_ORIGIN": "*", "PYLON_CSRF_ORIGINS": ""}
    with serve_api(tmp_path, MANIFEST, dev_mode) as dev:
        for origin, status in (
            ("http://localhost:5173", 201), ("http://127.0.0.1:8000", 201),
            ("http://evil.example", 403), ("null", 403), ("http://localhost.evil.example", 403),
        ):
            answer = ask(dev, "POST", "/api/auth/guest", headers=[("Origin", origin)])
            assert answer.status == status
            named = [origin] if status == 201 else []
            assert answer.values("access-control-allow-origin") == named
            assert len(answer.values("set-cookie")) == len(named)


# --- 25: CSRF ------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", TRICKS)
def test_a_trick_sends_no_write(server: ApiStage, origin: str) -> None:
    cookie = f"{COOKIE}={server.user('u1')}"
    answer = ask(server, "DELETE", "/api/auth/session",
                 headers=[("Cookie", cookie), ("Origin", origin)])
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (403, "CSRF_REJECTED")
    still = ask(server, "GET", "/api/auth/me", headers=[("Cookie", cookie)])
    assert json.loads(still.body)["user_id"] == "u1"


@pytest.mark.parametrize("headers", [
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "CROSS-SITE"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "null"}, {"Referer": "https://evil.example/"},
    {"Referer": "about:blank"}, {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
])
def test_the_fetch_metadata_of_another_site_sends_no_write(
    server: ApiStage, headers: dict[str, str]
) -> None:
    for method, target in (
        ("POST", "/api/auth/guest"), ("DELETE", "/api/auth/session"),
        ("POST", "/api/entities/User"), ("PATCH", "/api/entities/User/x"),
        ("POST", "/api/sync/push"), ("POST", "/api/batch"),
    ):
        cookie = {"Cookie": f"{COOKIE}={server.user('u1')}", "Content-Type": "application/json"}
        answer = server.call(method, target, {}, headers={**cookie, **headers})
        assert (answer.status_code, answer.json["error"]["code"]) == (403, "CSRF_REJECTED")


@pytest.mark.parametrize("kind", [
    "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", None,
    "text/plain; charset=application/json", "text/json",
])
@pytest.mark.parametrize("of_page", [{}, {"Origin": PAGE, "Sec-Fetch-Site": "same-site"}])
def test_a_form_with_a_cookie_sends_no_write(
    server: ApiStage, kind: str | None, of_page: dict[str, str]
) -> None:
    cookie = f"{COOKIE}={server.user('u1')}"
    typed = {} if kind is None else {"Content-Type": kind}
    headers = [*{"Cookie": cookie, **typed, **of_page}.items()]
    answer = ask(server, "POST", "/api/query/User", b"{}", headers=headers)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (403, "CSRF_REJECTED")
    bearer = [("Authorization", cookie.replace(f"{COOKIE}=", "Bearer ")), *typed.items()]
    with_bearer = ask(server, "POST", "/api/query/User", b"{}", headers=bearer)
    assert with_bearer.status == 200  # as curl -d sends it
    headers = [*{"Cookie": cookie, "Content-Type": "application/json", **of_page}.items()]
    assert ask(server, "POST", "/api/query/User", b"{}", headers=headers).status == 200
    empty = ask(server, "DELETE", "/api/auth/session", headers=[("Cookie", cookie)])
    assert empty.status == 200


def test_no_get_has_an_effect(server: ApiStage) -> None:
    """A GET of every route with a cookie, as another page's image, changes nothing."""
    cookie = {"Cookie": f"{COOKIE}={server.user('u1')}", "Sec-Fetch-Site": "cross-site"}
    before = len(server.writer.seen)
    for template in sorted(routes(server)):
        server.call("GET", template.replace("{", "").replace("}", ""), headers=cookie)
    assert [op for op in server.writer.seen[before:] if not _only_audits(op)] == []


def _only_audits(op: Any) -> bool:
    """Whether a write only notes in the audit log that something was read (an export)."""
    steps = op.ops if isinstance(op, Transact) else [op]
    return all(
        isinstance(step, CheckRecords) or (isinstance(step, PutRecord) and step.table == "audit")
        for step in steps
    )


def routes(server: ApiStage) -> set[str]:
    """The templates of all routes."""
    document = server.call("GET", "/api/openapi.json", token=ADMIN_TOKEN).json
    found = set(document["paths"])
    assert len(found) > 20
    return found


# --- 27: refusals of a start ---------------------------------------------------------------


@pytest.mark.parametrize(("environ", "name", "words"), [
    ({"PYLON_COOKIE_NAME": "__Host-s", "PYLON_COOKIE_SECURE": "false"}, "App", "SECURE=true"),
    ({"PYLON_COOKIE_NAME": "__Secure-s", "PYLON_COOKIE_SECURE": "false"}, "App", "SECURE=true"),
    ({"PYLON_COOKIE_NAME": "__Host-s", "PYLON_COOKIE_DOMAIN": "e.com"}, "App", "no PYLON_COOKIE"),
    ({"PYLON_COOKIE_NAME": "__HOST-s", "PYLON_COOKIE_DOMAIN": "e.com"}, "App", "no PYLON_COOKIE"),
    ({"PYLON_COOKIE_SECURE": "false"}, "__Host-App", "makes the session cookie"),
    ({"PYLON_COOKIE_DOMAIN": "e.com"}, "__Host-App", "makes the session cookie"),
    ({"PYLON_CORS_ORIGIN": f"{PAGE},*"}, "App", "refused in production"),
    ({"PYLON_CORS_ORIGIN": f"{PAGE},null"}, "App", "refused in production"),
])
def test_a_start_refuses_what_browsers_would_not_keep_safe(
    tmp_path: Path, environ: dict[str, str], name: str, words: str
) -> None:
    path = tmp_path / "pylon.manifest.json"
    path.write_text(json.dumps({**MANIFEST, "name": name}))
    good = {"PYLON_CORS_ORIGIN": PAGE, "PYLON_MANIFEST": str(path)}
    with pytest.raises(StartRefused, match=words):
        load_checked(settings.load({**good, **environ}))
    load_checked(settings.load({**good, "PYLON_COOKIE_NAME": "__Host-session"}))


# --- 28: headers ---------------------------------------------------------------------------


def test_every_answer_has_the_security_headers(server: ApiStage) -> None:
    server.guest()
    raising = "/api/auth/me"
    asked: list[tuple[str, str, dict[str, str], Any, int]] = [
        ("GET", "/health", {}, None, 200), ("GET", "/api/auth/me", {}, None, 200),
        ("OPTIONS", "/api/auth/me", {}, None, 204),
        ("GET", raising, {"Authorization": "Bearer pk.x"}, None, 401),
        ("POST", "/api/auth/refresh", {}, None, 401),
        ("POST", "/api/auth/guest", {"Origin": "https://evil.example"}, None, 403),
        ("GET", "/api/nothing", {}, None, 404), ("PUT", "/api/auth/guest", {}, None, 405),
        ("POST", "/api/query/User", {}, b"{", 400), ("POST", "/api/auth/session", {}, {}, 403),
    ]
    while server.call("POST", "/api/auth/guest").status_code != 429:
        pass  # the rate allows ten in a row
    asked.append(("POST", "/api/auth/guest", {}, None, 429))
    for method, target, headers, body, status in asked:
        answer = server.call(method, target, body, headers=headers)
        assert answer.status_code == status, target
        for name in SECURITY:
            assert name in answer.headers, (target, name)
        assert answer.headers["vary"] == "Origin"


def test_a_defect_is_an_answer_with_the_security_headers(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("pylon.api.identity.sessions.send_json", fail)
    answer = server.call("GET", "/api/auth/me")
    assert answer.status_code == 500
    assert all(name in answer.headers for name in SECURITY)
