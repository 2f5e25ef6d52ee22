"""Documents over WebSocket: whole first, then every change once, after its event, for those who
may read the row; whatever the bus loses and whichever worker serves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import limits
from pylon.auth_context import ADMIN
from pylon.bus.messages import DocumentsChanged
from pylon.storage.ops import PushDocument
from tests.support.document_stage import DocumentStage, Follower
from tests.support.documents import LoroClient
from tests.support.wait import wait_until
from workers.ws import frames

pytestmark = pytest.mark.stores


@pytest.fixture
def stage(processes: None, tmp_path: Path) -> Iterator[DocumentStage]:
    stage = DocumentStage(tmp_path)
    yield stage
    stage.close()


def made(stage: DocumentStage, entity: str = "Public", **body: Any) -> str:
    op = stage.insert(entity, body="hello", **body)
    stage.write(op)
    return str(op.row_id)


def follower(stage: DocumentStage, port: int, entity: str, row_id: str) -> Follower:
    """One who follows the document, and has had the events until now."""
    new = Follower(port)
    first = new.socket.read_json()
    assert first["row_id"] == row_id  # the replay
    new.follow(entity, row_id)
    return new


def push(client: LoroClient, row_id: str, entity: str = "Public") -> PushDocument:
    return PushDocument(entity, row_id, client.update(), ADMIN)


def test_first_whole_then_each_change_after_its_event(stage: DocumentStage) -> None:
    worker = stage.start("ws")
    row_id = made(stage)
    one = follower(stage, worker.port, "Public", row_id)
    two = follower(stage, worker.port, "Public", row_id)
    assert one.copies[row_id].row() == two.copies[row_id].row() == {"text": "", "body": "hello"}
    stage.write(stage.update("Public", row_id, text="a"))
    assert one.hear("Public", row_id) == {"text": "a", "body": "hello"}
    one.copies[row_id].text("body").insert(5, "!")
    stage.write(push(one.copies[row_id], row_id))
    assert one.hear("Public", row_id) == {"text": "a", "body": "hello!"}
    for _ in range(2):
        two.hear("Public", row_id)
    assert two.copies[row_id].row() == {"text": "a", "body": "hello!"}
    again = two.follow("Public", row_id, "row_id")
    assert again.row() == {"text": "a", "body": "hello!"}, "subscribed again, sent again"


def test_what_changes_no_row_is_sent_too(stage: DocumentStage) -> None:
    worker = stage.start("ws")
    row_id = made(stage)
    one = follower(stage, worker.port, "Public", row_id)
    editor = LoroClient(one.copies[row_id].everything())
    editor.doc.get_text("body").insert(0, "elsewhere")
    stage.write(push(editor, row_id))
    stage.tell(DocumentsChanged())
    one.copies[row_id].hear(one.binary("Public", row_id))
    assert one.copies[row_id].doc.get_text("body").to_string() == "elsewhere"


def test_no_frame_before_its_event(stage: DocumentStage) -> None:
    worker = stage.start("ws")
    row_id = made(stage)
    one = follower(stage, worker.port, "Public", row_id)
    batch = stage.write(stage.update("Public", row_id, text="a"), publish=False)
    stage.tell(DocumentsChanged())
    one.say("room-subscribe", "", "")
    assert one.socket.read_json()["code"] == "MISSING_ROOM", "an answer, and no frame before it"
    stage.publisher.publish(batch)
    assert one.hear("Public", row_id)["text"] == "a"


def test_what_was_in_the_first_frame_does_not_come_again(stage: DocumentStage) -> None:
    worker = stage.start("ws")
    row_id = made(stage)
    one = follower(stage, worker.port, "Public", row_id)
    batch = stage.write(stage.update("Public", row_id, text="a"), publish=False)
    late = follower(stage, worker.port, "Public", row_id)
    assert late.copies[row_id].row()["text"] == "a", "read from the store, ahead of the bus"
    stage.publisher.publish(batch)
    assert one.hear("Public", row_id)["text"] == "a"
    assert late.socket.read_json()["data"]["text"] == "a"
    stage.write(stage.update("Public", row_id, text="b"))
    assert late.socket.read_json()["data"]["text"] == "b", "the event, and no frame before it"
    late.copies[row_id].hear(late.binary("Public", row_id))
    assert late.copies[row_id].row()["text"] == "b"


def test_nothing_depends_on_what_the_bus_brings(stage: DocumentStage) -> None:
    worker = stage.start("ws")
    row_id = made(stage)
    one = follower(stage, worker.port, "Public", row_id)
    editor = LoroClient(one.copies[row_id].everything())
    editor.doc.get_text("body").insert(0, "elsewhere")
    stage.write(push(editor, row_id), publish=False)  # its signal is lost
    for n in range(3):
        stage.write(stage.update("Public", row_id, text=str(n)), publish=False)
    stage.write(stage.update("Public", row_id, text="last"))
    assert [one.socket.read_json()["data"]["text"] for _ in range(4)] == ["0", "1", "2", "last"]
    for _ in range(5):
        one.copies[row_id].hear(one.binary("Public", row_id))
    assert one.copies[row_id].row() == {"text": "last", "body": "hello"}
    assert one.copies[row_id].doc.get_text("body").to_string() == "elsewhere"


def test_who_missed_what_was_folded_gets_the_whole(stage: DocumentStage) -> None:
    worker = stage.start("ws")
    row_id = made(stage)
    one = follower(stage, worker.port, "Public", row_id)
    count = limits.DOCUMENT_UPDATES + 3
    for n in range(count):
        stage.write(stage.update("Public", row_id, text=str(n)), publish=n == count - 1)
    copy = one.copies[row_id]
    while copy.row()["text"] != str(count - 1):
        opcode, data = one.socket.read_frame_except()
        if opcode == frames.BINARY:
            copy.hear(data[data.index(b"loro"):])
    assert copy.row() == {"text": str(count - 1), "body": "hello"}


def test_workers_are_told_alike_and_one_may_die(stage: DocumentStage) -> None:
    first, second = stage.start("ws", "1"), stage.start("ws", "2")
    row_id = made(stage)
    one = follower(stage, first.port, "Public", row_id)
    two = follower(stage, second.port, "Public", row_id)
    stage.write(stage.update("Public", row_id, text="a"))
    assert one.hear("Public", row_id) == two.hear("Public", row_id)
    first.process.kill()
    stage.write(stage.update("Public", row_id, text="b"))
    assert two.hear("Public", row_id)["text"] == "b"
    back = Follower(second.port)
    for _ in range(3):
        back.socket.read_json()  # the replay
    assert back.follow("Public", row_id).row() == {"text": "b", "body": "hello"}


def test_who_may_not_read_gets_nothing(stage: DocumentStage) -> None:
    worker = stage.start("ws")
    ada, bob = stage.login("ada")[0], stage.login("bob")[0]
    mine = made(stage, "Mine", ownerId="ada")
    stranger, owner = Follower(worker.port, bob), Follower(worker.port, ada)
    for row_id, entity in ((mine, "Mine"), ("nope", "Mine"), ("x", "Nothing"), ("x", "Member")):
        stranger.say("crdt-subscribe", entity, row_id)
    assert owner.socket.read_json()["row_id"] == mine
    owner.follow("Mine", mine)
    stage.write(stage.update("Mine", mine, text="a"))
    assert owner.hear("Mine", mine)["text"] == "a"
    stage.write(stage.update("Mine", mine, ownerId="bob"))
    assert owner.socket.read_json()["kind"] == "delete"
    stage.write(stage.update("Mine", mine, text="b"))
    shared = made(stage, "Public")
    assert owner.socket.read_json()["row_id"] == shared, "no frame of a row that has left the view"
    owner.follow("Public", shared)
    events = [stranger.socket.read_json() for _ in range(3)]
    assert [e["row_id"] for e in events] == [mine, mine, shared], "no frame, and no error"
    wait_until("one is left", lambda: stage.metric(worker, "pylon_document_subscriptions") == 1)


def test_a_subscription_ends(stage: DocumentStage) -> None:
    worker = stage.start("ws")
    gone, left = made(stage), made(stage)
    one = Follower(worker.port)
    for _ in range(2):
        one.socket.read_json()
    one.follow("Public", gone)
    one.follow("Public", left)
    wait_until(
        "both are counted", lambda: stage.metric(worker, "pylon_document_subscriptions") == 2
    )
    stage.write(stage.delete("Public", gone))
    assert one.socket.read_json()["kind"] == "delete"
    one.say("crdt-unsubscribe", "Public", left)
    wait_until("none is left", lambda: stage.metric(worker, "pylon_document_subscriptions") == 0)
    for text in ("a", "b"):
        stage.write(stage.update("Public", left, text=text))
    assert [one.socket.read_json()["data"]["text"] for _ in range(2)] == ["a", "b"]
    one.follow("Public", left)
    wait_until("one is counted", lambda: stage.metric(worker, "pylon_document_subscriptions") == 1)
    one.socket.close()
    wait_until("none is left", lambda: stage.metric(worker, "pylon_document_subscriptions") == 0)


def test_a_socket_has_a_largest_number(stage: DocumentStage) -> None:
    worker = stage.start("ws")
    ops = [stage.insert("Public") for _ in range(limits.DOCUMENT_SUBSCRIPTIONS + 1)]
    stage.write(*ops)
    ids = [op.row_id for op in ops]
    one = Follower(worker.port)
    for row_id in ids:
        one.say("crdt-subscribe", "Public", row_id)
    frames_seen = 0
    while True:
        opcode, data = one.socket.read_frame_except()
        if opcode == frames.BINARY:
            frames_seen += 1
        elif b'"error"' in data:
            break
    answer = json.loads(data)
    assert (answer["code"], answer["rowId"]) == ("LIMIT_EXCEEDED", ids[-1])
    assert frames_seen == limits.DOCUMENT_SUBSCRIPTIONS
    one.say("crdt-unsubscribe", "Public", ids[0])
    one.follow("Public", ids[-1])
