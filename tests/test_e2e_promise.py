"""Promise 2 as a state machine: whatever happens in whatever order, every client ends up with
exactly the rows that it may read, or is told to resync; no event twice or out of order.

Real server, real clients. Each example is one life of a database: writes, pushes, reconnects,
clients offline, restarts in order, kill -9, backup and restore. PYLON_TEST_EXAMPLES sets how
many lives are tried.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support import stores
from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient, settle

pytestmark = pytest.mark.stores

EXAMPLES = int(os.environ.get("PYLON_TEST_EXAMPLES", "4"))
NEVER = -1  # a rank that rows have within transactions only
who = st.sampled_from(["ann", "bob"])
flag = st.booleans()


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.temp = tempfile.TemporaryDirectory(prefix="pylon-life-")
        self.server = PylonServer(Path(self.temp.name), notes_app())
        self.clients: dict[str, SyncClient] = {}
        self.users: dict[str, tuple[str, str]] = {}
        self.ids: list[str] = []
        self.ops: list[dict[str, Any]] = []
        self.bundles = 0
        self.count = 0

    @initialize()
    def begin(self) -> None:
        self.server.start()
        for name in ("ann", "bob", "eve"):
            self.users[name] = self.server.guest()
        for name, user, transport in (
            ("ann-ws", "ann", "ws"), ("bob-ws", "bob", "ws"), ("bob-sse", "bob", "sse"),
            ("eve-ws", "eve", "ws"), ("eve-sse", "eve", "sse"),
        ):
            client = SyncClient(self.server, transport, self.users[user][0])
            client.__enter__()
            self.clients[name] = client

    def call(self, method: str, path: str, body: Any, user: str) -> tuple[int, Any]:
        token = self.users[user][0]
        status, answer, _ = self.server.request(method, path, body, token=token)
        assert status < 500, answer
        return status, answer

    @rule(user=who, shared=flag)
    def insert(self, user: str, shared: bool) -> None:
        self.count += 1
        note = {"title": f"t{self.count}", "ownerId": self.users[user][1], "shared": shared}
        status, body = self.call("POST", "/api/entities/Note", note, user)
        assert status == 201
        self.ids.append(body["id"])

    @precondition(lambda self: self.ids)
    @rule(user=who, shared=flag, which=st.integers(0, 50))
    def update(self, user: str, shared: bool, which: int) -> None:
        self.count += 1
        row_id = self.ids[which % len(self.ids)]
        patch = {"shared": shared, "rank": self.count}
        status, _ = self.call("PATCH", f"/api/entities/Note/{row_id}", patch, user)
        assert status in (200, 403, 404)

    @rule(user=who, stays=flag)
    def flicker(self, user: str, stays: bool) -> None:
        """A row that is shared within one transaction only: no commit ever showed it."""
        self.count += 1
        note = {"title": f"t{self.count}", "ownerId": self.users[user][1], "shared": True,
                "rank": NEVER}
        data = {"shared": False, "rank": 0}
        last = {"op": "update", "data": data} if stays else {"op": "delete"}
        status, body = self.call("POST", "/api/transact", [
            {"op": "insert", "entity": "Note", "data": note},
            {"entity": "Note", "id": "$ref:0", **last},
        ], user)
        assert status == 200, body
        if stays:
            self.ids.append(body["results"][0]["id"])

    @precondition(lambda self: self.ids)
    @rule(user=who, which=st.integers(0, 50))
    def delete(self, user: str, which: int) -> None:
        row_id = self.ids[which % len(self.ids)]
        status, _ = self.call("DELETE", f"/api/entities/Note/{row_id}", None, user)
        assert status in (200, 403, 404)

    @rule(user=who, size=st.integers(1, 40), again=flag)
    def push(self, user: str, size: int, again: bool) -> None:
        self.count += 1
        changes = [
            {"entity": "Tick", "row_id": f"_pending_{n}", "kind": "insert",
             "op_id": f"op-{self.count}-{n}", "data": {"n": n, "sender": user}}
            for n in range(size)
        ]
        before = len(self.server.rows("Tick"))
        for round_ in range(2 if again else 1):
            _, body = self.call("POST", "/api/sync/push", {"changes": changes}, user)
            assert (body["applied"], body["errors"]) == (size, [])
            assert body["deduped"] == (size if round_ else 0)
        assert len(self.server.rows("Tick")) == before + size

    @rule(name=st.sampled_from(["ann-ws", "bob-ws", "bob-sse", "eve-ws", "eve-sse"]))
    def reconnect(self, name: str) -> None:
        self.clients[name].drop()

    @rule()
    def restart(self) -> None:
        assert self.server.terminate() == 0
        self.server.start()

    @rule()
    def crash(self) -> None:
        self.server.kill()
        self.server.start()

    @rule()
    def back_up(self) -> None:
        self.bundles += 1
        done = self.server.ctl("backup", str(self.server.folder / f"bundle-{self.bundles}"))
        assert done.returncode == 0, done.stderr

    @precondition(lambda self: self.bundles)
    @rule(which=st.integers(0, 9))
    def restore(self, which: int) -> None:
        assert self.server.terminate() == 0
        bundle = self.server.folder / f"bundle-{which % self.bundles + 1}"
        done = self.server.ctl("restore", str(bundle), "--yes", *stores.restore_flags())
        assert done.returncode == 0, done.stderr
        self.server.start()

    @rule()
    def converge(self) -> None:
        settle(list(self.clients.values()), self.server, ("Note", "Tick"))
        self.check_images()

    def check_images(self) -> None:
        """What each client was ever given of a row: only images that its user might read, and of
        a delete none."""
        for name, client in self.clients.items():
            user_id = self.users[name.split("-")[0]][1]
            for change in list(client.received):
                data = change.get("data")
                if change["kind"] == "delete":
                    assert data is None, (name, change)
                elif change["entity"] == "Note":
                    is_own = data["ownerId"] == user_id
                    assert is_own or data["shared"], (name, change)
                    assert data["rank"] != NEVER, (name, change)

    def teardown(self) -> None:
        try:
            if self.clients:
                settle(list(self.clients.values()), self.server, ("Note", "Tick"))
                self.check_images()
                visible = self.server.rows("Note", ADMIN_TOKEN)
                hidden = {i for i, r in visible.items() if not r["shared"]}
                for name, user in (("ann-ws", "ann"), ("bob-sse", "bob")):
                    seen = self.clients[name].snapshot().get("Note", {})
                    own = {i for i in hidden if visible[i]["ownerId"] == self.users[user][1]}
                    assert hidden & seen.keys() == own
        finally:
            for client in self.clients.values():
                client.__exit__(None, None, None)
            self.server.close()
            self.temp.cleanup()


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("processes")
def test_every_client_has_the_rows_that_it_may_read() -> None:
    run_state_machine_as_test(Life, settings=settings(  # type: ignore[no-untyped-call]
        max_examples=EXAMPLES,
        stateful_step_count=20,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # shrinking would restart servers for hours
        suppress_health_check=list(HealthCheck),
    ))
