"""Rates across nodes: what a client spends on one node counts on all.

Each worker reports with its heartbeat what its clients have spent (`pylon.limiter`). The nodes
thread tells the sum to the other nodes once a second, and they count it in their own tables. All
nodes of a database have the same salt for the keys, so the keys tell nobody who a client is.

A client that uses all nodes at once may so pass a rate by what the others allow within about two
seconds: a heartbeat and a message. Bound: `_KEYS` keys in a second, those that spent most. Called
by `supervisor.main`; `note` by the thread of heartbeats, all else by the nodes thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from heapq import nlargest
from pathlib import Path
from typing import Final

import msgspec

from pylon.clock import Clock
from pylon.limiter import RateTable
from pylon.storage.nodes import NewsMessage
from supervisor.nodes import Nodes

TOPIC: Final = "rates"
_PERIOD_S: Final = 1.0
_KEYS: Final = 5_000
_LONGEST_S: Final = 86_400.0 * 31  # no rate restores more slowly than this

_decode = msgspec.json.Decoder(list[tuple[int, float]]).decode


class NodeRates:
    """See the module."""

    def __init__(self, nodes: Nodes, clock: Clock) -> None:
        self._table: RateTable | None = None
        self._nodes = nodes
        self._clock = clock
        self._lock = threading.Lock()
        self._spent_s: dict[int, float] = {}  # by key, since the last message
        nodes.handle(TOPIC, self._take)
        nodes.every(_PERIOD_S, self._tell)

    def open(self, path: Path) -> None:
        """Make the table of this node, with the salt of all. Call it after the start of `nodes`,
        and before that of the workers.

        Raises:
            OSError: the runtime folder is full or missing.
        """
        self._table = RateTable(path, self._nodes.salt)

    def close(self) -> None:
        """Unmap the table. Call it after the end of the nodes thread."""
        if self._table is not None:
            self._table.close()

    def note(self, spent: Sequence[tuple[int, float]]) -> None:
        """Add what the clients of a worker have spent: keys, and the time that restores it."""
        if not self._nodes.others:
            return
        with self._lock:
            for key, units_s in spent:
                self._spent_s[key] = self._spent_s.get(key, 0.0) + units_s

    def _tell(self) -> None:
        with self._lock:
            spent, self._spent_s = self._spent_s, {}
        if spent:
            most = nlargest(_KEYS, spent.items(), key=lambda item: item[1])
            body = [(key, round(units_s, 3)) for key, units_s in most]
            self._nodes.publish(TOPIC, msgspec.json.encode(body))

    def _take(self, message: NewsMessage) -> None:
        table = self._table
        if table is None:
            return
        now_s = self._clock.monotonic_s()
        for key, units_s in _decode(message.body):
            if key > 0 and 0.0 < units_s < _LONGEST_S:
                table.add(key, units_s, now_s)
