"""A poisoned request: it is found in the slots of the workers that it killed, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pylon import limits
from tests.support.changed_server import change
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until
from workers.http import quarantine
from workers.http.quarantine import Quarantine, RunningRequests

# A body with one of these words ends the worker that reads it.
POISONED = """
import ctypes, os, signal
before = module.RequestMiddleware.process_resource
def process_resource(self, req, *rest):
    body = req.env["pylon.body"] or b""
    if b"POISON-SEGV" in body:
        ctypes.string_at(0)
    if b"POISON-ABRT" in body:
        os.kill(os.getpid(), signal.SIGABRT)  # as to a worker that hangs
        while True:
            pass
    return before(self, req, *rest)
module.RequestMiddleware.process_resource = process_resource
"""


def environ(n: int = 0, **fields: Any) -> dict[str, Any]:
    return {"REQUEST_METHOD": "POST", "PATH_INFO": f"/api/x/{n}", "QUERY_STRING": "",
            "pylon.body": b"{}", **fields}


@pytest.fixture(autouse=True)
def own_memory() -> Iterator[None]:
    quarantine.share_requests()
    yield
    quarantine.share_requests()


def run_all(running: RunningRequests, *environs: dict[str, Any]) -> list[bool]:
    """Run requests to their end; whether each was marked."""
    for each in environs:
        running.end(running.begin(each))
    return ["pylon.quarantined" in each for each in environs]


def kill_while(table: Quarantine, *environs: dict[str, Any], now_s: float = 0.0) -> None:
    """A worker dies while it runs these requests, of which the last one came last."""
    table.prepare(1)
    running = RunningRequests(1)
    for each in environs:
        running.begin(each)
    table.judge(1, 4711, now_s)
    table.prepare(1)


def test_two_deaths_quarantine_what_was_running_and_nothing_else() -> None:
    table = Quarantine()
    other = RunningRequests(2)
    kill_while(table, environ(1))
    assert run_all(other, environ(2)) == [False]
    kill_while(table, environ(1))
    marked = environ(1)
    likes = [
        environ(2), environ(1, QUERY_STRING="a=1"), environ(1, REQUEST_METHOD="PUT"),
        environ(1, HTTP_AUTHORIZATION="Bearer x"), environ(1, HTTP_COOKIE="a=b"),
        environ(1, **{"pylon.body": b"[]"}), environ(1, **{"pylon.body": None}),
    ]
    assert run_all(other, marked, *likes) == [True] + [False] * len(likes)
    assert len(marked["pylon.quarantined"]) == 16


def test_long_bodies_differ_by_their_ends_and_length() -> None:
    table = Quarantine()
    body = b"a" * 5_000
    for _ in range(2):
        kill_while(table, environ(**{"pylon.body": body}))
    other = RunningRequests(2)
    bodies = (body, body + b"a", b"b" + body[1:], body[:-1] + b"b")
    assert run_all(other, *(environ(**{"pylon.body": each}) for each in bodies)) == [
        True, False, False, False]


def test_a_request_that_only_ran_beside_needs_more_deaths_and_is_cleared_by_its_end() -> None:
    table = Quarantine()
    other = RunningRequests(2)
    waiting, poison = environ(7), environ(1)
    for _ in range(3):
        kill_while(table, waiting, poison)
    assert run_all(other, environ(1)) == [True]
    assert run_all(other, environ(7)) == [False]  # its end takes the three points away
    kill_while(table, environ(7), environ(3))
    assert run_all(other, environ(7)) == [False]


def test_first_death_is_forgotten_when_the_request_completes() -> None:
    table = Quarantine()
    other = RunningRequests(2)
    for _ in range(5):
        kill_while(table, environ(1))
        assert run_all(other, environ(1)) == [False]


def test_completed_requests_and_drained_workers_are_not_judged() -> None:
    table = Quarantine()
    for _ in range(3):
        table.prepare(1)
        running = RunningRequests(1)
        running.end(running.begin(environ(1)))
        table.judge(1, 1, 0.0)
        running.begin(environ(2))
        running.drain()
        table.judge(1, 1, 0.0)
    assert run_all(RunningRequests(2), environ(1), environ(2)) == [False, False]


def test_entries_expire_and_are_bounded() -> None:
    table = Quarantine()
    for now_s in (0.0, 5.0):
        kill_while(table, environ(1), now_s=now_s)
    other = RunningRequests(2)
    table.expire(limits.QUARANTINE_S)
    assert run_all(other, environ(1)) == [True]
    table.expire(limits.QUARANTINE_S + 5.0)
    assert run_all(other, environ(1)) == [False]
    for _ in range(2):
        kill_while(table, environ(1), now_s=1_000.0)
    for n in range(limits.QUARANTINE_ENTRIES + 10):
        kill_while(table, environ(100 + n), now_s=2_000.0)
    assert run_all(other, environ(1)) == [False], "the oldest made room"


def test_requests_beyond_the_slots_run_unwatched() -> None:
    running = RunningRequests(1)
    slots = [running.begin(environ(n)) for n in range(200)]
    assert len(set(slots)) == 65
    for slot in slots:
        running.end(slot)
    assert len({running.begin(environ(n)) for n in range(64)}) == 64


def test_log_names_the_request_without_what_may_be_secret(
    capfd: pytest.CaptureFixture[str]
) -> None:
    kill_while(Quarantine(), environ(PATH_INFO="/api/invites/" + "s3cr3t" * 10, QUERY_STRING="t=q"))
    line = json.loads(capfd.readouterr().err)
    assert line["request"] == "POST /api/invites/s3cr3ts3..."


@pytest.mark.parametrize("word", ["POISON-SEGV", "POISON-ABRT"])
def test_server_refuses_a_poisoned_request_after_two_deaths(
    make_server: Callable[..., PylonServer], word: str
) -> None:
    server = make_server(PYLON_HTTP_WORKERS="2")
    server.command = change("pylon.api.http.middleware", POISONED)
    server.start()

    def post(sender: str) -> tuple[int, Any]:
        return server.request(
            "POST", "/api/entities/Tick", {"n": 1, "sender": sender}, token=ADMIN_TOKEN)[:2]

    def count_events(name: str) -> int:
        return server.log_path.read_text().count(f'"event":"{name}"')

    for deaths in (1, 2):
        with pytest.raises(OSError):
            post(word)
        wait_until("a death is judged", lambda n=deaths: count_events("request.suspected") == n)
        wait_until("another worker", lambda: len(server.pids("http")) == 2)
    pids = server.pids("http")
    for _ in range(6):
        status, body = post(word)
        assert (status, body["error"]["code"]) == (503, "REQUEST_QUARANTINED"), body
        assert post("others are served")[0] == 201
    assert server.pids("http") == pids, "no worker died any more"
    lines = [json.loads(line) for line in server.log_path.read_text().splitlines()
             if line.startswith("{")]
    (quarantined,) = [line for line in lines if line["event"] == "request.quarantined"]
    assert quarantined["fingerprint"] == body["error"]["fingerprint"]
    assert quarantined["request"] == "POST /api/entities/Tick"
    page = server.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"})[1]
    assert "pylon_quarantined_requests_total{" in page
    assert server.terminate() == 0
