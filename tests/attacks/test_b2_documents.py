"""B2: a document does not reveal its row's content while the row was hidden from the reader.

Each secret is a text of characters that occur nowhere else. What a reader has got is looked
through change by change, since Loro compresses what it sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from loro import VersionVector

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS
from pylon.crdt.document import redact_document
from pylon.crdt.views import hidden_runs
from pylon.manifest.model import Policy
from pylon.policy.rules import compile_rules
from pylon.storage.ops import OpenDocument, PushDocument, Transact
from pylon.storage.records import StoredDocument
from pylon.storage.sqlite.engine import SqliteEngine
from tests.support import storage as kit
from tests.support.api import ADMIN_TOKEN, serve_api
from tests.support.document_stage import DocumentStage, Follower
from tests.support.documents import LoroClient
from tests.support.manifests import notes_app

SECRET = "密码秘文"
PUBLIC = "公开的"


@pytest.fixture
def stage(processes: None, tmp_path: Path) -> Iterator[DocumentStage]:
    stage = DocumentStage(tmp_path)
    yield stage
    stage.close()


def told(client: LoroClient) -> set[str]:
    """Which characters of the secret its history has."""
    updates = client.doc.export_json_updates(VersionVector(), client.doc.oplog_vv)
    return set(SECRET) & set(updates)


class Reader(Follower):
    """Skips the events of rows; keeps one copy of a document for all subscriptions, as the
    official client does."""

    def subscribe(self, row_id: str) -> LoroClient:
        self.say("crdt-subscribe", "Note", row_id)
        copy = self.copies.setdefault(row_id, LoroClient())
        copy.hear(self.next_frame())
        return copy

    def next_frame(self) -> bytes:
        while True:
            opcode, data = self.socket.read_frame_except()
            if opcode == 2:
                names = 5 + int.from_bytes(data[1:3], "big")
                at = 3 + int.from_bytes(data[1:3], "big")
                return data[names + int.from_bytes(data[at : at + 2], "big") :]


def frames_until(reader: Reader, row_id: str, text: str) -> LoroClient:
    """Take frames until the document says `text`."""
    copy = reader.copies[row_id]
    while copy.row().get("text") != text:
        copy.hear(reader.next_frame())
    return copy


@pytest.fixture
def port(stage: DocumentStage) -> int:
    return stage.start("ws").port


def made(stage: DocumentStage, **body: Any) -> str:
    op = stage.insert("Note", ownerId="ada", **body)
    stage.write(op)
    return str(op.row_id)


def push(stage: DocumentStage, row_id: str, client: LoroClient) -> None:
    stage.write(PushDocument("Note", row_id, client.update(), ADMIN))


def test_history_from_before_a_row_came_into_view_is_not_told(
    stage: DocumentStage, port: int
) -> None:
    row_id = made(stage, text=SECRET, body=f"{SECRET} and {PUBLIC}", shared=False)
    owner = Reader(port, stage.login("ada")[0])
    mine = owner.subscribe(row_id)
    mine.text("body").insert(0, SECRET)
    push(stage, row_id, mine)
    mine.text("body").delete(0, 2 * len(SECRET) + 5)
    push(stage, row_id, mine)
    stage.write(stage.update("Note", row_id, text="t"))
    stage.write(stage.update("Note", row_id, shared=True))
    stranger = Reader(port, stage.login("bob")[0])
    theirs = stranger.subscribe(row_id)
    assert theirs.row() == {"text": "t", "body": PUBLIC, "ownerId": "ada", "shared": True}
    assert told(theirs) == set()
    # What both write afterwards merges, in the row and in either copy.
    theirs.text("body").insert(0, "stranger ")
    push(stage, row_id, theirs)
    mine.text("body").insert(len(mine.row()["body"]), " owner")
    push(stage, row_id, mine)
    stage.write(stage.update("Note", row_id, text="end"))
    for reader in (owner, stranger):
        copy = frames_until(reader, row_id, "end")
        assert copy.row()["body"] == f"stranger {PUBLIC} owner"
    assert told(theirs) == set() and told(mine) == set(SECRET)


def test_row_that_returns_brings_an_old_copy_up_to_date_and_tells_nothing(
    stage: DocumentStage, port: int
) -> None:
    row_id = made(stage, text="before", body=PUBLIC, shared=True)
    stranger = Reader(port, stage.login("bob")[0])
    theirs = stranger.subscribe(row_id)
    stage.write(stage.update("Note", row_id, shared=False))
    stage.write(stage.update("Note", row_id, text=SECRET, body=PUBLIC + SECRET))
    stage.write(stage.update("Note", row_id, text="after", body=PUBLIC + "!"))
    stage.write(stage.update("Note", row_id, shared=True))
    assert stranger.subscribe(row_id) is theirs
    assert theirs.row()["text"] == "after" and theirs.row()["body"] == PUBLIC + "!"
    assert told(theirs) == set()
    theirs.text("body").insert(0, "new ")
    push(stage, row_id, theirs)
    fresh = Reader(port, stage.login("bob")[0]).subscribe(row_id)
    assert fresh.row()["body"] == f"new {PUBLIC}!" and told(fresh) == set()


@pytest.mark.parametrize("together", ["commits", "batch", "transaction"])
def test_follower_of_a_row_that_is_hidden_for_a_moment_is_told_nothing(
    stage: DocumentStage, port: int, together: str
) -> None:
    row_id = made(stage, text="before", body=PUBLIC, shared=True)
    stranger = Reader(port, stage.login("bob")[0])
    theirs = stranger.subscribe(row_id)
    ops = [
        stage.update("Note", row_id, shared=False),
        stage.update("Note", row_id, text=SECRET, body=SECRET),
        stage.update("Note", row_id, body=PUBLIC),
        stage.update("Note", row_id, text="after", shared=True),
    ]
    if together == "transaction":
        stage.write(Transact(ops))
    elif together == "batch":
        stage.write(*ops)
    else:
        for op in ops:
            stage.write(op)
        stranger.subscribe(row_id)  # it may have been dropped, or not
    frames_until(stranger, row_id, "after")
    assert theirs.row()["body"] == PUBLIC and told(theirs) == set()
    stage.write(stage.update("Note", row_id, text="later"))
    frames_until(stranger, row_id, "later")
    assert told(theirs) == set()


def test_document_that_was_never_hidden_is_sent_as_it_is_stored(
    stage: DocumentStage, port: int
) -> None:
    row_id = made(stage, text="a", body=PUBLIC, shared=True)
    reader = Reader(port, stage.login("bob")[0])
    reader.subscribe(row_id)
    stage.write(stage.update("Note", row_id, text=SECRET))
    stage.write(stage.update("Note", row_id, text="b"))
    copy = frames_until(reader, row_id, "b")
    fresh = Reader(port, stage.login("bob")[0]).subscribe(row_id)
    assert fresh.row() == copy.row() and told(fresh) == set(SECRET)


def test_documents_from_before_another_rule_are_hidden(tmp_path: Path) -> None:
    """A deploy may open an entity; what its documents had before was for others' eyes."""
    path, row = tmp_path / "a.db", ("Note", kit.row_id(1))

    def opened(rule: str) -> SqliteEngine:
        policies = (Policy("notes", entity="Note", allow_read=rule, allow_write="true"),)
        return kit.open_engine(path, manifest=replace(kit.MANIFEST, policies=policies))

    def stored() -> StoredDocument:
        reader = kit.open_reader(path)
        found = reader.document(*row)
        reader.close()
        assert found is not None
        return found

    engine = opened("auth.isAdmin")
    kit.apply(engine, kit.insert("Note", 1, {"text": SECRET}), OpenDocument(*row))
    kit.apply(engine, kit.update("Note", 1, {"text": PUBLIC}))
    engine.close()
    opened("auth.isAdmin").close()
    assert stored().views == (), "the same rule"
    rules = compile_rules(kit.MANIFEST).for_entity("Note")  # everybody reads
    engine = opened("true")
    for _ in range(2):
        runs = hidden_runs(stored(), rules, ANONYMOUS)
        copy = LoroClient(redact_document(stored().parts, runs))
        assert copy.row() == {"text": PUBLIC} and told(copy) == set()
        kit.apply(engine, OpenDocument(*row))  # a reader comes
    assert len(stored().views) == 2
    kit.apply(engine, kit.update("Note", 1, {"text": "later"}))
    copy.hear(redact_document(stored().parts, hidden_runs(stored(), rules, ANONYMOUS)))
    assert copy.row() == {"text": "later"} and told(copy) == set()
    assert hidden_runs(stored(), rules, ADMIN) == ()
    engine.close()


@pytest.mark.usefixtures("processes")
def test_hidden_row_costs_a_push_what_no_row_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a hidden row is decoded, however large it and its document are."""
    with serve_api(tmp_path, notes_app()) as server:
        note = {"title": "x" * 200_000, "ownerId": "ada", "shared": False}
        hidden = server.call("POST", "/api/entities/Note", note, ADMIN_TOKEN).json["id"]
        client = LoroClient()
        client.doc.get_map("row").insert("title", "y")
        body = {"update": client.update().hex()}
        bob, ada = server.user("bob"), server.user("ada")
        assert server.call("POST", f"/api/crdt/Note/{hidden}", body, ada).status_code == 200
        decoded: list[int] = []
        loads = orjson.loads
        monkeypatch.setattr(
            orjson, "loads", lambda raw: (decoded.append(len(raw)), loads(raw))[1]
        )
        answers = []
        for row_id in (hidden, "0" * 40):
            decoded.clear()
            answer = server.call("POST", f"/api/crdt/Note/{row_id}", body, bob)
            answers.append((answer.status_code, answer.text, sum(decoded)))
        assert answers[0] == answers[1] == (404, answers[0][1], answers[0][2])
        assert answers[0][2] < limits.DOCUMENT_UPDATE_BYTES // 100
