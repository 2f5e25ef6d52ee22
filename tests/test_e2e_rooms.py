"""Rooms of a whole server with two ws workers: news reach subscribers of both, a worker's death
takes its sockets' members with it and nobody else, a thousand joins cost few frames."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.manifests import notes_app
from tests.support.measured import page_families
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.stores import TestStore
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient

pytestmark = pytest.mark.stores


@pytest.fixture(scope="module")
def server(
    tested_store: TestStore, processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PylonServer]:
    env = {"PYLON_WS_WORKERS": "2", "PYLON_SSE_WORKERS": "0", "PYLON_SHARD_WORKERS": "0",
           "PYLON_HTTP_WORKERS": "1"}
    made = PylonServer(tmp_path_factory.mktemp("rooms"), notes_app(), env)
    try:
        yield made.start()
    finally:
        made.close()


def post(server: PylonServer, verb: str, token: str, **body: Any) -> Any:
    status, answer, _ = server.request("POST", f"/api/rooms/{verb}", body, token=token)
    assert status == 200, answer
    return answer


def members(server: PylonServer, room: str) -> set[str]:
    status, answer, _ = server.request("GET", f"/api/rooms/{room}", token=ADMIN_TOKEN)
    assert status == 200, answer
    assert answer["count"] == len(answer["members"])
    return {member["user_id"] for member in answer["members"]}


class Subscriber:
    """A member's socket, and the room as it knows it: a snapshot, and the updates applied."""

    def __init__(self, server: PylonServer, room: str, data: Any = None) -> None:
        self.token, self.user_id = server.guest()
        self.room = room
        post(server, "join", self.token, room=room, data=data)
        self.client = WebSocketClient(server.port + 1, token=self.token)
        self.members: dict[str, Any] = {}
        self.said: list[Any] = []
        self.frames = self.size_bytes = self.snapshots = 0
        self.say(type="room-subscribe", room=room)
        self.hear()
        assert self.snapshots == 1
        assert self.user_id in self.members

    def say(self, **message: Any) -> None:
        self.client.send_frame(1, json.dumps(message).encode())

    def hear(self) -> Any:
        """Take one message."""
        opcode, payload = self.client.read_frame_except()
        assert opcode == 1, (opcode, payload)
        self.frames += 1
        self.size_bytes += len(payload)
        message = json.loads(payload)
        if message["type"] == "room-snapshot":
            self.snapshots += 1
            self.members = {peer["user_id"]: peer["data"] for peer in message["members"]}
        elif message["type"] == "room-update":
            assert message["room"] == self.room
            user_id = message["member"]["user_id"]
            if message["action"] in ("join", "presence"):
                self.members[user_id] = message.get("data")
            elif message["action"] == "leave":
                self.members.pop(user_id, None)
            else:
                self.said.append((user_id, message["data"]))
        else:
            self.said.append(message)
        return message

    def until(self, condition: Any) -> None:
        while not condition():
            self.hear()


def sockets_by_worker(server: PylonServer) -> dict[str, float]:
    _, text, _ = server.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"}
    )
    samples = page_families(text)["pylon_connections"].samples
    return {s.labels["worker"]: s.value for s in samples if s.labels["role"] == "ws"}


def on_both_workers(server: PylonServer, room: str, least: int) -> list[Subscriber]:
    """Subscribers of a room, so many of them that each ws worker has some."""
    before = sockets_by_worker(server)
    made: list[Subscriber] = []

    def enough() -> bool:
        now = sockets_by_worker(server)
        return len(now) == 2 and all(n - before.get(w, 0) >= 2 for w, n in now.items())

    for _ in range(8):
        made += [Subscriber(server, room) for _ in range(least)]
        try:
            wait_until("both workers have some", enough, 3)
            return made
        except AssertionError:
            continue
    raise AssertionError(f"all sockets are at one worker: {sockets_by_worker(server)}")


