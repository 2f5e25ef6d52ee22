"""Rooms thread: executes the room commands of all workers and publishes the updates.

Rooms live in the supervisor, because it outlives every worker. A restart of the supervisor empties
all rooms (docs/realtime.md). The thread publishes a single update at once. While updates keep
coming, it gathers them for `limits.ROOM_TICK_S`.

With other nodes the thread tells them each tick who joined, changed and left here, and what was
said; it takes over what they tell (`pylon.rooms.node_news`). A node that knows nothing of this one
asks, and is told all members and messages of channels: about `NEWS_BYTES` in a tick, so that they
do not crowd out other news.

Invariants: only this thread uses the `RoomService`. The thread removes the sockets of an ended
worker after it has executed the commands that the worker had sent; the lease covers a lost notice.
Started by `supervisor.main`; the drain stops it after the last client has gone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Final

from pylon import limits
from pylon.bus.rooms_messages import pid_of
from pylon.bus.rooms_port import RoomsPort, RoomsWaker
from pylon.bus.runtime import Runtime
from pylon.clock import Clock, RandomSource
from pylon.rooms.node_news import NEWS_BYTES, RoomNews, decode_news, encode_news
from pylon.rooms.service import RoomService
from pylon.storage.nodes import DEAD_AFTER_S, NewsMessage
from supervisor.nodes import Nodes

TOPIC: Final = "rooms"
_TOLD_S: Final = 0.5  # a node tells all its members no more often

_EXPIRY_S: Final = 1.0  # how often the thread looks for what has expired
_IDLE_S: Final = 60.0  # while nothing can expire


class RoomsThread:
    """`start` it before the workers, `stop` it after them."""

    def __init__(
        self, runtime: Runtime, clock: Clock, random: RandomSource, nodes: Nodes | None = None
    ) -> None:
        """Args: `nodes` share the rooms; not started yet."""
        self._runtime = runtime
        self._clock = clock
        self._service = RoomService(clock, random.token_hex(8))
        self._port = RoomsPort(runtime)
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._nodes = nodes
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # of other nodes
        self._shares_until_s = float("-inf")
        self._told_at_s = float("-inf")
        self._state: Iterator[RoomNews] | None = None  # what is to be told yet
        self._must_tell_again = False
        self._begun: set[str] = set()  # incarnations that are telling all
        if nodes is not None:
            self._join(nodes)
        self._stopping = threading.Event()
        self._waker = RoomsWaker(runtime)
        self._thread = threading.Thread(target=self._run, name="rooms", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it. Idempotent."""
        if not self._thread.is_alive() or self._stopping.is_set():
            return
        self._stopping.set()
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def worker_ended(self, pid: int) -> None:
        """Have the thread remove the sockets of an ended process. Called by the main thread."""
        if not self._stopping.is_set():
            self._ended.put(pid)
            self._waker.wake()

    def _run(self) -> None:
        service, port = self._service, self._port
        due_s = self._clock.monotonic_s()
        while not self._stopping.is_set():
            wait_s = _IDLE_S if service.is_empty else _EXPIRY_S
            if service.has_updates or service.has_news or self._state is not None:
                wait_s = max(0.0, due_s - self._clock.monotonic_s())
            arrived = port.receive(wait_s)
            self._exchange_news()  # first: what the requests change is to be gathered
            for peer, requests in arrived:
                port.reply(peer, service.apply(peer, requests))
            self._note_ends()
            service.expire()
            has_work = service.has_updates or service.has_news or self._state is not None
            if has_work and self._clock.monotonic_s() >= due_s:
                for updates in service.take_updates():
                    port.publish(updates)
                self._tell()
                self._tell_state()
                due_s = self._clock.monotonic_s() + limits.ROOM_TICK_S
        port.close()

    # --- Other nodes -----------------------------------------------------------------------

    def _join(self, nodes: Nodes) -> None:
        """Exchange the members of rooms with the other nodes. Its callbacks run in their thread."""
        service = self._service

        def put(job: Callable[[], None]) -> None:
            if not self._stopping.is_set():
                self._jobs.put(job)
                self._waker.wake()

        def take(message: NewsMessage) -> None:
            news = decode_news(message.body)
            if news.begins:
                self._begun.add(message.incarnation)
            if news.ends and message.incarnation in self._begun:  # else it lacks the beginning
                self._begun.discard(message.incarnation)
                nodes.note_told(message.incarnation)
            put(lambda: service.apply_news(message.incarnation, news))

        nodes.handle(TOPIC, take)
        def forget(incarnation: str) -> None:
            self._begun.discard(incarnation)
            put(lambda: service.remove_node(incarnation))

        nodes.on_lost(self._begun.discard)
        nodes.on_gone(forget)
        nodes.on_asked(lambda: put(self._tell_all))

    def _exchange_news(self) -> None:
        """Apply the news of other nodes, and note whether there are any."""
        nodes = self._nodes
        if nodes is None:
            return
        while not self._jobs.empty():
            self._jobs.get_nowait()()
        self._service.shares = (
            bool(nodes.others) or self._clock.monotonic_s() < self._shares_until_s
        )

    def _tell(self) -> None:
        """Tell the other nodes what this tick has changed."""
        if self._nodes is not None:
            for news in self._service.take_news():
                self._nodes.publish(TOPIC, encode_news(news))

    def _tell_all(self) -> None:
        """Begin to tell all that this node has, for a node that has asked."""
        now_s = self._clock.monotonic_s()
        self._share_on(now_s)  # the registry may not show that node yet
        if self._state is not None:  # whoever asks now has missed the beginning
            self._must_tell_again = True
        elif now_s - self._told_at_s >= _TOLD_S:  # whoever has asked meanwhile asks again
            self._told_at_s = now_s
            self._state = self._service.state()

    def _tell_state(self) -> None:
        """Tell the next part of all that this node has. Call it after `_tell`: what is told later
        must not be older."""
        if self._nodes is None or self._state is None:
            return
        self._share_on(self._clock.monotonic_s())
        size_bytes = 0
        while size_bytes < NEWS_BYTES:
            news = next(self._state, None)
            if news is None:
                self._state = self._service.state() if self._must_tell_again else None
                self._must_tell_again = False
                return
            body = encode_news(news)
            size_bytes += len(body)
            self._nodes.publish(TOPIC, body)

    def _share_on(self, now_s: float) -> None:
        self._shares_until_s = now_s + DEAD_AFTER_S
        self._service.shares = True

    def _note_ends(self) -> None:
        while not self._ended.empty():
            pid = self._ended.get_nowait()
            for name in self._service.workers:
                if pid_of(name) == pid:
                    self._service.remove_worker(name)
