"""No log line of a server has a secret, whatever kind of secret its clients send or get."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.certified_provider import Browser
from tests.support.issuers import CLIENT_ID, CLIENT_SECRET, serve_issuer
from tests.support.manifests import sign_in_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient
from tests.support.wait import wait_until
from tests.test_e2e_metrics import send_raw

pytestmark = pytest.mark.usefixtures("processes")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
METRICS_TOKEN = "metrics-token-Zq81-0123456789abcdef"
SECRET_KEY = "c3f1a9d7052e8b64917f3ac05be28d46a1f0937cde5b84621709fa3bc8d65e12"
PASSWORD, WRONG, NEW = "correct horse Zq battery", "wrong horse Zq stable", "newer horse Zq barn"
EMAIL = "ada.secrets@example.com"


class Secrets:
    """A server that logs as much as it can, and the secrets that its clients used."""

    def __init__(self, server: PylonServer) -> None:
        self.server = server
        self.values = {ADMIN_TOKEN, METRICS_TOKEN, SECRET_KEY, PASSWORD, WRONG, NEW, CLIENT_SECRET}

    def used(self, value: str) -> str:
        """Note a secret."""
        assert len(value) >= 6, value
        self.values.add(value)
        return value

    def post(self, path: str, body: Any, token: str | None = None) -> Any:
        headers = {"traceparent": TRACEPARENT, "Origin": "http://localhost:3000"}
        return self.server.request("POST", path, body, token=token, headers=headers)[1]


def use_passwords(secrets: Secrets, mails: Path) -> str:
    """Register, sign in rightly and wrongly, reset: return a session token."""
    made = secrets.post("/api/auth/password/register", {"email": EMAIL, "password": PASSWORD})
    secrets.used(made["token"])
    secrets.post("/api/auth/password/login", {"email": EMAIL, "password": WRONG})
    signed_in = secrets.post("/api/auth/password/login", {"email": EMAIL, "password": PASSWORD})
    secrets.used(signed_in["token"])
    secrets.post("/api/auth/password/reset/request", {"email": EMAIL})
    secrets.post("/api/auth/magic/send", {"email": EMAIL})
    secrets.post("/api/auth/magic-link/send", {"email": EMAIL})
    text = ""

    def has_mails() -> bool:
        nonlocal text
        text = "".join(path.read_text(errors="replace") for path in mails.rglob("*.*"))
        return bool(re.search(r"token=3?D?[\w-]{16,}", text) and re.search(r"\b\d{6}\b", text))

    wait_until("the mails have come", has_mails)
    for found in re.findall(r"token=(?:3D)?([\w-]{16,})", text):
        secrets.used(found)
        secrets.post("/api/auth/password/reset/complete", {"token": found, "password": NEW})
        secrets.server.request("GET", f"/api/auth/magic-link/verify?token={found}")
    for code in set(re.findall(r"\b\d{6}\b", text)):
        secrets.post("/api/auth/magic/verify", {"email": EMAIL, "code": secrets.used(code)})
    # Whoever proves an address that was never verified takes the account over, so begin anew.
    again = secrets.post(
        "/api/auth/password/register", {"email": f"b{EMAIL}", "password": PASSWORD}
    )
    return secrets.used(again["token"])


def use_provider(secrets: Secrets, issuer: Any) -> None:
    """Sign in with a provider, twice with one code."""
    browser = Browser()
    base = f"http://127.0.0.1:{secrets.server.port}/api/auth"
    query = urlencode({"callback": "http://localhost:3000/done", "redirect": "1"})
    secrets.server.request(
        "GET", f"/api/auth/login/local?{query}", headers={"traceparent": TRACEPARENT}
    )
    assert {seen.headers.get("traceparent") for seen in issuer.seen} == {TRACEPARENT}
    status, location, _ = browser.send(f"{base}/login/local?{query}")
    assert status == 302 and location is not None
    back = issuer.authorize(location)
    secrets.used(back["code"])
    secrets.used(back["state"])
    for _ in range(2):
        browser.send(f"{base}/callback/local?{urlencode(back)}")
    (redeemed,) = [seen for seen in issuer.seen if seen.path == "/token"]
    assert "traceparent" not in redeemed.headers  # the browser sent none
    for cookie in browser.cookies:
        secrets.used(cookie.value or "")


def use_keys_and_sockets(secrets: Secrets, token: str) -> None:
    """An API key, authenticators, cookies, invites, sockets, and heads that are refused."""
    server = secrets.server
    key = secrets.post("/api/auth/api-keys", {"name": "robot"}, token)
    secret = secrets.used(key["key"])
    server.request("GET", "/api/entities/Todo", token=secret)
    server.request("GET", "/api/entities/Todo", token=secret[:-3] + "xyz")
    enrolled = secrets.post("/api/auth/totp/enroll", {}, token)
    secrets.used(enrolled["secret"])
    invite = secrets.used("invite-token-Zq-0123456789abcdef")
    server.request("GET", f"/api/auth/invites/{invite}/accept")
    secrets.post(f"/api/auth/invites/{invite}/accept", {}, token)
    cookie = secrets.used("cookie-value-Zq-0123456789abcdef")
    server.request("GET", "/api/auth/me", headers={"Cookie": f"pylon_session={cookie}; x={cookie}"})
    title = secrets.used("body-value-Zq-0123456789abcdef")
    secrets.post("/api/query/Todo", {"title": title}, ADMIN_TOKEN)
    secrets.post("/api/query/Todo", {"unknown": title}, ADMIN_TOKEN)
    server.request("GET", f"/api/lookup/Todo/title/{title}", token=ADMIN_TOKEN)
    server.request("GET", f"/api/entities/Todo?unknown={title}", token=ADMIN_TOKEN)
    send_raw(server, b"GET /%b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nBad Name: %b\r\n"
             b"\r\n" % (title.encode(), cookie.encode(), cookie.encode()))
    server.request("GET", "/metrics", token=METRICS_TOKEN)
    for transport in ("ws", "sse"):
        with SyncClient(server, transport, token):
            secrets.post("/api/entities/Todo", {"title": title, "authorId": "x"}, ADMIN_TOKEN)


def test_no_kind_of_secret_is_in_the_log(tmp_path: Path) -> None:
    mails = tmp_path / "mails"
    mails.mkdir()
    with serve_issuer() as issuer:
        server = PylonServer(tmp_path / "server", sign_in_app(), {
            "PYLON_DEV_MODE": "true", "PYLON_LOG_LEVEL": "debug", "PYLON_ACCESS_LOG": "1",
            "PYLON_SLOW_QUERY_S": "0", "PYLON_METRICS_TOKEN": METRICS_TOKEN,
            "PYLON_SECRET_KEY": SECRET_KEY, "PYLON_EMAIL_PROVIDER": "file",
            "PYLON_EMAIL_FOLDER": str(mails), "PYLON_AUTH_RATES": "false",
            "PYLON_OAUTH_LOCAL_ISSUER": issuer.url, "PYLON_OAUTH_LOCAL_CLIENT_ID": CLIENT_ID,
            "PYLON_OAUTH_LOCAL_CLIENT_SECRET": CLIENT_SECRET,
        })
        try:
            server.start()
            secrets = Secrets(server)
            token = use_passwords(secrets, mails)
            use_provider(secrets, issuer)
            use_keys_and_sockets(secrets, token)
            assert server.terminate() == 0
        finally:
            server.close()
    text = server.log_path.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    events = {line["event"] for line in lines}
    assert {"request.answered", "query.slow"} <= events
    assert {line.get("trace_id") for line in lines} >= {TRACE}
    assert len(secrets.values) >= 18
    leaked = {
        (value, line) for value in secrets.values for line in text.splitlines() if value in line
    }
    assert leaked == set()