def test_news_reach_the_subscribers_of_both_workers(server: PylonServer) -> None:
    everybody = on_both_workers(server, "r", 6)
    first = everybody[0]
    everyone = {s.user_id for s in everybody}
    for s in everybody:
        s.until(lambda s=s: s.members.keys() == everyone)
    post(server, "presence", first.token, room="r", data={"x": 1})
    post(server, "broadcast", first.token, room="r", topic="t", data=[1])
    first.say(type="presence", room="r", event="update", data={"cursor": 5}, **{"from": "eve"})
    first.say(type="topic", room="r", topic="u", data=None)
    for s in everybody:
        s.until(lambda s=s: len(s.said) == 3)
        assert s.members[first.user_id] == {"x": 1}
        assert s.said == [
            (first.user_id, {"topic": "t", "payload": [1]}),
            {"type": "presence", "room": "r", "event": "update", "data": {"cursor": 5},
             "from": first.user_id},
            {"type": "topic", "room": "r", "topic": "u", "data": None, "from": first.user_id},
        ]
    post(server, "leave", first.token, room="r")
    for s in everybody:
        s.until(lambda s=s: first.user_id not in s.members)
    first.say(type="room-subscribe", room="r")
    error = first.client.read_json()
    assert (error["type"], error["code"], error["room"]) == ("error", "NOT_IN_ROOM", "r")
    post(server, "broadcast", everybody[1].token, room="r", topic="t", data="not for the first")
    everybody[1].until(lambda: len(everybody[1].said) == 4)
    first.say(type="room-unsubscribe", room="r")
    first.say(type="room-subscribe", room="")
    assert first.client.read_json()["code"] == "MISSING_ROOM", "nothing came in between"
    for s in everybody:
        s.client.close()
    wait_until("all have left with their sockets", lambda: members(server, "r") == set())


def test_a_member_leaves_with_its_last_socket_unless_it_polls(server: PylonServer) -> None:
    one, poller, watcher = (Subscriber(server, "s") for _ in range(3))
    second = WebSocketClient(server.port + 1, token=one.token)
    second.send_frame(1, b'{"type":"room-subscribe","room":"s"}')
    assert second.read_json()["type"] == "room-snapshot"
    server.request("GET", "/api/rooms/s", token=poller.token)
    poller.client.close()
    one.client.close()
    only_http, _ = server.guest()
    post(server, "join", only_http, room="s")
    second.close()
    watcher.until(lambda: one.user_id in watcher.members)
    watcher.until(lambda: one.user_id not in watcher.members)
    assert len(members(server, "s")) == 3
    assert poller.user_id in members(server, "s")
    watcher.client.close()


def test_a_thousand_joins_cost_each_subscriber_few_bytes(server: PylonServer) -> None:
    count, threads = 1_000, 4
    subscribers = [Subscriber(server, "big") for _ in range(10)]
    for s in subscribers:
        s.until(lambda s=s: len(s.members) == len(subscribers))
        s.frames = s.size_bytes = 0

    def join(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for n in range(first, count, threads):
            body = {"room": "big", "user_id": f"member-{n:04}", "data": {"name": f"Name {n}"}}
            connection.request(
                "POST", "/api/rooms/join", json.dumps(body),
                {"Authorization": f"Bearer {ADMIN_TOKEN}"},
            )
            assert connection.getresponse().read().startswith(b'{"joined"')
        connection.close()

    workers = [threading.Thread(target=join, args=(first,)) for first in range(threads)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    update = {"type": "room-update", "room": "big", "action": "join",
              "member": {"user_id": "member-0000"}, "data": {"name": "Name 000"}}
    update_bytes = len(json.dumps(update, separators=(",", ":")))
    for s in subscribers:
        s.until(lambda s=s: len(s.members) == count + len(subscribers))
        assert s.members["member-0999"] == {"name": "Name 999"}
        # The updates of the subscribers' own joins may still be under way when the count begins.
        joins = count + len(subscribers)
        assert s.frames <= joins, ("never more than one frame for each join", s.snapshots, s.said)
        assert s.size_bytes <= joins * update_bytes, "never more bytes than single updates"
    print("frames", {s.frames for s in subscribers}, "bytes", {s.size_bytes for s in subscribers})
    for s in subscribers:
        s.client.close()


def test_kill_9_of_a_ws_worker_takes_its_members_only(server: PylonServer) -> None:
    everybody = on_both_workers(server, "k", 6)
    only_http, http_user = server.guest()
    post(server, "join", only_http, room="k", data="by http")
    everyone = {http_user, *(s.user_id for s in everybody)}
    assert members(server, "k") == everyone
    os.kill(server.pids("ws")[0], signal.SIGKILL)
    left: set[str] = set()

    def some_left() -> bool:
        left.update(everyone - members(server, "k"))
        return bool(left)

    wait_until("members of the dead worker leave", some_left)
    wait_until("the new worker is ready", lambda: server.request("GET", "/readyz")[0] == 200)
    survivors = [s for s in everybody if s.user_id in members(server, "k")]
    assert http_user in members(server, "k")
    assert 0 < len(survivors) < len(everybody)
    for s in survivors:
        s.until(lambda s=s: s.members.keys() == {http_user, *(o.user_id for o in survivors)})
    for s in everybody:
        if s not in survivors:
            assert s.client.read_rest() is not None, "its socket has ended"
    back = Subscriber(server, "k", "again")
    survivors[0].until(lambda: survivors[0].members.get(back.user_id) == "again")
    assert back.members.keys() == survivors[0].members.keys()
