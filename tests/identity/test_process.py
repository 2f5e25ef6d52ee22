"""The identity process: HTTP workers call it, it may die, and it ends after them."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.manifests import sign_in_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until

PROVIDERS = "/api/auth/providers"


def identity_pid(server: PylonServer) -> int:
    [pid] = server.pids("identity")
    return pid


def test_a_route_is_answered_by_the_identity_process(members: PylonServer) -> None:
    assert members.request("GET", PROVIDERS)[:2] == (200, [])
    status, _, headers = members.request("HEAD", PROVIDERS)
    assert (status, headers["cache-control"]) == (200, "no-store")


def test_no_header_is_sent_twice(members: PylonServer) -> None:
    connection = http.client.HTTPConnection(members.host, members.port, timeout=WAIT_S)
    connection.request("GET", PROVIDERS)
    names = [name.lower() for name, _ in connection.getresponse().getheaders()]
    connection.close()
    assert "cache-control" in names and len(names) == len(set(names)), names


def test_a_killed_process_is_started_again_and_all_else_goes_on(members: PylonServer) -> None:
    before = identity_pid(members)
    os.kill(before, signal.SIGKILL)
    seen = set()

    def is_back() -> bool:
        status, _, headers = members.request("GET", PROVIDERS)
        seen.add(status)
        if status == 503:
            assert headers["retry-after"] == "1"
        assert members.request("GET", "/api/auth/me")[0] == 200
        assert members.request("GET", "/readyz")[0] == 200  # the node stays in its balancer
        return status == 200 and members.pids("identity") not in ([], [before])

    wait_until("another identity process answers", is_back)
    assert seen <= {200, 503}


def test_a_stopped_process_answers_503_and_readiness_names_it(members: PylonServer) -> None:
    pid = identity_pid(members)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(
            "readiness tells it",
            lambda: "problem" in members.request("GET", "/readyz")[1]["checks"]["role.identity"],
        )
        assert members.request("GET", "/readyz")[0] == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until("it answers", lambda: members.request("GET", PROVIDERS)[0] == 200)


def test_other_workers_do_not_import_the_libraries_of_sign_in(members: PylonServer) -> None:
    for role in ("http", "ws"):
        for pid in members.pids(role):
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "argon2" not in maps and "cryptography" not in maps, role
    pid = identity_pid(members)
    assert "argon2" in Path(f"/proc/{pid}/maps").read_text()
    [ws] = members.pids("ws")
    nice = os.getpriority(os.PRIO_PROCESS, pid) - os.getpriority(os.PRIO_PROCESS, ws)
    assert nice == 10 or os.getpriority(os.PRIO_PROCESS, pid) == 19


def test_a_drain_ends_it_after_the_http_workers(make_server: Callable[..., PylonServer]) -> None:
    server = make_server(sign_in_app()).start()
    assert server.terminate() == 0
    log = server.log()
    assert log.index("http ended") < log.index("shards and identity ended")


@pytest.mark.parametrize("path", [PROVIDERS])
def test_without_the_process_its_routes_answer_503(
    make_server: Callable[..., PylonServer], path: str
) -> None:
    server = make_server(sign_in_app(), PYLON_IDENTITY_WORKERS="0").start()
    status, body, _ = server.request("GET", path)
    assert (status, body["error"]["code"]) == (503, "UNAVAILABLE")
    assert "PYLON_IDENTITY_WORKERS" in body["error"]["hint"]
    assert server.request("GET", "/api/auth/me")[0] == 200


def test_the_audit_log_and_its_command(members: PylonServer) -> None:
    token = members.request("POST", "/api/auth/session", {"user_id": "u9"}, token=ADMIN_TOKEN)[1][
        "token"
    ]
    assert members.request("DELETE", "/api/auth/sessions", token=token)[0] == 200
    done = members.ctl("audit", "--user", "u9", "--json")
    records = json.loads(done.stdout)["records"]
    assert "session_revoke" in [record["action"] for record in records]
    assert token not in done.stdout
    assert "session_revoke  u9" in members.ctl("audit", "--action", "session_revoke").stdout
    assert members.request("GET", "/api/auth/audit")[0] == 401
