"""A client that syncs exactly as the published JavaScript client does (spec/clients.md §1).

Start: pull until done, then connect. Live events count only when their seq is above the
cursor. On any close: back off, pull, connect again. Nothing that the published client lacks
is used (no `?since=`, no Last-Event-ID), so what these tests show holds for unmodified apps.

It records every live event it was sent, to judge order and repetition.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from typing import Any

import websocket

from tests.support.server import PylonServer
from tests.support.wait import WAIT_S, wait_until

Rows = dict[str, dict[str, dict[str, Any]]]


class SyncClient:
    """One client over `ws` or `sse`, in a thread of its own. Use as a context manager."""

    def __init__(
        self, server: PylonServer, transport: str, token: str | None, backoff_s: float = 0.05
    ) -> None:
        self.server = server
        self.transport = transport
        self.token = token
        self.backoff_s = backoff_s
        self.cursor = 0
        self.rows: Rows = {}
        self.live_seqs: list[int] = []  # of the connection in use
        self.received: list[dict[str, Any]] = []  # every event accepted, pulled or live
        self.problems: list[str] = []
        self.close_codes: list[int] = []
        self.resyncs = 0
        self.connects = 0
        self._tombstones: dict[tuple[str, str], int] = {}
        self._stop = threading.Event()
        self._connected = threading.Event()
        self._lock = threading.RLock()
        self._socket: websocket.WebSocket | None = None
        self._raw: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> SyncClient:
        self._thread.start()
        wait_until(f"{self.transport} client connected", self._connected.is_set)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self.drop()
        self._thread.join(10)

    def drop(self) -> None:
        """Cut the connection as a lost network would."""
        for s in (self._socket.sock if self._socket is not None else None, self._raw):
            if s is not None:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def snapshot(self) -> Rows:
        with self._lock:
            return {e: dict(rows) for e, rows in self.rows.items() if rows}

    def wait_rows(self, expected: Rows, timeout_s: float = WAIT_S) -> None:
        """Wait until the replica equals `expected`; fail with the difference."""
        expected = {e: rows for e, rows in expected.items() if rows}
        try:
            wait_until("replica equals the store", lambda: self.snapshot() == expected, timeout_s)
        except AssertionError:
            raise AssertionError(self._difference(expected)) from None
        assert self.problems == []

    def _difference(self, expected: Rows) -> str:
        lines = [f"{self.transport} client at cursor {self.cursor} did not converge:"]
        have = self.snapshot()
        for entity in expected.keys() | have.keys():
            want, got = expected.get(entity, {}), have.get(entity, {})
            lines += [f"  missing {entity}/{i}: {want[i]}" for i in sorted(want.keys() - got)[:5]]
            lines += [f"  too many {entity}/{i}: {got[i]}" for i in sorted(got.keys() - want)[:5]]
            lines += [
                f"  differs {entity}/{i}: has {got[i]}, store {want[i]}"
                for i in sorted(want.keys() & got) if want[i] != got[i]
            ][:8]
        return "\n".join([*lines, *self.problems])

    # --- the published client's behaviour ----------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._pull_or_not()
                if self.transport == "ws":
                    self._live_ws()
                else:
                    self._live_sse()
            except (OSError, http.client.HTTPException, websocket.WebSocketException, ValueError):
                pass  # any failure is a reason to back off, as in the published client
            self._stop.wait(random.uniform(0, self.backoff_s))

    def _pull_or_not(self) -> None:
        """The published client swallows what goes wrong in a pull, and connects all the same. One
        that has never pulled is let try again: nobody could help it."""
        try:
            self._pull()
        except (OSError, http.client.HTTPException, ValueError):
            if self.cursor == 0:
                raise

    def _pull(self) -> None:
        refused = 0
        while not self._stop.is_set():
            since = self.cursor
            status, body, _ = self.server.request(
                "GET", f"/api/sync/pull?since={since}", token=self.token
            )
            if status == 410:
                refused += 1
                if refused > 1:
                    self.problems.append("410 for since=0")
                    return
                self.resyncs += 1
                with self._lock:
                    self.rows.clear()
                    self._tombstones.clear()
                    self.cursor = 0
                continue
            if status != 200:
                raise OSError(f"pull answered {status}")
            with self._lock:
                for change in body["changes"]:
                    if since > 0 and change["seq"] <= since:
                        self.problems.append(f"pull since {since} gave seq {change['seq']}")
                    self._apply(change)
                last = body["cursor"]["last_seq"]
                if body["has_more"] and last <= since:
                    self.problems.append(f"has_more with a cursor that stays at {last}")
                    return
                self.cursor = max(self.cursor, last)
            if not body["has_more"]:
                return

    def _apply(self, change: dict[str, Any]) -> None:
        entity, row_id, seq = change["entity"], change["row_id"], change["seq"]
        self.received.append(change)
        rows = self.rows.setdefault(entity, {})
        if change["kind"] == "delete":
            rows.pop(row_id, None)
            self._tombstones[entity, row_id] = seq
            return
        if seq < self._tombstones.get((entity, row_id), 0) or change.get("data") is None:
            return
        if change["kind"] == "insert":
            rows[row_id] = {**change["data"], "id": row_id}
        else:
            rows[row_id] = {**rows.get(row_id, {}), **change["data"], "id": row_id}

    def _on_live(self, text: str) -> None:
        message = json.loads(text)
        if not (message.get("seq") and message.get("entity") and message.get("kind")):
            return
        with self._lock:
            seq = message["seq"]
            if self.live_seqs and seq <= self.live_seqs[-1]:
                self.problems.append(f"live seq {seq} after {self.live_seqs[-1]} on one connection")
            self.live_seqs.append(seq)
            if seq > self.cursor:
                self._apply(message)
                self.cursor = seq

    def _opened(self) -> None:
        self.live_seqs = []
        self.connects += 1
        self._connected.set()

    def _live_ws(self) -> None:
        ws = websocket.WebSocket()
        ws.connect(
            f"ws://{self.server.host}:{self.server.port + 1}/",
            subprotocols=[f"bearer.{self.token}"] if self.token else None,
            timeout=60,
        )
        self._socket = ws
        self._opened()
        try:
            while not self._stop.is_set():
                opcode, data = ws.recv_data(control_frame=True)
                if opcode == websocket.ABNF.OPCODE_TEXT:
                    self._on_live(data.decode())
                elif opcode == websocket.ABNF.OPCODE_CLOSE:
                    self.close_codes.append(int.from_bytes(data[:2], "big") if data else 1005)
                    return
                elif opcode == websocket.ABNF.OPCODE_PING:
                    ws.pong(data)
        finally:
            self._socket = None
            ws.close(timeout=0)

    def _live_sse(self) -> None:
        conn = http.client.HTTPConnection(self.server.host, self.server.port + 2, timeout=60)
        try:
            headers = {"Accept": "text/event-stream"}
            if self.token:
                headers["Authorization"] = f"Bearer {self.token}"
            conn.request("GET", "/events", headers=headers)
            self._raw = conn.sock
            answer = conn.getresponse()
            if answer.status != 200:
                raise OSError(f"SSE answered {answer.status}")
            self._opened()
            while not self._stop.is_set():
                line = answer.readline()
                if not line:
                    self.close_codes.append(0)
                    return
                if line.startswith(b"data: "):
                    self._on_live(line[6:].decode())
        finally:
            self._raw = None
            conn.close()


def settle(clients: list[SyncClient], server: PylonServer, entities: tuple[str, ...]) -> None:
    """Wait until every client's replica equals what its token may read."""
    for client in clients:
        token = client.token
        assert token is not None
        client.wait_rows({e: server.rows(e, token) for e in entities})

