"""Benchmark of the hub: the rate at which it sends changes to 100 WebSockets.

It prints one JSON object, which becomes one line of `pylonctl bench`. The sockets are real; the
time to read their other ends does not count.

`pylon.bench.run` runs it in a process of its own: ``python -m workers.ws.bench SECONDS``.
"""

from __future__ import annotations

import json
import socket
import sys
from statistics import median
from typing import Final

from pylon.auth_context import ADMIN, Caller
from pylon.bench import rows
from pylon.bench.measure import REPEATS
from pylon.changelog.change import Change
from pylon.clock import SystemClock
from pylon.policy.rules import compile_rules
from pylon.storage.events import ChangeEvent
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws.transport import WebSocketTransport

SOCKETS: Final = 100
_ROUND: Final = 20  # publishes between two reads of the other ends
_READ_BYTES: Final = 1024 * 1024
_MESSAGE_BYTES: Final = 1024


def main(budget_s: float) -> None:
    """Publish for `budget_s` seconds and print the rate."""
    clock = SystemClock()
    manifest = rows.fixture()
    rules = compile_rules(manifest)
    hub = Hub(
        {entity.name: rules.for_entity(entity.name) for entity in manifest.entities},
        WebSocketTransport("ws", _MESSAGE_BYTES), clock,
    )
    peers = [_connect(hub) for _ in range(SOCKETS)]
    entity = manifest.entities[0].name
    seq = 0
    rates = []
    for _ in range(REPEATS):
        spent_s, done = 0.0, 0
        while spent_s < budget_s / REPEATS:
            changes = []
            for _ in range(_ROUND):
                seq += 1
                row = b'{"count":%d,"done":true,"id":"%040x","title":"a title"}' % (seq, seq)
                event = ChangeEvent(seq, entity, f"{seq:040x}", "insert", row, None, 0)
                changes.append(Change(event))
            started_s = clock.monotonic_s()
            for change in changes:
                hub.publish([change])
            spent_s += clock.monotonic_s() - started_s
            done += _ROUND
            for peer in peers:
                if not peer.recv(_READ_BYTES):
                    raise AssertionError("the hub closed a socket")
        rates.append(done / spent_s)
    note = f"one change to {SOCKETS} WebSockets"
    print(json.dumps({"ops_per_s": median(rates), "note": note}))


def _connect(hub: Hub) -> socket.socket:
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    connection = Connection(ours, hub.transport, hub, Caller(ADMIN), "127.0.0.1")
    hub.add(connection)
    connection.start()
    hub.join(connection)
    return peer


if __name__ == "__main__":
    main(float(sys.argv[1]))
