"""A client's way among nodes: it uses one until that fails, then the next one.

Used by those of a trial that are no writers: members of rooms, editors of documents, sessions.
"""

from __future__ import annotations

import http.client
import itertools
import select
import time
from collections.abc import Sequence
from typing import Any, Final

import websocket

from tests.support.server import PylonServer

TRY_S: Final = 3.0  # for one answer; a frozen node gives none
PAUSE_S: Final = 0.1
TRY_AGAIN_LATER: Final = 1013
FAILURES: Final = (OSError, http.client.HTTPException, websocket.WebSocketException, ValueError)


class Refused(OSError):
    """An answer that the client did not want; `status` and the error's `code`."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.code = body["error"]["code"] if isinstance(body, dict) and "error" in body else ""


class Roamer:
    """One client. Its sockets are on the node after the one that its requests go to."""

    def __init__(self, nodes: Sequence[PylonServer], first: int, token: str) -> None:
        self._nodes = nodes
        self._turns = itertools.cycle(range(len(nodes)))
        self._at = 0
        for _ in range(first % len(nodes) + 1):
            self._at = next(self._turns)
        self.token = token

    @property
    def at(self) -> int:
        """The number of the node that the requests go to."""
        return self._at

    def leave(self) -> None:
        """Use the next node from now on."""
        self._at = next(self._turns)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request; return the body of its answer.

        Raises: Refused for a status of 400 or more; any of `FAILURES`.
        """
        status, answer, _ = self._nodes[self._at].request(
            method, path, body, token=self.token, timeout_s=TRY_S
        )
        if status >= 400:
            raise Refused(status, answer)
        return answer

    def connect(self, query: str = "") -> websocket.WebSocket:
        """Open a socket. Raises: any of `FAILURES`."""
        return open_socket(self._nodes[(self._at + 1) % len(self._nodes)], self.token, query)


def open_socket(node: PylonServer, token: str, query: str = "") -> websocket.WebSocket:
    """Open a socket on a node. Raises: any of `FAILURES`."""
    ws = websocket.WebSocket()
    ws.connect(
        f"ws://{node.host}:{node.port + 1}/{query}", subprotocols=[f"bearer.{token}"],
        timeout=TRY_S,
    )
    return ws


def open_admitted(node: PylonServer, token: str, timeout_s: float) -> websocket.WebSocket:
    """Open a socket, again while its worker asks for patience (1013), until it answers a ping.

    Raises: AssertionError after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            ws = open_socket(node, token, "?changes=0")
            ws.ping("in?")
            while (heard := hear(ws, TRY_S)) is not None:
                if heard[0] == websocket.ABNF.OPCODE_PONG:
                    return ws
                if heard[0] == websocket.ABNF.OPCODE_CLOSE:
                    assert close_code(heard[1]) == TRY_AGAIN_LATER, heard
                    break
        except FAILURES:
            pass
        time.sleep(PAUSE_S)
    raise AssertionError(f"{node.folder.name} admitted no socket within {timeout_s:g} s")


def hear(ws: websocket.WebSocket, timeout_s: float) -> tuple[int, bytes] | None:
    """Return the next message or control frame, or None after `timeout_s`; pings are answered.

    Raises: OSError when the socket is closed; any of `FAILURES`.
    """
    assert ws.sock is not None
    if not select.select([ws.sock], [], [], max(0.0, timeout_s))[0]:
        return None
    opcode, data = ws.recv_data(control_frame=True)
    return opcode, data


def close_code(data: bytes) -> int:
    """Return the code of a close frame."""
    return int.from_bytes(data[:2], "big") if data else 1005
