"""Sign-in with a provider through real processes: HTTP, identity and the writer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.support import stores
from tests.support.certified_provider import Browser
from tests.support.issuers import CLIENT_ID, CLIENT_SECRET, Issuer, serve_issuer
from tests.support.manifests import sign_in_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores
CALLBACK = "http://localhost:3000/done"


@contextmanager
def serve(folder: Path) -> Iterator[tuple[PylonServer, Issuer]]:
    with serve_issuer() as issuer:
        server = PylonServer(folder, sign_in_app(), {
            "PYLON_DEV_MODE": "true", "PYLON_HTTP_WORKERS": "2", "PYLON_LOG_LEVEL": "debug",
            "PYLON_OAUTH_LOCAL_ISSUER": issuer.url, "PYLON_OAUTH_LOCAL_CLIENT_ID": CLIENT_ID,
            "PYLON_OAUTH_LOCAL_CLIENT_SECRET": CLIENT_SECRET,
        })
        try:
            server.start()
            yield server, issuer
        finally:
            server.close()


@pytest.fixture(scope="module")
def served(
    processes: None, tested_store: stores.TestStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PylonServer, Issuer]]:
    with serve(tmp_path_factory.mktemp("providers")) as made:
        yield made


def begin(server: PylonServer, browser: Browser) -> str:
    query = urlencode({"callback": CALLBACK, "redirect": "1"})
    status, location, body = browser.send(
        f"http://127.0.0.1:{server.port}/api/auth/login/local?{query}"
    )
    assert status == 302 and location is not None, body
    return location


def test_a_code_is_redeemed_once_however_many_requests_bring_it(
    served: tuple[PylonServer, Issuer]
) -> None:
    """Fifty returns at once, on two HTTP workers: one signs in (attack 6)."""
    server, issuer = served
    browser = Browser()
    back = issuer.authorize(begin(server, browser))
    url = f"http://127.0.0.1:{server.port}/api/auth/callback/local?{urlencode(back)}"

    def come_back(_: int) -> tuple[int, str | None]:
        other = Browser()
        for cookie in browser.cookies:
            other.cookies.set_cookie(cookie)
        status, location, _ = other.send(url)
        return status, location

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(come_back, range(50)))
    assert sorted(status for status, _ in found) == [302, *[403] * 49]
    assert [location for _, location in found if location is not None] == [CALLBACK]
    assert issuer.paths().count("/token") == 1
    rows = server.request("GET", "/api/entities/User", token=ADMIN_TOKEN)[1]["data"]
    assert len(rows) == 1
    log = server.log_path.read_text()
    state = back["state"]
    for secret in (back["code"], state, CLIENT_SECRET, *(c.value for c in browser.cookies)):
        assert secret is not None and secret not in log


def test_a_sign_in_goes_on_in_another_identity_process(
    served: tuple[PylonServer, Issuer]
) -> None:
    """The process is killed between start and return: the state is in the store."""
    server, issuer = served
    browser = Browser()
    url = begin(server, browser)
    [pid] = server.pids("identity")
    os.kill(pid, signal.SIGKILL)
    wait_until(
        "another identity process answers",
        lambda: server.pids("identity") not in ([], [pid])
        and server.request("GET", "/api/auth/providers")[0] == 200,
    )
    back = issuer.authorize(url)
    status, location, body = browser.send(
        f"http://127.0.0.1:{server.port}/api/auth/callback/local?{urlencode(back)}"
    )
    assert (status, location) == (302, CALLBACK), body
    names = {cookie.name: cookie.value for cookie in browser.cookies}
    me = server.request(
        "GET", "/api/auth/me", headers={"Cookie": f"members_session={names['members_session']}"}
    )
    assert me[1]["user_id"] is not None
    assert "error" not in parse_qs(urlsplit(location or "").query)
