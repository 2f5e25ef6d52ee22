"""The whole path: real processes, writes over HTTP and push, clients over WS and SSE converge."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient, settle
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores

ENTITIES = ("Note", "Tick")


def test_two_ws_and_one_sse_client_converge(server: PylonServer) -> None:
    ann, ann_id = server.guest()
    bob, bob_id = server.guest()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(SyncClient(server, "ws", ann)),
            stack.enter_context(SyncClient(server, "ws", bob)),
            stack.enter_context(SyncClient(server, "sse", ann)),
        ]
        ids = []
        for n in range(30):
            token, owner = ((ann, ann_id), (bob, bob_id))[n % 2]
            status, body, headers = server.request(
                "POST", "/api/entities/Note",
                {"title": f"note {n}", "ownerId": owner, "shared": n % 3 == 0, "rank": n},
                token=token,
            )
            assert status == 201, body
            assert int(headers["x-pylon-change-seq"]) > 0
            ids.append((body["id"], token))
        for n, (row_id, token) in enumerate(ids):
            if n % 4 == 0:  # a view is lost or gained by those who do not own it
                status, body, _ = server.request(
                    "PATCH", f"/api/entities/Note/{row_id}", {"shared": n % 8 == 0}, token=token
                )
                assert (status, body) == (200, {"updated": True})
            if n % 7 == 0:
                status, body, _ = server.request(
                    "DELETE", f"/api/entities/Note/{row_id}", token=token
                )
                assert (status, body) == (200, {"deleted": True})
        status, body, _ = server.request(
            "POST", "/api/sync/push",
            {
                "client_id": "c-1",
                "changes": [
                    {"entity": "Note", "row_id": "_pending_1", "kind": "insert", "op_id": "op-1",
                     "data": {"title": "pushed", "ownerId": ann_id, "shared": True}},
                    {"entity": "Note", "row_id": ids[1][0], "kind": "update", "op_id": "op-2",
                     "data": {"title": "not mine"}},
                ],
            },
            token=ann,
        )
        assert status == 200
        assert body["applied"] == 1
        assert len(body["errors"]) == 1
        settle(clients, server, ENTITIES)
        titles = {row["title"] for row in clients[1].rows["Note"].values()}
        assert "pushed" in titles
        mine = {row["ownerId"] for row in clients[0].rows["Note"].values() if not row["shared"]}
        assert mine == {ann_id}


def test_nobody_is_sent_what_policy_hides(server: PylonServer) -> None:
    ann, ann_id = server.guest()
    bob, _ = server.guest()
    with (
        SyncClient(server, "ws", bob) as ws,
        SyncClient(server, "sse", bob) as sse,
        SyncClient(server, "ws", None) as nobody,
    ):
        _, made, _ = server.request(
            "POST", "/api/entities/Note",
            {"title": "ann's secret", "ownerId": ann_id, "shared": False}, token=ann,
        )
        path = f"/api/entities/Note/{made['id']}"
        server.request("PATCH", path, {"title": "ann's other secret"}, token=ann)
        server.request("DELETE", path, token=ann)
        server.request("POST", "/api/entities/Tick", {"n": 1, "sender": "end"}, token=ann)
        for client in (ws, sse, nobody):
            wait_until("the last event", lambda c=client: c.snapshot().get("Tick"))
            assert "secret" not in json.dumps(client.received)
    _, pulled, _ = server.request("GET", "/api/sync/pull?since=0", token=bob)
    assert "secret" not in json.dumps(pulled)


def test_a_lost_view_arrives_as_a_delete(server: PylonServer) -> None:
    ann, ann_id = server.guest()
    bob, _ = server.guest()
    _, made, _ = server.request(
        "POST", "/api/entities/Note", {"title": "for all", "ownerId": ann_id, "shared": True},
        token=ann,
    )
    with SyncClient(server, "ws", bob) as ws, SyncClient(server, "sse", bob) as sse:
        for client in (ws, sse):
            wait_until("the note", lambda c=client: made["id"] in c.snapshot().get("Note", {}))
        server.request("PATCH", f"/api/entities/Note/{made['id']}", {"shared": False}, token=ann)
        for client in (ws, sse):
            wait_until("it is gone", lambda c=client: not c.snapshot().get("Note"))
            assert client.received[-1]["kind"] == "delete"
        server.request("PATCH", f"/api/entities/Note/{made['id']}", {"shared": True}, token=ann)
        for client in (ws, sse):
            wait_until("it is back", lambda c=client: made["id"] in c.snapshot().get("Note", {}))
            assert client.received[-1]["kind"] == "update"


@pytest.mark.parametrize("transport", ["ws", "sse"])
def test_no_event_is_lost_over_reconnects(
    make_server: Callable[..., PylonServer], transport: str
) -> None:
    """Clients that pull and then connect lose nothing that is written in between."""
    server = make_server().start()
    token, _ = server.guest()
    done = threading.Event()

    def write() -> None:
        n = 0
        while not done.is_set():
            n += 1
            changes = [
                {"entity": "Tick", "row_id": "_pending", "kind": "insert",
                 "data": {"n": n * 25 + m, "sender": "w"}}
                for m in range(25)
            ]
            server.request("POST", "/api/sync/push", {"changes": changes}, token=token)

    with ExitStack() as stack:
        clients = [
            stack.enter_context(SyncClient(server, transport, token, backoff_s=0.02))
            for _ in range(6)
        ]
        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        for _ in range(8):
            before = [c.connects for c in clients]
            for client in clients:
                client.drop()
            wait_until(
                "all are back",
                lambda b=before: all(c.connects > n for c, n in zip(clients, b, strict=True)),
            )
        done.set()
        thread.join(10)
        settle(clients, server, ("Tick",))
        rows = len(clients[0].rows["Tick"])
        assert rows > 200
        for client in clients:
            inserted = [c["row_id"] for c in client.received if c["kind"] == "insert"]
            assert len(inserted) == len(set(inserted)) == rows
            assert client.resyncs == 0


def test_a_replica_of_many_rows_arrives_whole(server: PylonServer) -> None:
    """More rows than a page: an old client's cursor must move while has_more is true."""
    for chunk in range(3):
        changes = [
            {"entity": "Tick", "row_id": f"_pending_{n}", "kind": "insert",
             "op_id": f"op-{chunk}-{n}", "data": {"n": n, "sender": "bulk"}}
            for n in range(900)
        ]
        status, body, _ = server.request(
            "POST", "/api/sync/push", {"changes": changes}, token=ADMIN_TOKEN
        )
        assert (status, body["applied"], body["errors"]) == (200, 900, [])
    started = time.monotonic()
    with SyncClient(server, "ws", ADMIN_TOKEN) as client:
        wait_until("2,700 rows", lambda: len(client.snapshot().get("Tick", {})) == 2_700)
        assert client.problems == []
    assert time.monotonic() - started < 60
