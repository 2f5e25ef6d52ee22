"""Live windows of a real ws worker: over sockets, through the bus, with what may go wrong there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.live import LiveWindow
from tests.support.manifests import windows_app
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
    made = Stage(tmp_path_factory.mktemp("windows"), windows_app())
    yield made
    made.close()


@pytest.fixture(scope="module")
def ws(stage: Stage) -> Worker:
    return stage.start("ws", PYLON_SOCKETS_PER_IP="0")


class Follower(WebSocketClient):
    """A client of live windows only."""

    def __init__(self, worker: Worker, token: str | None = None) -> None:
        super().__init__(worker.port, path="/?changes=0", token=token)
        self.windows: dict[str, LiveWindow] = {}

    def ask(self, **message: Any) -> None:
        self.send_frame(frames.TEXT, json.dumps(message).encode())

    def subscribe(self, sub_id: str, entity: str, body: dict[str, Any]) -> LiveWindow:
        """Subscribe and take the rows."""
        held = self.windows[sub_id] = LiveWindow(body)
        self.ask(type="subscribe", sub_id=sub_id, entity=entity, filter=body)
        while not held.complete:
            self.follow()
        return held

    def follow(self) -> dict[str, Any]:
        """Take the next message."""
        message: dict[str, Any] = self.read_json()
        if message["type"] in ("subscribed", "diff", "more"):
            self.windows[message["sub_id"]].take(message)
        return message

    def follow_until(self, sub_id: str, ranks: list[int]) -> None:
        """Take messages until the window has these rows."""
        for _ in range(200):
            if ranks_of(self.windows[sub_id]) == ranks:
                return
            self.follow()
        raise AssertionError(f"{ranks_of(self.windows[sub_id])} and not {ranks}")


def ranks_of(window: LiveWindow) -> list[int]:
    return [row["rank"] for row in window.rows]


def body(text: str, limit: int) -> dict[str, Any]:
    return {"text": text, "$order": {"rank": "desc"}, "$limit": limit}


def test_a_window_over_a_socket(stage: Stage, ws: Worker) -> None:
    rows = [stage.insert("Public", text="chat", rank=n) for n in range(10)]
    stage.write(*rows)
    client = Follower(ws)
    client.subscribe("s", "Public", body("chat", 3))
    assert ranks_of(client.windows["s"]) == [9, 8, 7]
    new = stage.insert("Public", text="chat", rank=10)
    seq = stage.write(new).events[0].seq
    left, entered = client.follow(), client.follow()
    assert left == {
        "type": "diff", "seq": seq, "kind": "delete", "row_id": rows[7].row_id, "sub_id": "s",
    }
    assert (entered["kind"], entered["row_id"], entered["after"]) == ("insert", new.row_id, None)
    stage.write(stage.delete("Public", rows[9].row_id))
    client.follow_until("s", [10, 8, 7])
    client.windows["s"].limit += 4
    client.ask(type="more", sub_id="s", count=4)
    added = client.follow()
    assert [row["rank"] for row in added["rows"]] == [6, 5, 4, 3]
    assert (added["type"], added["last"], added["sub_id"]) == ("more", True, "s")
    client.ask(type="more", sub_id="s", count=10_000)
    error = client.follow()
    assert (error["for"], error["code"], error["sub_id"]) == ("more", "LIMIT_EXCEEDED", "s")
    stage.write(stage.update("Public", rows[6].row_id, rank=99))
    moved = client.follow()
    assert (moved["kind"], moved["after"]) == ("update", None)


def test_lost_batches_are_no_lost_diffs(stage: Stage, ws: Worker) -> None:
    client = Follower(ws)
    client.subscribe("s", "Public", body("gap", 3))
    rows = [stage.insert("Public", text="gap", rank=n) for n in range(5)]
    for row in rows[:4]:
        stage.write(row, publish=False)
    stage.write(rows[4])
    client.follow_until("s", [4, 3, 2])


def test_rows_of_a_commit_that_the_feed_has_not_seen(stage: Stage, ws: Worker) -> None:
    """The worker reads the log itself: the batch may be lost."""
    first = stage.insert("Public", text="ahead", rank=1)
    batch = stage.write(first, publish=False)
    client = Follower(ws)
    client.subscribe("s", "Public", body("ahead", 3))
    assert ranks_of(client.windows["s"]) == [1]
    stage.publisher.publish(batch)
    stage.write(stage.update("Public", first.row_id, rank=2))
    assert client.follow()["kind"] == "update"


def test_deletes_beyond_the_spare_rows_are_filled_up(stage: Stage, ws: Worker) -> None:
    rows = [stage.insert("Public", text="many", rank=n) for n in range(200)]
    stage.write(*rows)
    clients = [Follower(ws) for _ in range(3)]
    for limit, client in enumerate(clients, 3):
        client.subscribe("s", "Public", body("many", limit))
    stage.write(*[stage.delete("Public", row.row_id) for row in rows[100:]])
    for limit, client in enumerate(clients, 3):
        client.follow_until("s", list(range(99, 99 - limit, -1)))
    assert wait_until(
        "reads are counted",
        lambda: stage.metric(ws, "pylon_live_window_reads_total", reason="refill") >= 1,
    )


def test_a_row_leaves_the_window_of_a_caller_who_may_not_read_it(
    stage: Stage, ws: Worker
) -> None:
    token, _ = stage.login("ada")
    rows = [stage.insert("Mine", text="own", rank=n, ownerId="ada") for n in range(5)]
    stage.write(*rows)
    client = Follower(ws, token)
    client.subscribe("s", "Mine", body("own", 2))
    stage.write(stage.update("Mine", rows[4].row_id, ownerId="bob", rank=5))
    client.follow_until("s", [3, 2])


def test_membership_opens_and_closes_rows_over_a_socket(stage: Stage, ws: Worker) -> None:
    token, _ = stage.login("eve")
    stage.write(*[stage.insert("Chat", text="club", rank=n) for n in range(5)])
    client = Follower(ws, token)
    client.subscribe("s", "Chat", body("club", 2))
    assert ranks_of(client.windows["s"]) == []
    for _ in range(3):
        member = stage.insert("Member", text="club", ownerId="eve")
        stage.write(member)
        client.follow_until("s", [4, 3])
        stage.write(stage.delete("Member", member.row_id))
        client.follow_until("s", [])


def test_closed_sockets_are_forgotten(stage: Stage, ws: Worker) -> None:
    clients = [Follower(ws) for _ in range(3)]
    for client in clients:
        client.subscribe("a", "Public", body("closed", 3))
        client.subscribe("b", "Public", body("closed", 5))
    wait_until("it is counted", lambda: stage.metric(ws, "pylon_live_windows") >= 1)
    for client in clients:
        client.close()
    wait_until("all are gone", lambda: stage.metric(ws, "pylon_connections") == 0)
    wait_until("none is left", lambda: stage.metric(ws, "pylon_live_windows") == 0)
