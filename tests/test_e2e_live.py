"""Live queries of the whole server: two ws workers, one of them killed, writes over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.support.live import LiveSet, LiveWindow
from tests.support.manifests import notes_app
from tests.support.server import PylonServer
from tests.support.wait import WAIT_S, wait_until

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.stores]


class LiveClient:
    """Follows one live query for ever: after a broken connection it connects and asks again."""

    def __init__(
        self, server: PylonServer, token: str, entity: str, body: Any, *, is_window: bool = False
    ) -> None:
        self._url = f"ws://127.0.0.1:{server.port + 1}/?changes=0"
        self._token = token
        self._message = json.dumps(
            {"type": "subscribe", "sub_id": "s", "entity": entity, "filter": body}
        )
        self._socket: websocket.WebSocket | None = None
        self._stopped = False
        self._make = partial(LiveWindow, body) if is_window else LiveSet
        self.held: LiveSet | LiveWindow = self._make()
        self.connects = 0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopped:
                try:
                    self._follow()
                except (OSError, websocket.WebSocketException):
                    continue
        except BaseException as ex:  # noqa: BLE001  the test looks at it
            self.failure = ex

    def _follow(self) -> None:
        self._socket = websocket.create_connection(
            self._url, timeout=WAIT_S, header=[f"Authorization: Bearer {self._token}"]
        )
        self.connects += 1
        held = self._make()
        self._socket.send(self._message)
        while True:
            text = self._socket.recv()
            if not text:
                return
            held.take(json.loads(text))
            if held.complete:
                self.held = held

    def agrees(self, wanted: object) -> bool:
        """Whether it holds these rows; or has failed, so that nobody waits for it."""
        return self.failure is not None or self.held.rows == wanted

    def stop(self) -> None:
        self._stopped = True
        if self._socket is not None and self._socket.sock is not None:
            with contextlib.suppress(OSError):
                self._socket.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(20)


def test_live_queries_outlive_the_death_of_a_worker(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app(), {"PYLON_WS_WORKERS": "2"}).start()
    clients: list[LiveClient] = []
    try:
        ann, ann_id = server.guest()
        bob, bob_id = server.guest()
        clients += [
            LiveClient(server, token, "Note", body)
            for token in (ann, bob) for body in ({}, {"rank": 1}) for _ in range(4)
        ]
        wait_until("all have a result", lambda: all(c.held.complete for c in clients))
        victim = server.pids("ws")[0]
        ids: list[tuple[str, str]] = []
        for n in range(90):
            token, owner = ((ann, ann_id), (bob, bob_id))[n % 2]
            status, body, _ = server.request(
                "POST", "/api/entities/Note",
                {"title": f"note {n}", "ownerId": owner, "shared": n % 3 == 0, "rank": n % 4},
                token=token,
            )
            assert status == 201, body
            ids.append((body["id"], token))
            if n % 5 == 4:
                row_id, token = ids[n // 2]
                status, body, _ = server.request(
                    "PATCH", f"/api/entities/Note/{row_id}",
                    {"shared": n % 10 == 4, "rank": n % 2}, token=token,
                )
                assert status == 200, body
            if n == 45:
                os.kill(victim, signal.SIGKILL)
        for token, mine in ((ann, clients[:8]), (bob, clients[8:])):
            for body, some in (({}, mine[:4]), ({"rank": 1}, mine[4:])):
                status, rows, _ = server.request(
                    "POST", "/api/query/Note", {**body, "$limit": 1_000}, token=token
                )
                assert status == 200, rows
                wanted = {row["id"]: row for row in rows}
                for client in some:
                    wait_until("the live set equals a query", partial(client.agrees, wanted))
        assert [client.failure for client in clients] == [None] * len(clients)
        assert any(client.connects > 1 for client in clients), "the dead worker had some of them"
    finally:
        for client in clients:
            client.stop()
        server.terminate()


def test_live_windows_outlive_the_death_of_a_worker(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app(), {"PYLON_WS_WORKERS": "2"}).start()
    bodies: list[dict[str, Any]] = [
        {"$order": {"rank": "desc"}, "$limit": 10},
        {"shared": True, "$order": {"rank": "asc", "title": "desc"}, "$limit": 7},
        {"$order": {"title": "desc"}, "$limit": 5, "$before": {"title": "note 2", "id": ""}},
    ]
    clients: list[LiveClient] = []
    try:
        guests = [server.guest() for _ in range(2)]
        clients += [
            LiveClient(server, token, "Note", body, is_window=True)
            for token, _ in guests for body in bodies for _ in range(2)
        ]
        wait_until("all have a result", lambda: all(c.held.complete for c in clients))
        victim = server.pids("ws")[0]
        ids: list[tuple[str, str]] = []
        for n in range(90):
            token, owner = guests[n % 2]
            status, body, _ = server.request(
                "POST", "/api/entities/Note",
                {"title": f"note {n}", "ownerId": owner, "shared": n % 3 == 0, "rank": n % 4},
                token=token,
            )
            assert status == 201, body
            ids.append((body["id"], token))
            if n % 3 == 2:
                row_id, token = ids[n // 2]
                status, body, _ = server.request(
                    "PATCH", f"/api/entities/Note/{row_id}", {"rank": n % 5}, token=token
                )
                assert status == 200, body
            if n > 60:
                row_id, token = ids.pop()
                status, body, _ = server.request(
                    "DELETE", f"/api/entities/Note/{row_id}", token=token
                )
                assert status == 200, body
            if n == 45:
                os.kill(victim, signal.SIGKILL)
        for number, (token, _) in enumerate(guests):
            for place, body in enumerate(bodies):
                status, rows, _ = server.request("POST", "/api/query/Note", body, token=token)
                assert status == 200, rows
                begin = 6 * number + 2 * place
                for client in clients[begin : begin + 2]:
                    wait_until("the window equals a query", partial(client.agrees, rows))
        assert [client.failure for client in clients] == [None] * len(clients)
        assert any(client.connects > 1 for client in clients), "the dead worker had some of them"
    finally:
        for client in clients:
            client.stop()
        server.terminate()
