"""Two nodes with shards: a client of either one plays in the shards of both (cluster port).

Real servers on one PostgreSQL database. Node a is the one that clients reach; the shards of these
tests live on node b.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import websocket

from pylon import limits
from tests.nodes.fleet import Node
from tests.nodes.test_two_nodes import others
from tests.support.manifests import notes_app
from tests.support.ports import reserve_base_port
from tests.support.postgres import PostgresServer, drop_schema, make_schema
from tests.support.server import ADMIN_TOKEN
from tests.support.shard_client import Player, user
from tests.support.wait import WAIT_S, wait_until
from tests.support.wire import Wire

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.slow]

APP = str(Path(__file__).parent.parent / "support" / "shards_app.py")
LOST_S = limits.CLUSTER_DEAD_S + limits.CLUSTER_BEAT_S + 5.0  # on a busy machine
_numbers = itertools.count()

MakeNode = Callable[..., Node]


@pytest.fixture(scope="module")
def make_node(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeNode]:
    made: list[Node] = []
    url, folder = make_schema(postgres_server.url), tmp_path_factory.mktemp("cluster")

    def make(name: str, **env: str) -> Node:
        node = Node(folder / name, notes_app(), {
            "DATABASE_URL": url, "PYLON_NODE": name, "PYLON_HTTP_WORKERS": "1",
            "PYLON_SSE_WORKERS": "0", "PYLON_WS_WORKERS": "0", "PYLON_SHARD_WORKERS": "1",
            "PYLON_APP": APP, "PYLON_CLUSTER_URL": f"tcp://127.0.0.1:{reserve_base_port()}", **env,
        })
        made.append(node)
        return node

    yield make
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(Node.close, made))
    drop_schema(postgres_server.url, url)


@pytest.fixture(scope="module")
def started(processes: None, make_node: MakeNode) -> tuple[Node, Node]:
    """Two nodes for the whole module."""
    a, b = make_node("a"), make_node("b")
    a.start(ready=False)
    b.start(ready=False)
    return a, b


@pytest.fixture
def pair(started: tuple[Node, Node]) -> tuple[Node, Node]:
    """The two nodes, which know of each other, also after a test that killed or froze one."""
    for node in started:
        if node.process is None or node.process.poll() is not None:
            node.start(ready=False)
    for node in started:
        node.wait_ready(2 * WAIT_S)
    wait_until("each knows the other", lambda: all(others(node) == 1 for node in started))
    return started


def made_by(node: Node, shard: str) -> bool:
    """Whether a node has made this shard."""
    return any(
        '"shard.made"' in line and f'"shard":"{shard}"' in line for line in node.log().splitlines()
    )


def play(node: Node, shard: str, token: str, sid: str, **options: Any) -> Player:
    """Join a shard, once the node admits clients to it."""
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            player = Player(node, shard, token=token, sid=sid, **options)
            player.frame()
        except (AssertionError, websocket.WebSocketException, OSError):
            if time.monotonic() > until_s:
                raise
            time.sleep(0.1)
            continue
        return player


def play_across(a: Node, b: Node, token: str, sid: str) -> tuple[str, Player]:
    """A shard that lives on b, and a client of a in it."""
    while True:
        shard = f"counter:{next(_numbers)}"
        player = play(a, shard, token, sid)
        wait_until("it was made", lambda: made_by(a, shard) or made_by(b, shard))  # noqa: B023
        if made_by(b, shard):
            return shard, player
        player.socket.close()


def tunnels(node: Node, end: str) -> float:
    """How many tunnels have this end in a node."""
    _, page, _ = node.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"}
    )
    return sum(
        float(line.rpartition(" ")[2]) for line in page.splitlines()
        if line.startswith("pylon_cluster_tunnels{") and f'end="{end}"' in line
    )


def until_sum(player: Player, wanted: int) -> Any:
    return player.until(lambda body: body["sum"] == wanted)


def test_a_client_of_one_node_plays_in_a_shard_of_the_other(pair: tuple[Node, Node]) -> None:
    a, b = pair
    ada, bob = user(a, "ada"), user(b, "bob")
    shard, at_a = play_across(a, b, ada, "ada")
    at_b = play(b, shard, bob, "bob")
    at_a.say({"by": 3})
    assert set(until_sum(at_b, 3)["here"]) == {"ada", "bob"}
    at_b.say({"by": 4})
    until_sum(at_a, 7)
    at_a.say({"by": 13}, client_seq=5)
    assert at_a.text()["type"] in ("seat", "input-rejected")
    packed = play(a, shard, bob, "bob", main_port=True, format="msgpack")
    until_sum(packed, 7)
    # The owner judges: the same codes through both nodes.
    for node in (a, b):
        assert Player(node, shard, token=ada, sid="bob").closed()[0] == 1008
        assert Player(node, "nothing:1", token=ada, sid="ada").closed()[0] == 4404
        assert Player(node, "", token=ada, sid="ada").closed()[0] == 4400
    assert not made_by(a, shard)
    wait_until("the metric counts", lambda: tunnels(a, "entry") >= 2)
    wait_until("and on the other node", lambda: tunnels(b, "exit") >= 2)


def test_a_stream_and_commands_go_to_the_other_node(pair: tuple[Node, Node]) -> None:
    a, b = pair
    ada = user(a, "ada")
    shard, player = play_across(a, b, ada, "ada")
    stream = Wire(a.port)
    stream.send(
        f"GET /api/shards/{shard}/connect?sid=ada HTTP/1.1\r\nHost: a\r\n"
        f"Authorization: Bearer {ada}\r\n\r\n".encode()
    )
    head = stream.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"text/event-stream" in head
    status, body, _ = a.request(
        "POST", f"/api/shards/{shard}/input", {"input": {"by": 5}, "subscriber_id": "ada"},
        token=ada,
    )
    assert status == 200 and body["accepted"], body
    until_sum(player, 5)
    assert b'"sum":5' in stream.read_until(b'"sum":5')
    status, body, _ = a.request("GET", f"/api/shards/{shard}", token=ADMIN_TOKEN)
    assert status == 200 and body["running"] and body["subscribers"] >= 1, body
    for node in pair:
        status, body, _ = node.request("GET", "/api/shards", token=ADMIN_TOKEN)
        assert status == 200 and shard in [each["id"] for each in body], body
    status, body, _ = a.request("DELETE", f"/api/shards/{shard}", token=ADMIN_TOKEN)
    assert status == 200, body
    assert player.closed()[0] == 1000
    stream.read_rest()
    status, body, _ = a.request("GET", f"/api/shards/{shard}", token=ADMIN_TOKEN)
    assert status == 404 and body["error"]["code"] == "SHARD_NOT_FOUND", body


def test_shards_are_made_on_either_node_by_commands_of_one(pair: tuple[Node, Node]) -> None:
    a, b = pair

    def make() -> str:
        shard = f"counter:{next(_numbers)}"
        status, body, _ = a.request(
            "POST", "/api/shards", {"id": shard, "params": {"color": "red"}}, token=ADMIN_TOKEN
        )
        assert status == 200 and body["id"] == shard, body
        wait_until("it was made", lambda: made_by(a, shard) or made_by(b, shard))
        return shard

    made: dict[bool, str] = {}
    while len(made) < 2:  # at first a worker may not know the other node
        shard = make()
        made[made_by(b, shard)] = shard
    bob = user(b, "bob")
    for shard in made.values():
        for node in pair:
            assert until_sum(play(node, shard, bob, "bob"), 0)["color"] == "red"


def test_a_killed_worker_closes_the_clients_of_other_nodes_and_they_come_back(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    ada = user(a, "ada")
    shard, player = play_across(a, b, ada, "ada")
    began_s = time.monotonic()
    (pid,) = b.pids("shards")
    os.kill(pid, signal.SIGKILL)
    assert player.closed()[0] == 1012
    assert time.monotonic() - began_s < LOST_S
    play(a, shard, ada, "ada").say({"by": 1})


def test_a_frozen_node_closes_the_clients_of_other_nodes(pair: tuple[Node, Node]) -> None:
    a, b = pair
    ada = user(a, "ada")
    shard, player = play_across(a, b, ada, "ada")
    b.signal_all(signal.SIGSTOP)
    began_s = time.monotonic()
    try:
        assert player.closed()[0] == 1012
        assert time.monotonic() - began_s < LOST_S
        # The lease ends, and the shard goes on where it is asked for.
        until_sum(play(a, shard, ada, "ada"), 0)
        assert made_by(a, shard)
    finally:
        b.signal_all(signal.SIGCONT)


def test_a_restarted_node_has_another_key_and_is_reached_again(pair: tuple[Node, Node]) -> None:
    a, b = pair
    ada = user(a, "ada")
    _, player = play_across(a, b, ada, "ada")
    assert b.terminate() == 0
    assert player.closed()[0] in (1001, 1012)
    b.start()
    wait_until("a knows b again", lambda: others(a) == 1)
    _, player = play_across(a, b, ada, "ada")
    player.say({"by": 2})
    until_sum(player, 2)


def test_a_taken_cluster_port_refuses_the_start(
    pair: tuple[Node, Node], make_node: MakeNode
) -> None:
    a, _ = pair
    c = make_node("c", PYLON_CLUSTER_URL=a.env["PYLON_CLUSTER_URL"])
    c.start(ready=False)
    assert c.process is not None and c.process.wait(WAIT_S) == 78
    assert "cannot be a cluster port: it is taken" in c.log()


def test_a_client_without_curve_is_sent_away_unheard(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    host, _, port = a.env["PYLON_CLUSTER_URL"].removeprefix("tcp://").partition(":")
    assert host == "127.0.0.1"
    stranger = Wire(int(port))
    assert stranger.read_exactly(10) == b"\xff" + bytes(7) + b"\x01\x7f"  # ZMTP 3
    stranger.send(b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32))
    assert stranger.read_rest() == b""
