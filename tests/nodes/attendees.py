"""Attendees: users in one room of all nodes, and how far the nodes and they agree on who is there.

An attendee joins over HTTP on one node and subscribes with a socket on the next one, or only polls,
as the published `useRoom` does. It changes its presence data all the time, and joins again
elsewhere when a node fails. Before a fault a visitor joins on each node; their sockets are cut at
its end.

`Attendance.problems` waits until every attendee has settled. Then, within `CONVERGE_S`, each node
has exactly the attendees with the data that each set last, each socket has heard the same, a
broadcast reaches every socket, and all nodes have the same history of a channel.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import websocket

from tests.nodes.roamer import FAILURES, Refused, Roamer, hear, open_admitted
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

ROOM: Final = "trial"
CHANNEL: Final = "trial"
CONVERGE_S: Final = 12.0
SETTLE_S: Final = 60.0
PACE_S: Final = 0.3  # between two changes of an attendee's data
BROADCAST_S: Final = 1.0
SUBSCRIBE_S: Final = 5.0

View = dict[str, Any]  # data by user id


class Attendee:
    """One user in the room, in a thread of its own."""

    def __init__(
        self, nodes: Sequence[PylonServer], number: int, hall: Attendance, *, has_socket: bool
    ) -> None:
        token, self.user_id = nodes[number % len(nodes)].guest()
        self._roamer = Roamer(nodes, number, token)
        self._hall = hall
        self._random = random.Random(number)
        self._has_socket = has_socket
        self.data = 0  # the newest that a node has acknowledged
        self.view: View | None = None  # of its socket
        self.told: set[Any] = set()  # broadcasts
        self.rests_at = 0  # the number of the pause in which it has settled
        self.failure = ""
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._hall.stopping.is_set():
            ws = None
            try:
                self._set_data("join")
                if self._has_socket:
                    ws = self._subscribe()
                self._stay(ws)
            except Refused as ex:
                if ex.status < 500 and ex.status not in (401, 429):
                    self.failure = f"room: {self.user_id} was refused: {ex}"
            except FAILURES:
                pass  # its node is away
            except AssertionError as ex:
                self.failure = f"room: {self.user_id}: {ex}"
            finally:
                self.rests_at, self.view = 0, None
                if ws is not None:
                    ws.close(timeout=0)
            self._roamer.leave()
            self._hall.stopping.wait(self._random.uniform(0.02, 0.2))

    def _set_data(self, verb: str) -> None:
        self._put_data(verb, self.data + 1)

    def _put_data(self, verb: str, data: int) -> None:
        answer = self._roamer.ask("POST", f"/api/rooms/{verb}", {"room": ROOM, "data": data})
        if answer.get("updated") is False:
            raise ConnectionError("its node has forgotten it; it joins again")
        self.data = data

    def broadcast(self, data: int) -> None:
        """Say something to the room. Raises: Refused, any of `FAILURES`."""
        self._roamer.ask("POST", "/api/rooms/broadcast", {"room": ROOM, "topic": "t", "data": data})

    def _subscribe(self) -> websocket.WebSocket:
        """Subscribe; again while the other node has not heard of the member."""
        ws = self._roamer.connect("?changes=0")
        deadline_s = time.monotonic() + SUBSCRIBE_S
        while self.view is None:
            if time.monotonic() > deadline_s:
                raise ConnectionError("the node has not heard of it")
            ws.send(json.dumps({"type": "room-subscribe", "room": ROOM}))
            self._hear(ws, 1.0)
        return ws

    def _stay(self, ws: websocket.WebSocket | None) -> None:
        """Change the data and hear the others until a node fails."""
        while not self._hall.stopping.is_set():
            pause = self._hall.pause
            if not pause:
                self._set_data("presence")
                self.rests_at = 0
            elif self.rests_at != pause:
                # Once more, since a frozen node may carry out an older change when it wakes.
                self._set_data("presence")
                self.rests_at = pause
            elif self._hall.repeats_data:
                self._put_data("presence", self.data)
            if ws is None:
                peers = self._roamer.ask("GET", f"/api/rooms/{ROOM}")["members"]
                if self.user_id not in {peer["user_id"] for peer in peers}:
                    raise ConnectionError("its node has forgotten it; it joins again")
                self._hall.stopping.wait(PACE_S)
                continue
            until_s = time.monotonic() + PACE_S
            while (left_s := until_s - time.monotonic()) > 0:
                self._hear(ws, left_s)

    def _hear(self, ws: websocket.WebSocket, timeout_s: float) -> None:
        heard = hear(ws, timeout_s)
        if heard is None:
            return
        opcode, data = heard
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise ConnectionError("closed")
        if opcode != websocket.ABNF.OPCODE_TEXT:
            return
        message = json.loads(data)
        if message["type"] == "room-snapshot":
            self.view = {peer["user_id"]: peer["data"] for peer in message["members"]}
        elif message["type"] == "room-update" and self.view is not None:
            user_id, action = message["member"]["user_id"], message["action"]
            if action == "leave":
                self.view.pop(user_id, None)
            elif action == "broadcast":
                self.told.add(message["data"]["payload"])
            else:
                self.view[user_id] = message.get("data")


class Attendance:
    """All attendees of a trial."""

    def __init__(self, nodes: Sequence[PylonServer], attendees: int = 4) -> None:
        self._nodes = nodes
        self.stopping = threading.Event()
        self.repeats_data = False  # while all settle: for builds that lose an acknowledged change
        self.pause = 0  # the number of the pause; 0: there is none
        self._pauses = 0
        self._visitors: list[websocket.WebSocket] = []
        self._published: list[str] = []  # messages of the channel
        self.attendees = [
            Attendee(nodes, number, self, has_socket=number > 0) for number in range(attendees)
        ]

    def start(self) -> None:
        for attendee in self.attendees:
            attendee.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for attendee in self.attendees:
            attendee.thread.join(SETTLE_S)
            assert not attendee.thread.is_alive()

    def admit_visitors(self) -> None:
        """Let a visitor join and subscribe on each node."""
        for node in self._nodes:
            token, _ = node.guest()
            status, body, _ = node.request(
                "POST", "/api/rooms/join", {"room": ROOM, "data": "visitor"}, token=token
            )
            assert status == 200, body
            ws = open_admitted(node, token, SETTLE_S)
            ws.send(json.dumps({"type": "room-subscribe", "room": ROOM}))
            while b"room-snapshot" not in (hear(ws, SETTLE_S) or (0, b"room-snapshot"))[1]:
                pass
            self._visitors.append(ws)

    def cut_visitors(self) -> None:
        """Cut the visitors' sockets, without a word to the server."""
        for ws in self._visitors:
            ws.shutdown()  # type: ignore[no-untyped-call]
        self._visitors.clear()

    def problems(self) -> list[str]:
        """Let everybody settle, and compare; what is wrong."""
        found = [attendee.failure for attendee in self.attendees if attendee.failure]
        self.cut_visitors()
        self._pauses += 1
        self.pause = self._pauses
        try:
            wait_until("everybody in the room has settled", lambda: all(
                attendee.rests_at == self.pause for attendee in self.attendees
            ), SETTLE_S)
            return [*found, *self._differences()]
        except AssertionError as ex:
            return [*found, f"room: {ex}"]
        finally:
            self.pause = 0

    def _differences(self) -> list[str]:
        message = f"message {self.pause}"
        self._nodes[self.pause % len(self._nodes)].request(
            "POST", "/api/pubsub/publish", {"channel": CHANNEL, "message": message},
            token=ADMIN_TOKEN,
        )
        self._published.append(message)
        found: list[str] = []
        said_s = float("-inf")

        def is_same() -> bool:
            nonlocal said_s
            if time.monotonic() > said_s + BROADCAST_S:  # news between nodes may be lost
                said_s = time.monotonic()
                with suppress(*FAILURES):
                    self.attendees[0].broadcast(self.pause)
            found[:] = self._compare()
            return not found

        try:
            wait_until("the rooms converge", is_same, CONVERGE_S)
        except AssertionError:
            return [f"room, {CONVERGE_S:g} s after all are ready: {line}" for line in found]
        return []

    def _compare(self) -> list[str]:
        wanted = {attendee.user_id: attendee.data for attendee in self.attendees}
        found = []
        histories = []
        for node in self._nodes:
            view = _room_of(node)
            if view != wanted:
                found.append(f"{node.folder.name} has {view}, not {wanted}")
            histories.append(sorted(_history_of(node)))
        for attendee in self.attendees:
            if attendee.view is not None and attendee.view != wanted:
                found.append(f"a socket of {attendee.user_id} has {attendee.view}, not {wanted}")
            if attendee.view is not None and self.pause not in attendee.told:
                found.append(f"a socket of {attendee.user_id} lacks the broadcast {self.pause}")
        if any(history != histories[0] for history in histories):
            found.append(f"the histories of a channel differ: {histories}")
        if not any(self._published[-1] in line for line in histories[0]):
            found.append(f"the history lacks {self._published[-1]!r}: {histories[0]}")
        return found


def _room_of(node: PylonServer) -> View:
    status, body, _ = node.request("GET", f"/api/rooms/{ROOM}", token=ADMIN_TOKEN)
    assert status == 200, body
    return {peer["user_id"]: peer["data"] for peer in body["members"]}


def _history_of(node: PylonServer) -> list[str]:
    status, body, _ = node.request(
        "GET", f"/api/pubsub/history/{CHANNEL}?limit=1000", token=ADMIN_TOKEN
    )
    assert status == 200, body
    return [f"{line['timestamp']} {line['message']}" for line in body["result"]]
