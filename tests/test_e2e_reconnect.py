"""The reconnect race at full size: unmodified clients pull, then connect, while events come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import websocket

from tests.support.server import ADMIN_TOKEN, PylonServer, wait_until
from tests.support.sync_client import SyncClient
from workers.ws import frames

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

CLIENTS = 50
RECONNECTS = 20
EVENTS_PER_S = 500
BATCH = 25


class SeqKeeper(SyncClient):
    """A client that keeps the seqs of what it accepted, pulled or live, and no rows."""

    def __init__(self, server: PylonServer, transport: str, token: str) -> None:
        super().__init__(server, transport, token, backoff_s=0.02)
        self.seqs: list[int] = []

    def _apply(self, change: dict[str, Any]) -> None:
        self.seqs.append(change["seq"])

    def _live_ws(self) -> None:
        """The same conversation, read in large pieces: the library's two reads for each frame
        would make this process the slowest part by far."""
        ws = websocket.WebSocket()
        ws.connect(
            f"ws://127.0.0.1:{self.server.port + 1}/", subprotocols=[f"bearer.{self.token}"],
            timeout=60,
        )
        self._socket = ws
        self._opened()
        try:
            data = b""
            while not self._stop.is_set() and (more := ws.sock.recv(65_536)):
                data, at = data + more, 0
                while (frame := frame_at(data, at)) is not None:
                    opcode, payload, at = frame
                    if opcode == frames.TEXT:
                        self._on_live(payload.decode())
                    elif opcode == frames.PING:
                        ws.pong(payload)
                    elif opcode == frames.CLOSE:
                        self.close_codes.append(int.from_bytes(payload[:2], "big"))
                        return
                data = data[at:]
        finally:
            self._socket = None
            ws.close(timeout=0)


def frame_at(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """Opcode and payload of the server's frame that begins there, and where it ends."""
    if len(data) < at + 2:
        return None
    size, start = data[at + 1], at + 2
    if size == 126:
        if len(data) < at + 4:
            return None
        size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
    assert size < 65_536, "rows here are small"
    end = start + size
    return (data[at] & 0x0F, data[start:end], end) if len(data) >= end else None


def test_fifty_clients_that_reconnect_lose_nothing_of_500_events_a_second(
    make_server: Callable[..., PylonServer],
) -> None:
    """Each has every event of the log once, in order, whenever its connection was cut."""
    server = make_server(
        PYLON_WS_WORKERS="2", PYLON_SSE_WORKERS="2", PYLON_SOCKETS_PER_IP="0"
    ).start()
    # All begin from here: a pull from 0 is a snapshot, and gives no seqs of its own.
    _, _, headers = server.request(
        "POST", "/api/entities/Tick", {"n": -1, "sender": "w"}, token=ADMIN_TOKEN
    )
    begin = int(headers["x-pylon-change-seq"])
    done = threading.Event()
    failed: list[Exception] = []

    def write() -> None:
        begin_s = time.monotonic()
        count = 0
        while not done.wait(max(0.0, begin_s + count / EVENTS_PER_S - time.monotonic())):
            changes = [
                {"entity": "Tick", "row_id": "_pending", "kind": "insert",
                 "data": {"n": count + m, "sender": "w"}}
                for m in range(BATCH)
            ]
            try:
                _, answer, _ = server.request(
                    "POST", "/api/sync/push", {"changes": changes}, token=ADMIN_TOKEN
                )
                assert answer["applied"] == BATCH, answer
            except Exception as ex:  # noqa: BLE001  told by the test
                failed.append(ex)
                return
            count += BATCH

    with ExitStack() as stack:
        clients = [
            stack.enter_context(SeqKeeper(server, ("ws", "sse")[n % 2], server.guest()[0]))
            for n in range(CLIENTS)
        ]
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        cuts = [0] * CLIENTS

        def all_were_cut() -> bool:
            """Cut off whoever is connected again; whether all have come back often enough."""
            for n, client in enumerate(clients):
                if client.connects > cuts[n] and cuts[n] < RECONNECTS:
                    cuts[n] += 1
                    client.drop()
            return all(client.connects > RECONNECTS for client in clients)

        wait_until("all have come back 20 times", all_were_cut, 120.0)
        done.set()
        writer.join(30)
        assert failed == []
        log = seqs_of_the_log(server, begin)
        assert len(log) > RECONNECTS * BATCH
        for client in clients:
            wait_until(
                f"{client.transport} is at the head",
                lambda c=client: c.cursor >= log[-1], 60.0,
            )
            assert client.problems == []
            assert client.resyncs == 0
            assert client.seqs == [begin, *log]


def seqs_of_the_log(server: PylonServer, cursor: int) -> list[int]:
    """Every seq after `cursor`, as pulls give them."""
    found: list[int] = []
    while True:
        _, body, _ = server.request("GET", f"/api/sync/pull?since={cursor}", token=ADMIN_TOKEN)
        found += [change["seq"] for change in body["changes"]]
        cursor = body["cursor"]["last_seq"]
        if not body["has_more"]:
            return found
