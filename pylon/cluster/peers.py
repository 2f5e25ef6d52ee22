"""Peers: the nodes that live, as a process of one node knows them.

The supervisor has them from the registry, and reports them to its workers (`NodeState` on the bus).
A cluster port admits their keys and nobody else's.

Invariant: before the first report nobody is admitted. Called by `zap`, `port` and the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pylon.cluster.keys import is_key
from pylon.storage.nodes import NodeFacts


class Peers:
    """The newest report."""

    __slots__ = ("_node_by_key", "_on_report")

    def __init__(self) -> None:
        self._node_by_key: dict[str, str] = {}
        self._on_report: list[Callable[[], None]] = []

    def replace(self, nodes: Iterable[NodeFacts]) -> None:
        """Take a report."""
        self._node_by_key = {node.curve_key: node.name for node in nodes if is_key(node.curve_key)}
        for callback in self._on_report:
            callback()

    def on_report(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each report."""
        self._on_report.append(callback)

    def find_node(self, key: str) -> str | None:
        """Return the node of a public key; None if no living node has it."""
        return self._node_by_key.get(key)
