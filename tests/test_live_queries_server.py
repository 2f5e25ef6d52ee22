"""Live queries of a real ws worker: over sockets, through the bus, with what may go wrong there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.live import LiveSet
from tests.support.stage import Stage, Worker
from tests.support.stores import TestStore
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient
from workers.ws import frames

pytestmark = pytest.mark.stores


@pytest.fixture(scope="module")
def stage(
    tested_store: TestStore, processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("live"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def ws(stage: Stage) -> Worker:
    return stage.start("ws", PYLON_SOCKETS_PER_IP="0")


class Follower(WebSocketClient):
    """A client of live queries only."""

    def __init__(self, worker: Worker, token: str | None = None, path: str = "/?changes=0") -> None:
        super().__init__(worker.port, path=path, token=token)
        self.sets: dict[str, LiveSet] = {}

    def ask(self, **message: Any) -> None:
        self.send_frame(frames.TEXT, json.dumps(message).encode())

    def subscribe(self, sub_id: str, entity: str, body: Any = None) -> LiveSet:
        """Subscribe and take the result."""
        held = self.sets[sub_id] = LiveSet()
        self.ask(type="subscribe", sub_id=sub_id, entity=entity, filter=body)
        while not held.complete:
            self.follow()
        return held

    def follow(self) -> dict[str, Any]:
        """Take the next message."""
        message: dict[str, Any] = self.read_json()
        if message["type"] in ("subscribed", "diff"):
            self.sets[message["sub_id"]].take(message)
        return message


def test_a_result_and_its_diffs_without_the_stream_of_changes(stage: Stage, ws: Worker) -> None:
    token, _ = stage.login("ada")
    other = stage.insert("Public", text="of no interest")
    mine = stage.insert("Note", text="a", ownerId="ada")
    stage.write(other, mine)
    client = Follower(ws, token)
    held = client.subscribe("s", "Note", {"text": "a"})
    assert held.rows.keys() == {mine.row_id}
    stage.write(stage.insert("Public", text="b"), stage.update("Note", mine.row_id, text="b"))
    assert client.follow()["kind"] == "delete"
    stage.write(stage.update("Note", mine.row_id, text="a", shared=True))
    assert client.follow()["kind"] == "insert"
    stage.write(stage.update("Note", mine.row_id, shared=False))
    assert client.follow()["data"]["shared"] is False
    client.ask(type="unsubscribe", sub_id="s")
    assert client.follow() == {"type": "unsubscribed", "sub_id": "s"}
    stage.write(stage.update("Note", mine.row_id, shared=True))
    client.ask(type="subscribe", sub_id="s", entity="Secret")
    message = client.follow()
    assert (message["type"], message["for"], message["code"], message["sub_id"]) == (
        "error", "subscribe", "POLICY_DENIED", "s",
    )


def test_changes_and_diffs_go_over_one_socket(stage: Stage, ws: Worker) -> None:
    client = Follower(ws, path=f"/?since={stage.engine.head}")
    client.subscribe("s", "Public", {"text": "both"})
    row = stage.insert("Public", text="both")
    seq = stage.write(row).events[0].seq
    change, diff = sorted(
        (client.read_json(), client.read_json()), key=lambda message: "sub_id" in message
    )
    assert change["entity"] == "Public"
    assert change["seq"] == diff["seq"] == seq
    assert change["data"] == diff["data"]


def test_lost_batches_are_no_lost_diffs(stage: Stage, ws: Worker) -> None:
    client = Follower(ws)
    held = client.subscribe("s", "Public", {"text": {"$startsWith": "gap"}})
    rows = [stage.insert("Public", text=f"gap {n}") for n in range(5)]
    for row in rows[:4]:
        stage.write(row, publish=False)
    stage.write(rows[4])
    for _ in rows:
        client.follow()
    assert held.rows.keys() == {row.row_id for row in rows}


def test_a_result_that_is_ahead_of_the_feed(stage: Stage, ws: Worker) -> None:
    first = stage.insert("Public", text="ahead")
    batch = stage.write(first, publish=False)
    client = Follower(ws)
    held = client.subscribe("s", "Public", {"text": "ahead"})
    assert held.rows.keys() == {first.row_id}
    stage.publisher.publish(batch)
    stage.write(stage.update("Public", first.row_id, shared=True))
    assert client.follow()["kind"] == "update"


def test_another_identity_ends_what_was_granted_to_the_first(stage: Stage, ws: Worker) -> None:
    ada, bob = stage.login("ada")[0], stage.login("bob")[0]
    row = stage.insert("Mine", text="x", ownerId="bob")
    stage.write(row)
    client = Follower(ws, ada)
    assert client.subscribe("s", "Mine").rows == {}
    client.ask(type="auth", token=bob)
    error, done = client.follow(), client.follow()
    assert (error["code"], error["sub_id"]) == ("IDENTITY_CHANGED", "s")
    assert done["ok"] is True
    assert client.subscribe("s", "Mine").rows.keys() == {row.row_id}


def test_large_results_arrive_whole_while_rows_change(stage: Stage, ws: Worker) -> None:
    rows = [stage.insert("Member", text=f"{n} " + "x" * 900) for n in range(3_000)]
    stage.write(*rows)
    token, _ = stage.login("ada")
    client = Follower(ws, token)
    held = client.sets["s"] = LiveSet()
    client.ask(type="subscribe", sub_id="s", entity="Member")
    client.follow()
    for row in rows[:50]:  # while the rest of the result waits for this client
        stage.write(stage.update("Member", row.row_id, text="changed"))
    while held.kinds.count("update") < 50:
        client.follow()
    assert held.messages > 5
    assert len(held.rows) == 3_000
    assert sum(row["text"] == "changed" for row in held.rows.values()) == 50


def test_closed_sockets_are_forgotten(stage: Stage, ws: Worker) -> None:
    clients = [Follower(ws) for _ in range(3)]
    for client in clients:
        client.subscribe("a", "Public", {"text": "nothing"})
        client.subscribe("b", "Public", {"text": "nothing"})
    before = wait_until("they are counted", lambda: stage.metric(ws, "pylon_live_queries") >= 6)
    assert before
    told = stage.metric(ws, "pylon_live_query_diffs_total")
    stage.write(stage.insert("Public", text="nothing"))
    wait_until(
        "diffs are counted",
        lambda: stage.metric(ws, "pylon_live_query_diffs_total") == told + 6,
    )
    for client in clients:
        client.close()
    wait_until("all are gone", lambda: stage.metric(ws, "pylon_connections") == 0)
    wait_until("none is left", lambda: stage.metric(ws, "pylon_live_queries") == 0)
