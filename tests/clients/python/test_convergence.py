"""Many Python clients, online and offline, against a model: nothing lost, doubled or diverged.

Each client has a connection through a proxy of its own, whose faults change at random. It inserts,
updates and deletes rows of lists that all clients share, some against the policy or a unique field.
It follows each list by a live window, and all changes by `changes`. A write that ended without an
answer is sent again with its key until it has one. In the end, without faults:

- each acknowledged write is in the database, once: 0 lost, 0 doubled;
- each refused write raised, and left nothing;
- each window, and the rows that `changes` has built, equal the database: 0 diverged.

PYLON_TEST_CLIENTS_S sets how long the clients write; the short form takes 5 s.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pylon_client import (
    APIConnectionError,
    ClosedError,
    ConflictError,
    InternalServerError,
    PermissionDeniedError,
    Pylon,
    ResyncRequired,
)
from tests.clients.python.app import MANIFEST, Task
from tests.clients.python.both import STEP_S
from tests.support.fault_proxy import FaultProxy
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

SECONDS = float(os.environ.get("PYLON_TEST_CLIENTS_S", "5"))
CLIENTS = 6 if SECONDS <= 60 else 20
LISTS = ("one", "two", "three")
OWN_ROWS = 40  # of a client; all rows fit into a window of 1,000 however long the run is
FAULTS: tuple[dict[str, Any], ...] = (
    {}, {}, {"refuse": True}, {"stall": True}, {"delay_s": 0.05}, {"block_websocket": True},
    {"lose_answers": True}, {"cut_after_bytes": 3_000}, {"hang_websocket": True},
)


@dataclass
class Outcomes:
    """The rows that the server has sent to the clients, by id. None: deleted."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: dict[str, str | None] = field(default_factory=dict)
    acknowledged: int = 0
    refused: int = 0
    repeated: int = 0


class Member:
    """One client: a thread that writes, one that reads changes, and a window of each list."""

    def __init__(self, port: int, number: int, seed: int, outcomes: Outcomes) -> None:
        self.proxy = FaultProxy([("127.0.0.1", port)])
        self.random = random.Random(seed)
        self.number = number
        self.outcomes = outcomes
        self.problems: list[str] = []
        self.replica: dict[str, str] = {}
        self.stop = threading.Event()
        self.app = Pylon(
            f"http://127.0.0.1:{self.proxy.ports[0]}", timeout=2.0, max_retries=1
        )
        me = self.app.with_options(timeout=STEP_S).auth.guest()
        # The server's address for sockets is past the proxy; the proxy also serves them.
        self.app._core.addresses = {
            "ws": f"ws://127.0.0.1:{self.proxy.ports[0]}/api/sync/ws"
        }
        self.user_id = me.user_id
        self.own: list[str] = []
        self.windows = [
            self.app.rows(Task).where(list=name).order("title").limit(1_000).live()
            for name in LISTS
        ]
        self.threads = [
            threading.Thread(target=self.guard, args=(work,), daemon=True)
            for work in (self.write, self.follow, self.break_things)
        ]

    def guard(self, work: Any) -> None:
        try:
            work()
        except Exception as ex:
            self.problems.append(f"client {self.number}: {ex!r}")
            raise

    # --- Writing ------------------------------------------------------------------------------

    def write(self) -> None:
        count = 0
        while not self.stop.is_set():
            count += 1
            choice = self.random.random()
            title = f"{self.number}-{count}"
            if len(self.own) >= OWN_ROWS:
                self.delete(self.own.pop(self.random.randrange(len(self.own))))
            elif choice < 0.55 or not self.own:
                self.insert(title)
            elif choice < 0.75:
                self.change(self.random.choice(self.own), title)
            elif choice < 0.85:
                self.delete(self.own.pop(self.random.randrange(len(self.own))))
            else:
                self.overstep(title)
            time.sleep(self.random.uniform(0, 0.05))

    def until_answered(self, call: Any) -> Any:
        """Send a write until it has an answer, each time with the same key."""
        key = uuid.uuid4().hex
        while True:
            try:
                return call(key)
            except (APIConnectionError, InternalServerError) as lost:
                if isinstance(lost, APIConnectionError):
                    assert lost.idempotency_key in (key, None)
                with self.outcomes.lock:
                    self.outcomes.repeated += 1
                time.sleep(self.random.uniform(0, 0.2))

    def insert(self, title: str) -> None:
        name = self.random.choice(LISTS)
        row = self.until_answered(lambda key: self.app.rows(Task).insert(
            title=title, list=name, idempotency_key=key
        ))
        self.own.append(row.id)
        self.note(row.id, title)

    def change(self, row_id: str, title: str) -> None:
        self.until_answered(lambda key: self.app.rows(Task).update(
            row_id, title=title, list=self.random.choice(LISTS[:1]), idempotency_key=key
        ))
        self.note(row_id, title)

    def delete(self, row_id: str) -> None:
        self.until_answered(
            lambda key: self.app.rows(Task).delete(row_id, idempotency_key=key)
        )
        self.note(row_id, None)

    def overstep(self, title: str) -> None:
        """Write what the server must refuse: a row of another, or a code that is taken."""
        with self.outcomes.lock:
            others = [
                row_id for row_id, known in self.outcomes.rows.items()
                if known is not None and not known.startswith(f"{self.number}-")
            ]
        if others and self.random.random() < 0.5:
            row_id = self.random.choice(others)
            refused = (PermissionDeniedError,)
            call = lambda key: self.app.rows(Task).update(  # noqa: E731
                row_id, title=f"stolen {title}", idempotency_key=key
            )
        else:
            refused = (ConflictError,)
            call = lambda key: self.app.rows(Task).insert(  # noqa: E731
                title=f"taken {title}", list="one", code="taken", idempotency_key=key
            )
        try:
            self.until_answered(call)
        except refused:
            with self.outcomes.lock:
                self.outcomes.refused += 1
        except Exception as ex:
            if getattr(ex, "code", "") != "NOT_FOUND":  # its owner has deleted it meanwhile
                raise
        else:
            self.problems.append(f"client {self.number}: a write was not refused")

    def note(self, row_id: str, title: str | None) -> None:
        with self.outcomes.lock:
            self.outcomes.rows[row_id] = title
            self.outcomes.acknowledged += 1

    # --- Reading --------------------------------------------------------------------------------

    def follow(self) -> None:
        """Build a replica from the changes, and begin anew where the stream says so."""
        since = 0
        while True:
            try:
                for change in self.app.changes(since=since, entities=[Task]):
                    if change.row is None:
                        self.replica.pop(change.row_id, None)
                    else:
                        self.replica[change.row_id] = change.row.title
                    since = change.seq
            except ClosedError:
                return
            except ResyncRequired:
                since = 0
                self.replica.clear()

    def break_things(self) -> None:
        while not self.stop.wait(self.random.uniform(0.2, 1.2)):
            self.proxy.heal()
            self.proxy.set(**self.random.choice(FAULTS))
            if self.random.random() < 0.4:
                self.proxy.cut()

    def close(self) -> None:
        self.stop.set()
        self.app.close()
        self.proxy.close()


