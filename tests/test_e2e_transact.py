"""Transactions in a real server that is killed in the middle of them: all of one, or nothing."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections import Counter

import pytest

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores

ROWS = 7  # of each transaction
CALLERS = 4


class Caller(threading.Thread):
    """Sends transactions of ROWS inserts, each under a key of its own, until told to stop."""

    def __init__(self, server: PylonServer, label: str) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.label = label
        self.committed: set[str] = set()
        self.unknown: set[str] = set()
        self.bad: list[object] = []
        self.halt = threading.Event()

    def run(self) -> None:
        n = 0
        while not self.halt.is_set():
            n += 1
            name = f"{self.label}-{n}"
            try:
                status, body, _ = send(self.server, name)
            except (OSError, http.client.HTTPException):
                self.unknown.add(name)
                self.halt.wait(0.02)
                continue
            if status == 200:
                self.committed.add(name)
            elif status == 503:
                self.unknown.add(name)
            else:
                self.bad.append((status, body))


def send(server: PylonServer, name: str) -> tuple[int, dict[str, object], object]:
    operations = [
        {"op": "insert", "entity": "Tick", "data": {"n": n, "sender": name}} for n in range(ROWS)
    ]
    return server.request(
        "POST", "/api/transact", operations, token=ADMIN_TOKEN,
        headers={"Idempotency-Key": name}, timeout_s=10,
    )


@pytest.mark.parametrize("victim", ["supervisor", "http"])
def test_kill_9_in_the_middle_of_transactions(server: PylonServer, victim: str) -> None:
    callers = [Caller(server, f"c{n}") for n in range(CALLERS)]
    for caller in callers:
        caller.start()
    for round_number in range(1, 3):
        wait_until(
            "transactions go through",
            lambda wanted=20 * round_number: all(len(c.committed) > wanted for c in callers),
        )
        if victim == "supervisor":
            server.kill()
            server.start()
        else:
            pid = server.pids("http")[0]
            os.kill(pid, signal.SIGKILL)
            wait_until("a new worker", lambda pid=pid: pid not in server.pids("http"))
            server.wait_ready()
    for caller in callers:
        caller.halt.set()
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive() and caller.bad == []
    stored = Counter(row["sender"] for row in server.rows("Tick").values())
    assert set(stored.values()) == {ROWS}  # never a part of one
    committed = set().union(*(c.committed for c in callers))
    unknown = set().union(*(c.unknown for c in callers))
    assert committed <= stored.keys() <= committed | unknown
    assert len(committed) > CALLERS * 40

    # Sent again under their keys, what was lost happens and what had happened does not.
    for name in sorted(unknown)[:50]:
        status, body, headers = send(server, name)
        assert (status, body["committed"]) == (200, True)
        replayed = isinstance(headers, dict) and headers.get("idempotency-replayed") == "true"
        assert replayed == (name in stored)
    again = Counter(row["sender"] for row in server.rows("Tick").values())
    assert set(again.values()) == {ROWS}
    exported = server.request("GET", "/api/export/Tick", token=ADMIN_TOKEN)[1]
    assert exported["counts"]["Tick"] == sum(again.values())
