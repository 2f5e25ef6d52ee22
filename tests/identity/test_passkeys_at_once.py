"""Passkeys over two HTTP workers, and while the identity process is killed: an answer counts once,
whatever dies between.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from tests.support.manifests import sign_in_app
from tests.support.passkeys import ORIGIN, SoftPasskey
from tests.support.server import PylonServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores

ANN: Final = {"email": "ann@example.com", "password": "four random words here"}
AT_ONCE: Final = 8


def post(server: PylonServer, route: str, body: dict[str, Any], token: str = "") -> Any:
    """The status and the body of an answer; 503 for one that never came."""
    try:
        status, found, _ = server.request("POST", f"/api/auth/{route}", body, token=token or None)
    except OSError:
        return 503, {}
    return status, found


def sign_ins(server: PylonServer, token: str) -> int:
    """How many sessions of the account began with its passkey."""
    status, body, _ = server.request("GET", "/api/auth/sessions", token=token)
    assert status == 200
    return sum(each["methods"] == ["passkey"] for each in body)


def answer(server: PylonServer, key: SoftPasskey) -> dict[str, Any]:
    """The body with an answer to a new challenge."""
    found: list[Any] = []

    def is_begun() -> bool:
        status, body = post(server, "passkey/login/begin", {})
        found.append(body)
        return bool(status == 200)

    wait_until("a challenge", is_begun)
    return {"credential": key.answer(found[-1]["options"])}


@pytest.mark.parametrize("counts", [True, False])
def test_an_answer_counts_once_on_all_workers_and_after_a_kill(
    make_server: Callable[..., PylonServer], counts: bool
) -> None:
    server = make_server(
        sign_in_app(), PYLON_AUTH_RATES="false", PYLON_HTTP_WORKERS="2",
        PYLON_WEBAUTHN_ORIGIN=ORIGIN,
    ).start()
    _, account = post(server, "password/register", ANN)
    token = account["token"]
    key = SoftPasskey(counts=counts)
    _, begun = post(server, "passkey/register/begin", {}, token)
    body = {"credential": key.register(begun["options"])}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = list(pool.map(
            lambda _: post(server, "passkey/register/finish", body, token)[0], range(AT_ONCE)
        ))
    assert sorted(made) == [200] + [400] * (AT_ONCE - 1)

    same = answer(server, key)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(
            lambda _: post(server, "passkey/login/finish", same)[0], range(AT_ONCE)
        ))
    assert sorted(answers) == [200] + [401] * (AT_ONCE - 1)
    assert sign_ins(server, token) == 1

    same = answer(server, key)
    [pid] = server.pids("identity")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = [pool.submit(post, server, "passkey/login/finish", same) for _ in range(AT_ONCE)]
        os.kill(pid, signal.SIGKILL)
        results = [future.result() for future in sent]
    wait_until("another identity process", lambda: server.pids("identity") not in ([], [pid]))

    def is_answered() -> bool:
        results.append(post(server, "passkey/login/finish", same))
        return results[-1][0] in (200, 401)

    wait_until("an answer", is_answered)
    assert {status for status, _ in results} <= {200, 401, 503}
    assert sum(status == 200 for status, _ in results) <= 1
    assert sign_ins(server, token) == 2  # also if its answer was lost
    assert post(server, "passkey/login/finish", answer(server, key))[0] == 200
