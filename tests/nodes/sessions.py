"""Sessions that end on one node and must be dead on all of them.

`Revocation` opens a session's sockets on all nodes and ends the session during a fault;
`revocation_problems` does it while nothing fails. Promised is `REVOKED_S`, with close code 4401. A
busy machine may be slow once, so the second one has `TRIES`; none of them may exceed `LATE_S`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import websocket

from tests.nodes.roamer import FAILURES, close_code, hear, open_admitted
from tests.support.server import PylonServer

REVOKED_S: Final = 1.0
LATE_S: Final = 5.0
TRIES: Final = 3
SESSION_ENDED: Final = 4401
GIVE_UP_S: Final = 30.0


def revocation_problems(nodes: Sequence[PylonServer], first: int) -> list[str]:
    """End a session on one node, and wait for the close of its sockets; what is wrong."""
    took_s: list[float] = []
    for attempt in range(TRIES):
        ending = Revocation(nodes)
        ending.end(nodes[(first + attempt) % len(nodes)])
        problems = ending.problems(only=SESSION_ENDED, within_s=LATE_S)
        if problems:
            return problems
        took_s.append(ending.closed_s - ending.ended_s)
        if took_s[-1] <= REVOKED_S:
            return []
    return [f"session: its sockets were closed {took_s} s after its end, promised: {REVOKED_S} s"]


class Revocation:
    """One session, with a socket on each node."""

    def __init__(self, nodes: Sequence[PylonServer]) -> None:
        self._nodes = nodes
        self._token, _ = nodes[0].guest()
        self._sockets = [open_admitted(node, self._token, GIVE_UP_S) for node in nodes]
        self.ended_s = 0.0  # monotonic, when its end was acknowledged
        self.closed_s = 0.0  # when the last socket was closed
        self._thread: threading.Thread | None = None

    def end(self, node: PylonServer) -> None:
        """End the session on this node.

        Raises: any of `FAILURES`.
        """
        status, body, _ = node.request(
            "DELETE", "/api/auth/session", token=self._token, timeout_s=LATE_S
        )
        if status >= 400:
            raise ConnectionError(f"{status} {body}")
        self.ended_s = time.monotonic()

    def end_soon(self, after_s: float) -> None:
        """End the session somewhere, after a moment, while a fault goes on."""

        def end_it() -> None:
            time.sleep(after_s)
            deadline_s = time.monotonic() + GIVE_UP_S
            while not self.ended_s and time.monotonic() < deadline_s:
                for node in self._nodes:
                    with suppress(*FAILURES):
                        self.end(node)
                        return
                time.sleep(0.1)

        self._thread = threading.Thread(target=end_it, daemon=True)
        self._thread.start()

    def problems(self, *, only: int | None = None, within_s: float) -> list[str]:
        """Wait for the close of all sockets; what is wrong.

        Args:
            only: the code that each close must have; None: any, since the node may have died.
            within_s: from now on, or from the session's end if that is later.
        """
        if self._thread is not None:
            self._thread.join(2 * GIVE_UP_S)
        if not self.ended_s:
            return ["session: no node has ended it"]
        found = []
        deadline_s = max(time.monotonic(), self.ended_s) + within_s
        for node, ws in zip(self._nodes, self._sockets, strict=True):
            code = _read_close(ws, deadline_s)
            if code is None:
                found.append(f"session: a socket on {node.folder.name} stays {within_s:g} s later")
            elif only is not None and code != only:
                found.append(f"session: a socket on {node.folder.name} was closed with {code}")
            ws.close(timeout=0)
        self.closed_s = time.monotonic()
        for node in self._nodes:
            status, body, _ = node.request("GET", "/api/auth/session", token=self._token)
            if status != 200 or body.get("user_id") is not None:
                found.append(f"session: {node.folder.name} still knows it: {status} {body}")
        return found


def _read_close(ws: websocket.WebSocket, deadline_s: float) -> int | None:
    """Return the code of the close, 1006 without one, or None if there is none in time."""
    while True:
        try:
            heard = hear(ws, max(0.0, deadline_s - time.monotonic()))
        except FAILURES:
            return 1006
        if heard is None:
            return None
        if heard[0] == websocket.ABNF.OPCODE_CLOSE:
            return close_code(heard[1])
