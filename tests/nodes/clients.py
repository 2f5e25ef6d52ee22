"""A client that syncs as the published client does, and uses another node after each loss.

It pulls from one node and connects to the next one, so that the cursor of its pull must be known
there. It records what it was sent as a `Stream`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tests.nodes.history import Change, Stream
from tests.support.server import PylonServer
from tests.support.sync_client import SyncClient

PULL_S = 8.0  # a frozen node answers nothing; the client then tries the next one


class _Rotating:
    """The node of the next connection, in the place of a server."""

    def __init__(self, nodes: Sequence[PylonServer], first: int) -> None:
        self._turns = itertools.cycle(range(len(nodes)))
        self._nodes = nodes
        for _ in range(first % len(nodes)):
            next(self._turns)
        self._now = next(self._turns)

    def turn(self) -> None:
        self._now = next(self._turns)

    @property
    def port(self) -> int:
        return self._nodes[self._now].port

    @property
    def host(self) -> str:
        return self._nodes[self._now].host

    def request(
        self, method: str, path: str, body: Any = None, *, token: str | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        node = self._nodes[self._now]
        return node.request(method, path, body, token=token, timeout_s=PULL_S)


class NodeClient(SyncClient):
    """One client, over `ws` or `sse`."""

    def __init__(
        self, nodes: Sequence[PylonServer], first: int, transport: str, token: str, user_id: str
    ) -> None:
        self._rotating = _Rotating(nodes, first)
        self._cursor = self._lost_at = 0
        super().__init__(self._rotating, transport, token, backoff_s=0.2)  # type: ignore[arg-type]
        self.stream = Stream(f"{transport} client {first} of {user_id}", user_id)

    @property
    def cursor(self) -> int:
        return self._cursor

    @cursor.setter
    def cursor(self, value: int) -> None:
        """Note where a snapshot begins (the published client sets 0) and where it ends."""
        if value == 0:
            self._lost_at = getattr(self, "_cursor", 0)
        elif self._cursor == 0:
            self.stream.snapshots.append((self._lost_at, value))
        self._cursor = value

    def _pull_or_not(self) -> None:
        self._rotating.turn()
        super()._pull_or_not()
        self._rotating.turn()

    def _apply(self, change: dict[str, Any]) -> None:
        data = change.get("data")
        if data is not None:
            data = {**data, "id": change["row_id"]}
        made = Change(change["seq"], change["entity"], change["row_id"], change["kind"], data)
        (self.stream.snapshot_rows if self.cursor == 0 else self.stream.events).append(made)
        super()._apply(change)
        self.received.clear()  # the stream has them

    def finish(self) -> Stream:
        """Return what was recorded so far."""
        self.stream.cursor = self.cursor
        self.stream.problems = list(self.problems)
        return self.stream
