"""The second factor over two HTTP workers, and while the identity process is killed: a code counts
once, whoever has it, and whatever dies between.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from tests.support.authenticator import Authenticator
from tests.support.manifests import sign_in_app
from tests.support.server import PylonServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores

ADDRESS: Final = "ann@example.com"
PASSWORD: Final = "four random words here"
AT_ONCE: Final = 8


def post(server: PylonServer, route: str, body: dict[str, Any], token: str = "") -> Any:
    """The status and the body of an answer; 503 for one that never came."""
    try:
        status, found, _ = server.request("POST", f"/api/auth/{route}", body, token=token or None)
    except OSError:
        return 503, {}
    return status, found


def challenge(server: PylonServer) -> str:
    def ask() -> str | None:
        status, body = post(
            server, "password/login", {"email": ADDRESS, "password": PASSWORD}
        )
        assert status in (401, 503), body
        found: str | None = body.get("error", {}).get("challenge")
        return found

    found: list[str] = []

    def asked() -> bool:
        text = ask()
        found.extend([] if text is None else [text])
        return text is not None

    wait_until("the server asks for a code", asked)
    return found[0]


def signed_in(server: PylonServer, token: str) -> int:
    """How many sessions with a second factor the account has."""
    status, body, _ = server.request("GET", "/api/auth/sessions", token=token)
    assert status == 200
    return sum("password" in each["methods"] and "totp" in each["methods"] for each in body)


def test_a_code_counts_once_on_all_workers_and_after_a_kill(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server(
        sign_in_app(), PYLON_AUTH_RATES="false", PYLON_HTTP_WORKERS="2"
    ).start()
    _, account = post(server, "password/register", {"email": ADDRESS, "password": PASSWORD})
    _, made = post(server, "totp/enroll", {}, account["token"])
    app, at = Authenticator(made["secret"]), time.time()  # three codes count: one for each part
    status, verified = post(server, "totp/verify", {"code": app.code(at, -1)}, account["token"])
    assert status == 200, verified
    token = verified["token"]
    before = signed_in(server, token)  # the session of the registration itself

    challenges = [challenge(server) for _ in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(
            lambda each: post(server, "totp/challenge", {"challenge": each, "code": app.code(at)}),
            challenges,
        ))
    assert sorted(status for status, _ in answers) == [200] + [401] * (AT_ONCE - 1)
    assert signed_in(server, token) == before + 1

    challenges = [challenge(server) for _ in range(AT_ONCE)]
    [pid] = server.pids("identity")
    code = app.code(at, 1)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = [
            pool.submit(post, server, "totp/challenge", {"challenge": each, "code": code})
            for each in challenges
        ]
        os.kill(pid, signal.SIGKILL)
        results = [future.result() for future in sent]
    wait_until("another identity process", lambda: server.pids("identity") not in ([], [pid]))
    results += [
        post(server, "totp/challenge", {"challenge": each, "code": code})
        for each in (*challenges, challenge(server))
    ]
    acknowledged = [body["token"] for status, body in results if status == 200]
    assert {status for status, _ in results} <= {200, 401, 503}
    assert len(acknowledged) <= 1
    assert signed_in(server, token) == before + 2  # also if its answer was lost
    for each in acknowledged:
        assert server.request("GET", "/api/auth/me", token=each)[1]["user_id"]
