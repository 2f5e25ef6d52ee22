"""The reconnect race at full size: unmodified clients pull, then connect, while events come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.support.seq_recorder import SeqRecorder, seqs_of_the_log
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

pytestmark = [pytest.mark.timeout(300), pytest.mark.stores]

CLIENTS = 50
RECONNECTS = 20
EVENTS_PER_S = 500
BATCH = 25


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
            stack.enter_context(SeqRecorder(server, ("ws", "sse")[n % 2], server.guest()[0]))
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
