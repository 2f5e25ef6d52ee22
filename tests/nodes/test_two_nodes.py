"""Two nodes on one database: what happens on one is seen on the other; roles alone serve together.

Real servers in processes of their own, on a schema of their own.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.nodes.fleet import Node
from tests.support.manifests import notes_app
from tests.support.postgres import PostgresServer, drop_schema, make_schema
from tests.support.server import ADMIN_TOKEN
from tests.support.sync_client import SyncClient
from tests.support.wait import WAIT_S, wait_until

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.slow]

MakeNode = Callable[..., Node]


@contextmanager
def nodes_at(url: str, folder: Path) -> Iterator[MakeNode]:
    """Make nodes on one database; they are closed together."""
    made: list[Node] = []

    def make(name: str, **env: str) -> Node:
        node = Node(folder / name, notes_app(), {
            "DATABASE_URL": url, "PYLON_NODE": name, "PYLON_HTTP_WORKERS": "1",
            "PYLON_SSE_WORKERS": "0", "PYLON_SHARD_WORKERS": "0", **env,
        })
        made.append(node)
        return node

    with ThreadPoolExecutor(4) as threads:
        yield make
        list(threads.map(Node.close, made))


@pytest.fixture
def make_node(processes: None, postgres_url: str, tmp_path: Path) -> Iterator[MakeNode]:
    with nodes_at(postgres_url, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def pair(
    processes: None, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Node, Node]]:
    """Two whole nodes, which know of each other."""
    url = make_schema(postgres_server.url)
    with nodes_at(url, tmp_path_factory.mktemp("pair")) as make_node:
        a, b = make_node("a"), make_node("b")
        a.start(ready=False)
        b.start()
        a.wait_ready()
        wait_until("each knows the other", lambda: all(others(node) == 1 for node in (a, b)))
        yield a, b
    drop_schema(postgres_server.url, url)


def others(node: Node) -> int:
    """How many other nodes a node knows."""
    return metric(node, "pylon_nodes") - 1


def metric(node: Node, name: str) -> int:
    _, page, _ = node.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"}
    )
    line = next(line for line in page.splitlines() if line.startswith(name))
    return int(float(line.rpartition(" ")[2]))


def insert(node: Node, token: str, user_id: str, title: str) -> str:
    status, body, _ = node.request(
        "POST", "/api/entities/Note",
        {"title": title, "ownerId": user_id, "shared": True, "slug": title}, token=token,
    )
    assert status == 201, body
    row_id: str = body["id"]
    return row_id


def connect(node: Node, token: str) -> websocket.WebSocket:
    ws = websocket.WebSocket()
    ws.connect(
        f"ws://127.0.0.1:{node.port + 1}/", subprotocols=[f"bearer.{token}"], timeout=WAIT_S
    )
    return ws


def read_until(ws: websocket.WebSocket, condition: Callable[[dict[str, Any]], bool]) -> Any:
    seen: list[Any] = []
    until_s = time.monotonic() + WAIT_S
    while time.monotonic() < until_s:
        seen.append(json.loads(ws.recv()))
        if condition(seen[-1]):
            return seen[-1]
    raise AssertionError(f"not among the messages of {WAIT_S} s: {seen}")


def subscribe(ws: websocket.WebSocket, room: str) -> Any:
    """Subscribe to a room; again while the node has not heard of the member yet."""
    until_s = time.monotonic() + WAIT_S
    while True:
        ws.send(json.dumps({"type": "room-subscribe", "room": room}))
        answer = read_until(ws, lambda m: m.get("type") in ("room-snapshot", "error"))
        if answer["type"] == "room-snapshot":
            return answer
        assert answer["code"] == "NOT_IN_ROOM", answer
        assert time.monotonic() < until_s, "the node did not hear of the member"


def join(node: Node, room: str, token: str, data: object = None) -> Any:
    status, body, _ = node.request(
        "POST", "/api/rooms/join", {"room": room, "data": data}, token=token
    )
    assert status == 200, body
    return body


def members(node: Node, room: str) -> set[str]:
    status, body, _ = node.request("GET", f"/api/rooms/{room}", token=ADMIN_TOKEN)
    assert status == 200, body
    return {member["user_id"] for member in body["members"]}


def test_changes_of_each_node_reach_the_clients_of_both(pair: tuple[Node, Node]) -> None:
    a, b = pair
    token, user_id = a.guest()
    with SyncClient(a, "ws", token) as at_a, SyncClient(b, "ws", token) as at_b:
        threads = [
            threading.Thread(target=lambda node=node: [
                insert(node, token, user_id, f"{node.folder.name}{number}") for number in range(50)
            ])
            for node in pair
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = {"Note": a.rows("Note", token)}
        assert len(expected["Note"]) == 100 and expected["Note"] == b.rows("Note", token)
        for client in (at_a, at_b):
            client.wait_rows(expected)
            assert client.problems == [] and client.resyncs == 0


def test_a_session_that_ends_on_one_node_loses_its_sockets_on_both(
    pair: tuple[Node, Node]
) -> None:
    token, _ = pair[0].guest()
    sockets = [connect(node, token) for node in pair]
    assert pair[0].request("DELETE", "/api/auth/session", token=token)[0] < 300
    for ws in sockets:
        while True:
            opcode, data = ws.recv_data(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                break
        assert int.from_bytes(data[:2], "big") == 4401
        ws.close(timeout=0)
    for node in pair:
        assert node.request("GET", "/api/auth/session", token=token)[1].get("user_id") is None


def test_rooms_are_the_union_of_both_nodes(pair: tuple[Node, Node]) -> None:
    a, b = pair
    (ann, ann_id), (bob, bob_id) = a.guest(), b.guest()
    join(a, "r", ann, {"x": 1})
    with closing(connect(b, bob)) as ws:
        join(a, "r", bob)  # joined on `a` over HTTP, connected to `b`, at once
        snapshot = subscribe(ws, "r")
        assert {ann_id, bob_id} >= {m["user_id"] for m in snapshot["members"]} >= {bob_id}
        wait_until("both see both", lambda: all(
            members(node, "r") == {ann_id, bob_id} for node in pair
        ))
        status, body, _ = a.request(
            "POST", "/api/rooms/broadcast", {"room": "r", "topic": "t", "data": 7}, token=ann
        )
        assert status == 200, body
        told = read_until(ws, lambda m: m.get("action") == "broadcast")
        assert told["data"] == {"topic": "t", "payload": 7}
        a.request("POST", "/api/rooms/leave", {"room": "r"}, token=ann)
        left = read_until(ws, lambda m: m.get("action") == "leave")
        assert left["member"] == {"user_id": ann_id}
    wait_until("its socket was all that kept bob", lambda: members(a, "r") == set())


def test_a_node_that_is_killed_takes_its_members_along(pair: tuple[Node, Node]) -> None:
    a, b = pair
    (ann, ann_id), (bob, bob_id) = a.guest(), b.guest()
    join(a, "r", ann)
    join(b, "r", bob)
    wait_until("both see both", lambda: members(b, "r") == {ann_id, bob_id})
    a.kill()
    wait_until("its members leave", lambda: members(b, "r") == {bob_id})
    wait_until("the other one leads", lambda: metric(b, "pylon_node_leads") == 1)
    a.restart()
    a.wait_ready()
    wait_until("it learns who is there", lambda: members(a, "r") == {bob_id})
    b.request("POST", "/api/rooms/leave", {"room": "r"}, token=bob)


def test_what_a_client_spends_on_one_node_counts_on_both(make_node: MakeNode) -> None:
    a, b = (make_node(name, PYLON_GUESTS_PER_IP_PER_MIN="1") for name in "ab")  # 10 at once
    a.start(ready=False)
    b.start()
    a.wait_ready()
    wait_until("each knows the other", lambda: all(others(node) == 1 for node in (a, b)))
    for _ in range(10):
        a.guest()
    assert a.request("POST", "/api/auth/guest")[0] == 429
    # A node that heard nothing of the other would let ten guests in. News come once a second.
    answers = []
    while 429 not in answers and len(answers) < 9:
        time.sleep(0.5)
        answers.append(b.request("POST", "/api/auth/guest")[0])
    assert answers[-1] == 429, answers


def test_a_published_client_uses_an_http_node_and_a_ws_node(make_node: MakeNode) -> None:
    ws = make_node("sockets", PYLON_ROLES="ws")
    http = make_node("pages", PYLON_ROLES="http")
    url = f"ws://127.0.0.1:{ws.port + 1}/"
    http.env["PYLON_WS_URL"] = url
    ws.start(ready=False)
    http.start()
    status, body, _ = http.request("GET", "/api/sync/ws", headers={
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    })
    assert (status, body["error"]["code"]) == (404, "ROLE_NOT_HERE")
    assert url in body["error"]["message"]
    assert http.request("GET", "/api/client-config")[1]["urls"]["ws"] == url
    wait_until("the ws node is ready", lambda: ws.status()["ready"])
    assert set(ws.status()["roles"]) == {"ws"}
    assert set(http.status()["roles"]) == {"http", "identity"}  # which runs with http
    token, user_id = http.guest()

    class SplitClient(SyncClient):
        """Pulls from one node and connects to the other."""

        class _Ports:
            host = "127.0.0.1"
            port = ws.port
            request = staticmethod(http.request)

    client = SplitClient(SplitClient._Ports(), "ws", token)  # type: ignore[arg-type]
    with client:
        for number in range(20):
            insert(http, token, user_id, f"n{number}")
            if number % 5 == 0:
                client.drop()
        client.wait_rows({"Note": http.rows("Note", token)})
        assert client.problems == [] and client.resyncs == 0
    join(http, "r", token)
    with closing(connect(ws, token)) as socket:
        snapshot = subscribe(socket, "r")
        assert [m["user_id"] for m in snapshot["members"]] == [user_id]
