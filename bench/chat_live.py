"""The chat live: windows of members, and memberships that begin and end while others listen.

Every socket's events are checked: no row of a room that is not the member's, and every row that a
membership opens or closes. The writers are processes of their own.
"""

from __future__ import annotations

import http.client
import json
import random
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import chat_data as data
import server as srv
import windows
from chat_load import FORK, anon_mib, check, percentiles, sign_in

_WAIT_S: Final = 120.0
_WRITERS: Final = 4
_ADDRESSES: Final = 50  # all windows of one would exceed limits.LIVE_BYTES_OF_ADDRESS
_COMPARED: Final = 100  # windows that are compared with queries
_SETTLE_S: Final = 2.0
_CALM_S: Final = 6.0
_QUIET_S: Final = 8.0  # a worker returns free memory when it has become quiet
_JOINING: Final = 10  # of so many listeners, one gets memberships
_RESYNC_CLOSE: Final = {"type": "close", "code": 1012}


class Sockets:
    """Many sockets in one epoll set, each with its owner."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._by_fd: dict[int, tuple[windows.Socket, Any]] = {}

    def add(self, client: windows.Socket, owner: Any) -> None:
        """Watch a socket."""
        self._poll.register(client.sock, select.EPOLLIN)
        self._by_fd[client.sock.fileno()] = client, owner

    def close(self, clients: Iterable[windows.Socket]) -> None:
        """End sockets."""
        for client in clients:
            self._poll.unregister(client.sock)
            del self._by_fd[client.sock.fileno()]
            client.sock.close()

    def read_until(
        self, holds: Callable[[], bool], take: Callable[[Any, dict[str, Any], int], None],
        wait_s: float = _WAIT_S,
    ) -> bool:
        """Pass messages to `take(owner, message, now_ns)` until the condition holds.

        Returns:
            Whether it holds; False after `wait_s`.
        """
        until_s = time.monotonic() + wait_s
        while not holds():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            for fd, _ in self._poll.poll(min(left_s, 0.1)):
                client, owner = self._by_fd[fd]
                now_ns = time.monotonic_ns()
                for message in windows.receive(client):
                    take(owner, message, now_ns)
        return True


class Sent(NamedTuple):
    """An insert: its room, its start, and when its answer came."""

    room: str
    begun_ns: int
    answered_ns: int


class Writer:
    """A process that writes messages as the insider, at a steady rate."""

    def __init__(
        self, server: srv.Server, token: str, rooms: list[str], rate: float, *, deletes: bool
    ) -> None:
        self._ours, theirs = FORK.Pipe()
        self._process = FORK.Process(
            target=_write, args=(server.port, token, rooms, rate, deletes, theirs), daemon=True
        )
        self._process.start()

    def end(self) -> dict[str, Sent]:
        """End it; its inserts by row id."""
        self._ours.send(None)
        sent, problem = self._ours.recv()
        self._process.join()
        check(problem is None, f"a writer: {problem}")
        found: dict[str, Sent] = sent
        return found


def _write(
    port: int, token: str, rooms: list[str], rate: float, deletes: bool, pipe: Any
) -> None:
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    sent: dict[str, Sent] = {}
    mine: list[str] = []
    problem = None
    due_s = time.monotonic()
    while not pipe.poll(max(0.0, due_s - time.monotonic())):
        due_s += 1.0 / rate
        if deletes and len(mine) >= 20:
            conn.request("DELETE", f"/api/entities/Message/{mine.pop(0)}", headers=headers)
            mine.pop(0)
            wanted = 200
        else:
            room = random.choice(rooms)
            begun_ns = time.monotonic_ns()
            body = {"roomId": room, "text": f"t-{begun_ns} " + "lorem ipsum " * 8}
            conn.request("POST", "/api/entities/Message", json.dumps(body), headers)
            wanted = 201
        answer = conn.getresponse()
        raw = answer.read()
        if answer.status != wanted:
            problem = f"{answer.status} {raw[:300]!r}"
            break
        if wanted == 201:
            row_id = json.loads(raw)["id"]
            sent[row_id] = Sent(room, begun_ns, time.monotonic_ns())
            mine.append(row_id)
    pipe.send((sent, problem))


# --- Windows -----------------------------------------------------------------------------------


def measure_windows(
    server: srv.Server, facts: data.Facts, count: int, live: int, rate: float, seconds: float
) -> dict[str, Any]:
    """Open windows of members on one ws worker, then write into the rooms of some of them."""
    worker = {"ws/1": server.processes()["ws/1"]}
    tokens = [sign_in(server, data.person(n)) for n in range(-(-count // data.ROOMS_OF_PERSON))]
    rooms_of = [facts.rooms_of(data.person(number)) for number in range(len(tokens))]
    insider = sign_in(server, data.INSIDER)
    cold_mib, _ = server.usage(worker)["ws/1"]
    sockets = Sockets()
    clients = [
        windows.connect(server.port + 1, token, address=f"127.0.0.{2 + number % _ADDRESSES}")
        for number, token in enumerate(tokens)
    ]
    for client in clients:
        sockets.add(client, client)
    time.sleep(_SETTLE_S)
    connected_mib, cpu_before_s = server.usage(worker)["ws/1"]
    connected_anon_mib = anon_mib(worker["ws/1"])
    started_s = time.monotonic()
    asked = 0
    for client, rooms in zip(clients, rooms_of, strict=True):
        for room in rooms[: count - asked]:
            windows.send(client, {
                "type": "subscribe", "sub_id": room, "entity": "Message", "filter": _window(room)
            })
            asked += 1
        if asked % 50 < data.ROOMS_OF_PERSON or client is clients[-1]:
            _wait_answered(sockets, clients, asked)
    spent_s = time.monotonic() - started_s
    peak_mib = anon_mib(worker["ws/1"])
    time.sleep(_QUIET_S)
    full_mib, cpu_s = server.usage(worker)["ws/1"]
    full_anon_mib = anon_mib(worker["ws/1"])
    staying = clients[: max(1, live // data.ROOMS_OF_PERSON)]
    sockets.close(clients[len(staying) :])
    watched = [room for rooms in rooms_of[: len(staying)] for room in rooms]
    _, before_s = server.usage(worker)["ws/1"]
    writers = [
        Writer(server, insider, watched, rate / _WRITERS, deletes=True) for _ in range(_WRITERS)
    ]
    sockets.read_until(lambda: False, windows.apply, seconds)
    _, after_s = server.usage(worker)["ws/1"]
    sent = {row_id: each for writer in writers for row_id, each in writer.end().items()}
    sockets.read_until(lambda: False, windows.apply, _SETTLE_S)
    wanted = sum(watched.count(each.room) for each in sent.values())
    latencies = []
    for client in staying:
        # A row may come again, when another one of its window is deleted: the first time counts.
        first_ns = {row_id: at_ns for row_id, at_ns in reversed(client.seen) if row_id in sent}
        latencies += [(at_ns - sent[row_id].begun_ns) / 1e6 for row_id, at_ns in first_ns.items()]
    check(len(latencies) == wanted, f"{len(latencies)} of {wanted} diffs have come")
    for number in random.sample(range(len(staying)), min(_COMPARED, len(staying))):
        for room, ids in staying[number].windows.items():
            rows = server.request("POST", "/api/query/Message", _window(room), tokens[number])
            check([row["id"] for row in rows] == ids, f"the window of {room}")
    sockets.close(staying)
    return {
        "windows": asked, "sockets": len(clients), "rss_cold_mib": cold_mib,
        "rss_connected_mib": connected_mib, "rss_mib": full_mib,
        "anon_peak_mib": peak_mib, "anon_mib": full_anon_mib,
        "anon_bytes_per_window": round((full_anon_mib - connected_anon_mib) * 2**20 / asked),
        "subscribe_ms": round(spent_s * 1_000 / asked, 3),
        "subscribe_cpu_ms": round((cpu_s - cpu_before_s) * 1_000 / asked, 3),
        "live": len(watched), "inserts_per_s": round(len(sent) / seconds, 1),
        "diffs": wanted, "ws_cpu_percent": round((after_s - before_s) * 100 / seconds, 1),
        **percentiles("write", [(s.answered_ns - s.begun_ns) / 1e6 for s in sent.values()]),
        **percentiles("delivery", latencies),
    }


def _wait_answered(sockets: Sockets, clients: list[windows.Socket], asked: int) -> None:
    check(
        sockets.read_until(lambda: sum(c.answers for c in clients) >= asked, windows.apply),
        "windows are not answered",
    )


def _window(room: str) -> dict[str, Any]:
    return {"roomId": room, "$order": {"sentAt": "desc"}, "$limit": windows.WINDOW_ROWS}


# --- Memberships -------------------------------------------------------------------------------


@dataclass
class Listener:
    """A person with the stream of changes: what it may get, and what it has got."""

    user_id: str
    token: str
    rooms: set[str]
    client: windows.Socket
    last_seq: int
    opened: dict[str, str] = field(default_factory=dict)  # entity by row id, of the opened room
    events: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)  # resync and close

    def take(self, message: dict[str, Any], now_ns: int, opened_room: str | None) -> None:
        """Check an event, and keep what is measured."""
        if message.get("type") in ("resync", "close"):
            self.ends.append(message)
            return
        if "seq" not in message or "entity" not in message:
            return
        self.events += 1
        check(message["seq"] > self.last_seq, f"seq {message['seq']} after {self.last_seq}")
        self.last_seq = message["seq"]
        row_id, row = message["row_id"], message.get("data")
        if message["kind"] == "delete":
            self.opened.pop(row_id, None)
            return
        room = row["id"] if message["entity"] == "Room" else row["roomId"]
        check(room in self.rooms or room == opened_room, f"{self.user_id} gets a row of {room}")
        if room == opened_room:
            self.opened[row_id] = message["entity"]
        elif message["entity"] == "Message":
            sent_ns = int(row["text"].partition(" ")[0].removeprefix("t-"))
            self.latencies_ms.append((now_ns - sent_ns) / 1e6)


def measure_members(
    server: srv.Server, facts: data.Facts, listeners: int, changes: int, rate: float
) -> dict[str, Any]:
    """Add members to rooms of 1,000 messages and remove them, while others listen."""
    owner, insider = sign_in(server, data.OWNER), sign_in(server, data.INSIDER)
    people = [_listen(server, facts, data.person(number)) for number in range(listeners)]
    stranger = _listen(server, facts, data.STRANGER)
    busy = sorted({room for each in people for room in each.rooms})
    quiet = [room for room in facts.rooms if room not in busy]
    joining = people[: max(1, listeners // _JOINING)]
    with _watched(people[len(joining) :]) as watchers:
        writer = Writer(server, insider, busy, rate, deletes=False)
        worker = {"ws/1": server.processes()["ws/1"]}
        time.sleep(_CALM_S)
        calm = watchers.latencies_ms()
        sockets = Sockets()
        joins = _Joins(server, facts, sockets, owner)
        for each in [*joining, stranger]:
            sockets.add(each.client, each)
        sockets.read_until(lambda: False, joins.take, 0.5)
        _, before_s = server.usage(worker)["ws/1"]
        watchers.latencies_ms()
        for number in range(changes):
            joins.change(joining[number % len(joining)], quiet[number % len(quiet)])
        churn = watchers.latencies_ms()
        _, after_s = server.usage(worker)["ws/1"]
        large = joins.change_large(joining[0])
        sockets.read_until(lambda: False, joins.take, 0.5)
        after_large = watchers.latencies_ms()
        writer.end()
        sockets.read_until(lambda: False, joins.take, 1.0)
    check(stranger.events == 0, f"the stranger got {stranger.events} events")
    for each in joining[1:]:
        check(not each.ends, f"{each.user_id}: {each.ends}")
    return {
        "listeners": len(people), "changes": changes, "rows_each": joins.rows // changes,
        **percentiles("opened", joins.opened_ms), **percentiles("closed", joins.closed_ms),
        **percentiles("others_calm", calm), **percentiles("others", churn),
        "ws_cpu_ms_per_change": round((after_s - before_s) * 1_000 / (2 * changes), 1),
        "stranger_events": stranger.events,
        "large": {**large, **percentiles("others", after_large)},
    }


class _Watchers:
    """People who listen in a process of their own."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def latencies_ms(self) -> list[float]:
        """Return the latencies since the last call."""
        self._pipe.send("latencies")
        found, problem = self._pipe.recv()
        check(problem is None, str(problem))
        latencies: list[float] = found
        return latencies


