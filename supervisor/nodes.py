"""The nodes thread: this node's place among those that share its database.

It registers the node, keeps its heartbeat, knows who else lives and whether this node leads, and
carries the news of other threads. A *topic* has one handler, which the thread calls with each
message. After lost news of a node the thread asks that node to tell its state anew, and asks again
every `_ASK_AGAIN_S` until `note_told`.

Invariants: handlers run in this thread and never block. Messages of one incarnation arrive in
order; after `on_gone` none comes. A node that cannot reach the database goes on alone, and counts
the others as gone after `pylon.storage.nodes.DEAD_AFTER_S`. Metrics: pylon_nodes, pylon_node_leads,
pylon_news_lost_total. Made by `supervisor.main`; the drain stops it after the rooms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import msgspec

from pylon import log, metrics
from pylon.clock import Clock
from pylon.errors import StartDelayed, StoreUnavailable
from pylon.storage.nodes import NewsMessage, NodeFacts, NodeLease, NodeLink, NodesReport

_IDLE_S: Final = 60.0  # the link wakes for its own heartbeat
_ASK_AGAIN_S: Final = 2.0
_ASK: Final = "ask"  # its body: the incarnation that is to tell its state

_log = log.get_logger("nodes")


class _Task(msgspec.Struct):
    """Something to do every so often while there are other nodes."""

    period_s: float
    run: Callable[[], None]
    due_s: float = 0.0


class Nodes:
    """Register handlers, then `start` it; `stop` it at the end."""

    def __init__(
        self, link: NodeLink, incarnation: str, clock: Clock,
        broken: Callable[[BaseException], None],
    ) -> None:
        """Args: `broken` is called, in the thread, when it cannot go on."""
        self._link = link
        self._incarnation = incarnation
        self._clock = clock
        self._broken = broken
        self._handlers: dict[str, Callable[[NewsMessage], None]] = {_ASK: self._asked}
        self._on_gone: list[Callable[[str], None]] = []
        self._on_lost: list[Callable[[str], None]] = []
        self._on_asked: list[Callable[[], None]] = []
        self._tasks: list[_Task] = []
        self._untold: dict[str, float] = {}  # incarnations whose state is not known: asked when
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)

    # --- Before the start ------------------------------------------------------------------

    def handle(self, topic: str, handler: Callable[[NewsMessage], None]) -> None:
        """Have `handler` take the messages of a topic."""
        self._handlers[topic] = handler

    def on_gone(self, callback: Callable[[str], None]) -> None:
        """Call this with each incarnation of a node that has ended or fallen silent."""
        self._on_gone.append(callback)

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """Call this with each incarnation of which news were missed."""
        self._on_lost.append(callback)

    def on_asked(self, callback: Callable[[], None]) -> None:
        """Call this when another node wants to know the state of this one."""
        self._on_asked.append(callback)

    def every(self, period_s: float, run: Callable[[], None]) -> None:
        """Call `run` in this period while there are other nodes."""
        self._tasks.append(_Task(period_s, run))

    def start(self) -> None:
        """Register this node.

        Raises:
            StartDelayed: the database does not answer.
        """
        try:
            self._link.begin()
        except StoreUnavailable as ex:
            raise StartDelayed(f"DATABASE_URL: {ex.message}") from ex
        self._thread.start()

    # --- From any thread -------------------------------------------------------------------

    @property
    def others(self) -> tuple[NodeFacts, ...]:
        """Return the other nodes that live."""
        return self._link.others

    @property
    def leads(self) -> bool:
        """Return whether this node does the upkeep of all."""
        return self._link.leads

    @property
    def salt(self) -> bytes:
        """Return a secret that all nodes of the database have; after `start`."""
        return self._link.salt

    @property
    def living(self) -> tuple[NodeFacts, ...]:
        """Return the nodes that live, this one first."""
        return (self._link.facts, *self._link.others)

    @property
    def lease(self) -> NodeLease:
        """Return the lease of this node on the shards that its workers have claimed."""
        return self._link.lease

    def withdraw(self) -> None:
        """Have the other nodes place no shard on this one from now on."""
        self._link.withdraw()

    def publish(self, topic: str, body: bytes) -> None:
        """Tell all other nodes (JSON). Never blocks."""
        self._link.publish(topic, body)

    def note_told(self, incarnation: str) -> None:
        """Note that a node has told its state anew."""
        self._untold.pop(incarnation, None)

    def find_problem(self) -> str | None:
        """Return why this node cannot be one of several, for readiness; or None."""
        return self._link.problem

    def stop(self) -> None:
        """Leave the registry, and end the thread. Idempotent."""
        if not self._thread.is_alive() or self._stopping.is_set():
            return
        self._stopping.set()
        self._link.wake()
        self._thread.join()

    # --- The thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._take(self._link.receive(self._wait_s()))
                self._ask_again()
                self._run_tasks()
            self._run_tasks(at_end=True)
            self._link.receive(0.0)  # sends what is queued
        except Exception as ex:  # noqa: BLE001  rooms and hints of this node would be alone
            _log.exception("nodes.failed", error=ex)
            self._broken(ex)
        finally:
            self._link.close()

    def _wait_s(self) -> float:
        if not self._link.others or not self._tasks:
            return _IDLE_S
        return max(0.0, min(task.due_s for task in self._tasks) - self._clock.monotonic_s())

    def _take(self, report: NodesReport) -> None:
        for incarnation in report.gone:
            self._untold.pop(incarnation, None)
            for callback in self._on_gone:
                callback(incarnation)
        for incarnation in report.lost:
            metrics.NEWS_LOST.inc()
            for callback in self._on_lost:
                callback(incarnation)
            if incarnation not in report.gone:
                self._untold[incarnation] = float("-inf")
        for message in report.news:
            handler = self._handlers.get(message.topic)
            if handler is None:  # of a later version
                continue
            try:
                handler(message)
            except msgspec.MsgspecError as ex:
                _log.warning("nodes.unreadable", topic=message.topic, error=str(ex))
        metrics.NODES.set(1 + len(self._link.others))
        metrics.NODE_LEADS.set(self._link.leads)

    def _ask_again(self) -> None:
        now_s = self._clock.monotonic_s()
        for incarnation, asked_s in self._untold.items():
            if now_s - asked_s >= _ASK_AGAIN_S:
                self._untold[incarnation] = now_s
                self._link.publish(_ASK, msgspec.json.encode(incarnation))

    def _asked(self, message: NewsMessage) -> None:
        if msgspec.json.decode(message.body, type=str) == self._incarnation:
            for callback in self._on_asked:
                callback()

    def _run_tasks(self, *, at_end: bool = False) -> None:
        if not self._link.others:
            return
        now_s = self._clock.monotonic_s()
        for task in self._tasks:
            if at_end or now_s >= task.due_s:
                task.due_s = now_s + task.period_s
                task.run()
