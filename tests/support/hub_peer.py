"""Connections of a hub in the test's process, and events under the policies of `stage.MANIFEST`.

`Peer` is a connection and the client's end of its socket pair; no network and no bus. `EVENT`
draws an event: an entity, and the row before and after. Used by the tests of `workers.hub` and
of the conversation of `workers.ws`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import gevent
import orjson
from hypothesis import strategies as st

from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext, Caller
from pylon.clock import ManualClock
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.storage.events import ChangeEvent
from tests.support.stage import MANIFEST, READ_RULES
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws.transport import WebSocketTransport

APP = parse_manifest(orjson.dumps(MANIFEST).decode(), "manifest.json")
RULES = compile_rules(APP)
BY_ENTITY = {name: RULES.for_entity(name) for name in APP.by_name}
CONTEXTS = [
    ANONYMOUS, ADMIN, AuthContext(user_id="ada"), AuthContext(user_id="bob"),
    AuthContext(user_id="ada", tenant_id="t"),
]


def arrivals(sock: socket.socket, connection: Connection) -> Iterator[bytes]:
    """Yield the bytes that have arrived at a client's end, the hub's loop having run."""
    while True:
        gevent.sleep(0)
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            if not connection.outbox_bytes:
                return
            gevent.sleep(0.001)
            continue
        if not data:
            return
        yield data


class Peer:
    """A connection in a hub, and the client's end of its socket."""

    def __init__(self, hub: Hub, auth: AuthContext, session_id: str | None = None) -> None:
        ours, self.socket = socket.socketpair()
        ours.setblocking(False)
        self.socket.setblocking(False)
        self.connection = Connection(
            ours, hub.transport, hub, Caller(auth, session_id, session_id), "127.0.0.1"
        )
        hub.add(self.connection)
        self.connection.start()

    def received(self) -> bytes:
        """What has arrived, the hub's loop having run."""
        return b"".join(arrivals(self.socket, self.connection))


def ws_hub(clock: ManualClock | None = None) -> Hub:
    return Hub(BY_ENTITY, WebSocketTransport("ws", 1_024), clock or ManualClock())


def row(owner: str | None, shared: bool | None, text: str = "") -> bytes:
    return orjson.dumps({"id": "1", "text": text, "ownerId": owner, "shared": shared})


IMAGE = st.one_of(st.none(), st.tuples(st.sampled_from([None, "ada", "bob"]), st.booleans()))
EVENT = st.tuples(st.sampled_from(sorted(READ_RULES)), IMAGE, IMAGE).filter(
    lambda e: e[1] is not None or e[2] is not None
)


def event_of(seq: int, entity: str, before: Any, after: Any) -> ChangeEvent:
    kind: Any = "insert" if before is None else "delete" if after is None else "update"
    return ChangeEvent(
        seq, entity, f"{seq:040x}", kind,
        None if after is None else row(*after), None if before is None else row(*before), 1,
    )