@contextmanager
def _watched(people: list[Listener]) -> Iterator[_Watchers]:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_watch, args=(people, theirs), daemon=True)
    process.start()
    for each in people:
        each.client.sock.close()
    try:
        yield _Watchers(ours)
    finally:
        ours.close()
        theirs.close()
        process.terminate()
        process.join()


def _watch(people: list[Listener], pipe: Any) -> None:
    sockets = Sockets()
    for each in people:
        sockets.add(each.client, each)
    problem = None
    while True:
        try:
            sockets.read_until(pipe.poll, _take, _WAIT_S)
        except SystemExit as wrong:
            problem = problem or str(wrong)
        problem = problem or next((f"{p.user_id}: {p.ends}" for p in people if p.ends), None)
        pipe.recv()
        pipe.send(([each for p in people for each in p.latencies_ms], problem))
        for each in people:
            each.latencies_ms = []


def _take(listener: Listener, message: dict[str, Any], now_ns: int) -> None:
    listener.take(message, now_ns, None)


class _Joins:
    """Memberships that begin and end, one at a time."""

    def __init__(
        self, server: srv.Server, facts: data.Facts, sockets: Sockets, owner: str
    ) -> None:
        self._server, self._facts, self._sockets, self._owner = server, facts, sockets, owner
        self._who: Listener | None = None
        self._room = ""
        self.rows = 0
        self.opened_ms: list[float] = []
        self.closed_ms: list[float] = []

    def take(self, listener: Listener, message: dict[str, Any], now_ns: int) -> None:
        """Check an event of a socket."""
        listener.take(message, now_ns, self._room if listener is self._who else None)

    def _add(self, who: Listener, room: str) -> str:
        self._who, self._room = who, room
        body = {"roomId": room, "userId": who.user_id}
        return str(self._server.request("POST", "/api/entities/Member", body, self._owner)["id"])

    def change(self, who: Listener, room: str) -> None:
        """Make somebody a member, wait for the rows, and end the membership."""
        facts = self._facts
        wanted = {*facts.messages_of([room]), room}
        wanted.update(facts.column("SELECT id FROM Member WHERE roomId = ?", room))
        begun_ns = time.monotonic_ns()
        member = self._add(who, room)
        wanted.add(member)
        check(
            self._sockets.read_until(lambda: len(who.opened) >= len(wanted), self.take),
            f"{len(who.opened)} of {len(wanted)} rows of {room} have come",
        )
        self.opened_ms.append((time.monotonic_ns() - begun_ns) / 1e6)
        check(set(who.opened) == wanted, f"the rows of {room} that were opened")
        self.rows += len(wanted)
        begun_ns = time.monotonic_ns()
        self._server.request("DELETE", f"/api/entities/Member/{member}", token=self._owner)
        check(
            self._sockets.read_until(lambda: not who.opened, self.take),
            f"{len(who.opened)} rows of {room} were not closed",
        )
        self.closed_ms.append((time.monotonic_ns() - begun_ns) / 1e6)

    def change_large(self, who: Listener) -> dict[str, Any]:
        """Open more rows than `limits.RELATED_ROWS` to a member, who must then pull."""
        large = self._facts.large
        begun_ns = time.monotonic_ns()
        self._add(who, large)
        check(
            self._sockets.read_until(lambda: who.ends[-1:] == [_RESYNC_CLOSE], self.take),
            f"the member of the large room is not told to pull: {who.ends}",
        )
        told_ms = (time.monotonic_ns() - begun_ns) / 1e6
        self._sockets.close([who.client])
        conn = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=_WAIT_S)
        headers = {"Authorization": f"Bearer {who.token}"}
        conn.request("GET", f"/api/sync/pull?since={who.last_seq}", headers=headers)
        answer = conn.getresponse()
        answer.read()
        conn.close()
        check(answer.status == 410, f"a pull from the cursor: {answer.status}")
        begun_ns = time.monotonic_ns()
        body = {"since": 0, "entities": ["Message"], "scope": {"Message": {"roomId": large}}}
        snapshot = self._server.request("POST", "/api/sync/pull", body, who.token)
        pulled_ms = (time.monotonic_ns() - begun_ns) / 1e6
        found = {change["row_id"] for change in snapshot["changes"]}
        check(found == set(self._facts.messages_of([large])), "the snapshot of the large room")
        return {
            "rows": len(found), "told_ms": round(told_ms, 1), "told": who.ends,
            "events_before": len(who.opened), "pull_from_cursor": answer.status,
            "snapshot_ms": round(pulled_ms, 1),
        }


def _listen(server: srv.Server, facts: data.Facts, user_id: str) -> Listener:
    token = sign_in(server, user_id)
    head = facts.count("SELECT value FROM _pylon_change_seq")
    client = windows.connect(server.port + 1, token, f"since={head}")
    return Listener(user_id, token, set(facts.rooms_of(user_id)), client, head)