@pytest.fixture
def members(processes: None, tmp_path: Path) -> Iterator[tuple[PylonServer, list[Member]]]:
    server = PylonServer(tmp_path / "s", MANIFEST, {"PYLON_WS_WORKERS": "1"}).start()
    found: list[Member] = []
    try:
        with Pylon(f"http://127.0.0.1:{server.port}", ADMIN_TOKEN) as admin:
            admin["Task"].insert_many([
                {"title": "taken", "list": "one", "code": "taken", "owner": "nobody"}
            ])
        outcomes = Outcomes()
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"seed {seed}")
        for number in range(CLIENTS):
            found.append(Member(server.port, number, seed + number, outcomes))
        yield server, found
    finally:
        for member in found:
            member.close()
        server.close()


def test_clients_converge_behind_faults(members: tuple[PylonServer, list[Member]]) -> None:
    server, clients = members
    outcomes = clients[0].outcomes
    for client in clients:
        for thread in client.threads:
            thread.start()
    time.sleep(SECONDS)
    for client in clients:
        client.stop.set()
    for client in clients:
        writer, _, breaker = client.threads
        breaker.join(STEP_S)
        client.proxy.heal()
        writer.join(STEP_S * 2)
        assert not writer.is_alive()
    stored = {row_id: str(row["title"]) for row_id, row in server.rows("Task").items()}
    stored.pop(next(row_id for row_id, title in stored.items() if title == "taken"))
    wanted = {row_id: title for row_id, title in outcomes.rows.items() if title is not None}
    assert not [problem for client in clients for problem in client.problems]
    assert stored == wanted
    assert outcomes.acknowledged > 10 * CLIENTS
    assert outcomes.refused
    assert outcomes.repeated
    by_list = {
        name: sorted(
            row_id for row_id, row in server.rows("Task").items() if row["list"] == name
        )
        for name in LISTS
    }
    for client in clients:
        for name, window in zip(LISTS, client.windows, strict=True):
            wait_until(
                f"client {client.number} shows {name}",
                lambda window=window, name=name: sorted(r.id for r in window.rows) == by_list[name]
                and {r.id: r.title for r in window.rows}.items() <= {
                    **stored, **{r.id: r.title for r in window.rows if r.title == "taken"}
                }.items(),
                120.0,
            )
    with Pylon(f"http://127.0.0.1:{server.port}", ADMIN_TOKEN) as admin:
        last = admin["Task"].insert_many([{"title": "last", "list": "two", "owner": "nobody"}])[0]
        for client in clients:
            wait_until(
                f"client {client.number} has all changes",
                lambda client=client: last in client.replica, 120.0,
            )
            replica = {k: v for k, v in client.replica.items() if v not in ("taken", "last")}
            assert replica == stored
    print(
        f"{outcomes.acknowledged} writes acknowledged, {outcomes.refused} refused,"
        f" {outcomes.repeated} sent again; {CLIENTS} clients converged"
    )
