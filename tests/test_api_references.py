"""References over the API: every route that writes, imports in any order, seed files, pylonctl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from pylon.clock import ManualClock, SystemRandom
from pylon.errors import StartRefused
from pylon.ids import RowIds
from pylon.manifest_loader import parse_manifest
from pylon.seed_file import read_seed
from pylon.storage.factory import open_store_at
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.cli import Ctl, decode_output

pytestmark = pytest.mark.stores

MANIFEST: dict[str, Any] = {
    "name": "chat",
    "entities": [
        {"name": "Room", "fields": [
            {"name": "name", "type": "string", "default": ""},
            {"name": "parentId", "type": "id(Room)", "optional": True},
            {"name": "firstId", "type": "id(Message)", "optional": True, "onDelete": "setNull"},
        ]},
        {"name": "Message", "fields": [
            {"name": "roomId", "type": "id(Room)", "onDelete": "cascade"},
            {"name": "replyTo", "type": "id(Message)", "optional": True},
        ], "relations": [{"name": "room", "target": "Room", "field": "roomId"}]},
        {"name": "Secret", "fields": [
            {"name": "ofId", "type": "id(Secret)", "optional": True},
        ]},
    ],
    "policies": [
        {"name": "rooms", "entity": "Room", "allow": "true"},
        {"name": "messages", "entity": "Message", "allowRead": "true", "allowInsert": "true",
         "allowUpdate": "true", "allowDelete": "auth.isAdmin"},
        {"name": "secrets", "entity": "Secret", "allowRead": "auth.isAdmin", "allowInsert": "true"},
    ],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


def add(server: ApiStage, entity: str, **row: Any) -> str:
    answer = server.call("POST", f"/api/entities/{entity}", row, ADMIN_TOKEN)
    assert answer.status_code == 201, answer.text
    row_id: str = answer.json["id"]
    return row_id


def test_routes_of_rows_answer_with_the_field_and_the_value(server: ApiStage) -> None:
    guest = server.guest()
    answer = server.call("POST", "/api/entities/Message", {"roomId": "nope"}, guest)
    assert answer.status_code == 422
    error = answer.json["error"]
    assert (error["code"], error["entity"], error["field"], error["value"]) == (
        "REFERENCE_NOT_FOUND", "Message", "roomId", "nope",
    )
    message = add(server, "Message", roomId=add(server, "Room"))
    answer = server.call("PATCH", f"/api/entities/Message/{message}", {"replyTo": "x"}, guest)
    assert (answer.status_code, answer.json["error"]["code"]) == (422, "REFERENCE_NOT_FOUND")


def test_delete_of_a_row_in_use_is_a_conflict(server: ApiStage) -> None:
    room = add(server, "Room")
    add(server, "Room", parentId=room)
    answer = server.call("DELETE", f"/api/entities/Room/{room}", token=ADMIN_TOKEN)
    assert answer.status_code == 409
    error = answer.json["error"]
    assert (error["code"], error["entity"], error["field"], error["count"]) == (
        "REFERENCE_IN_USE", "Room", "parentId", 1,
    )


def test_delete_cascades_for_a_caller_who_may_delete_the_first_row_only(server: ApiStage) -> None:
    room = add(server, "Room")
    message = add(server, "Message", roomId=room)
    guest = server.guest()
    refused = server.call("DELETE", f"/api/entities/Message/{message}", token=guest)
    assert refused.status_code == 403
    since = server.call("GET", "/api/sync/pull?since=0", token=guest).json["cursor"]["last_seq"]
    answer = server.call("DELETE", f"/api/entities/Room/{room}", token=guest)
    assert answer.status_code == 200
    pulled = server.call("GET", f"/api/sync/pull?since={since}", token=guest).json
    assert [(c["kind"], c["row_id"]) for c in pulled["changes"]] == [
        ("delete", message), ("delete", room),
    ]
    assert int(answer.headers["x-pylon-change-seq"]) == pulled["changes"][-1]["seq"]


def test_transaction_takes_parent_and_child_in_any_order(server: ApiStage) -> None:
    room_id = "1" * 40
    ops = [
        {"op": "insert", "entity": "Message", "data": {"roomId": room_id}},
        {"op": "insert", "entity": "Room", "data": {"id": room_id}},
    ]
    assert server.call("POST", "/api/transact", ops, ADMIN_TOKEN).json["committed"] is True
    child = add(server, "Room", parentId=room_id)
    ops = [{"op": "delete", "entity": "Room", "id": row_id} for row_id in (room_id, child)]
    assert server.call("POST", "/api/transact", ops, ADMIN_TOKEN).json["committed"] is True
    ops = [
        {"op": "insert", "entity": "Room", "data": {}},
        {"op": "insert", "entity": "Message", "data": {"roomId": "nope"}},
    ]
    answer = server.call("POST", "/api/transact", ops, ADMIN_TOKEN)
    assert answer.status_code == 400 and answer.json["committed"] is False
    assert "does not exist" in answer.json["results"][-1]["error"]


def test_batch_counts_each_operation_by_itself(server: ApiStage) -> None:
    parent = add(server, "Room")
    child = add(server, "Room", parentId=parent)
    ops = [{"op": "delete", "entity": "Room", "id": row_id} for row_id in (parent, child, parent)]
    answer = server.call("POST", "/api/batch", {"operations": ops}, ADMIN_TOKEN)
    assert [result["ok"] for result in answer.json["results"]] == [False, True, True]


def test_pending_ids_of_a_push_are_references(server: ApiStage) -> None:
    changes = [
        {"kind": "insert", "entity": "Room", "row_id": "_pending_r", "data": {"name": "a"}},
        {"kind": "insert", "entity": "Message", "row_id": "_pending_m",
         "data": {"roomId": "_pending_r"}},
        {"kind": "insert", "entity": "Message", "row_id": "_pending_x",
         "data": {"roomId": "_pending_nope"}},
    ]
    body = {"changes": changes, "client_id": "c"}
    answer = server.call("POST", "/api/sync/push", body, server.guest()).json
    statuses = [(r["status"], r.get("error", {}).get("code")) for r in answer["results"]]
    assert statuses == [("applied", None), ("applied", None), ("error", "REFERENCE_NOT_FOUND")]


def test_link_to_a_missing_row_is_not_found(server: ApiStage) -> None:
    message = add(server, "Message", roomId=add(server, "Room"))
    body = {"entity": "Message", "id": message, "relation": "room", "target_id": "nope"}
    answer = server.call("POST", "/api/link", body, ADMIN_TOKEN)
    assert (answer.status_code, answer.json["error"]["code"]) == (404, "NOT_FOUND")


def test_guesses_of_hidden_ids_are_limited(server: ApiStage) -> None:
    guest = server.guest()

    def codes(entity: str, field: str) -> list[str]:
        answers = [
            server.call("POST", f"/api/entities/{entity}", {field: f"guess{n}"}, guest)
            for n in range(40)
        ]
        return [answer.json["error"]["code"] for answer in answers]

    assert set(codes("Message", "roomId")) == {"REFERENCE_NOT_FOUND"}, "all rooms can be read"
    guesses = codes("Secret", "ofId")
    assert guesses[:30] == ["REFERENCE_NOT_FOUND"] * 30 and guesses[-1] == "RATE_LIMITED"


def test_import_takes_rows_in_any_order(server: ApiStage) -> None:
    first, second, third = ("1" * 40, "2" * 40, "3" * 40)
    rows = {
        "Message": [
            {"id": second, "roomId": first, "replyTo": third}, {"id": third, "roomId": first},
            {"id": "4" * 40, "roomId": "nope"},
        ],
        "Room": [{"id": first, "name": "a", "firstId": second}],
    }
    answer = server.call("POST", "/api/import", {"entities": rows}, ADMIN_TOKEN).json
    assert (answer["imported"], answer["failed"]) == (3, 1), answer
    assert answer["errors"][0]["code"] == "REFERENCE_NOT_FOUND"
    assert answer["errors"][0]["row"] == 3
    exported = server.call("GET", "/api/export", token=ADMIN_TOKEN).json
    assert len(exported["entities"]["Message"]) == 2


def test_import_of_a_long_chain_that_begins_at_its_end(server: ApiStage) -> None:
    rooms = [
        {"id": f"{n:040x}", "name": str(n), "parentId": f"{n - 1:040x}" if n else None}
        for n in reversed(range(700))
    ]
    lines = b"\n".join(json.dumps({"entity": "Room", "row": room}).encode() for room in rooms)
    answer = server.call(
        "POST", "/api/import", lines, ADMIN_TOKEN, {"Content-Type": "application/x-ndjson"}
    )
    assert json.loads(answer.text.splitlines()[-1])["imported"] == 700


def test_seed_file_is_checked_as_a_whole(tmp_path: Path) -> None:
    manifest = parse_manifest(json.dumps(MANIFEST), "m")
    schema = open_store_at(tmp_path / "app.db").schema
    path = tmp_path / "seed.json"
    ids = RowIds(ManualClock(), SystemRandom())
    room = {"id": "1" * 40}
    path.write_text(json.dumps({"Message": [{"roomId": "1" * 40}], "Room": [room]}))
    assert len(read_seed(path, manifest, ids, schema)) == 2
    path.write_text(json.dumps({"Message": [{"roomId": "2" * 40}], "Room": [room]}))
    with pytest.raises(StartRefused, match=r"Message\[0\]: Message\.roomId names a row of Room"):
        read_seed(path, manifest, ids, schema)


def mark_of(path: Path) -> Any:
    with closing(apsw.Connection(str(path))) as conn:
        return conn.execute("SELECT value FROM _pylon_meta WHERE key = 'references'").get


@pytest.mark.sqlite
@pytest.mark.usefixtures("processes")
def test_pylonctl_lists_broken_references_and_turns_the_check_on(ctl: Ctl, tmp_path: Path) -> None:
    from pylon.clock import SystemClock
    from pylon.storage.sqlite.connect import open_writer
    from pylon.storage.sqlite.schema.apply import prepare_store

    path = tmp_path / ".pylon" / "dev.db"
    path.parent.mkdir()
    with closing(open_writer(path)) as conn:
        conn.execute("CREATE TABLE Other (id TEXT)")  # another program made the database
        prepare_store(conn, parse_manifest(json.dumps(MANIFEST), "m"), SystemClock())
        conn.execute("INSERT INTO Message (id, roomId) VALUES ('m', 'nope')")
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(MANIFEST))
    assert mark_of(path) is None
    done = ctl("schema", "references", "--json")
    body = decode_output(done)
    assert done.returncode == 1 and (body["references"], body["code"]) == (
        "none", "REFERENCES_BROKEN",
    )
    assert body["broken"] == [{
        "entity": "Message", "field": "roomId", "target": "Room", "rows": 1,
        "examples": [{"id": "m", "value": "nope"}],
    }]
    assert ctl("schema", "references", "--check").returncode == 1 and mark_of(path) is None
    with closing(apsw.Connection(str(path))) as conn:
        conn.execute("DELETE FROM Message")
    done = ctl("schema", "references", "--check")
    assert done.returncode == 0 and "checked by default" in done.stdout
    assert mark_of(path) == "check"
    assert ctl("schema", "references", "--none").returncode == 0 and mark_of(path) == "none"


def test_conflicts_in_a_partial_index_are_about_its_rows_only(tmp_path: Path) -> None:
    """A row outside of the index that the caller may read has the same values."""
    manifest = {
        "name": "desks",
        "entities": [{
            "name": "Desk",
            "fields": [{"name": "room", "type": "string"}, {"name": "open", "type": "bool"}],
            "indexes": [{"name": "one", "fields": ["room"], "unique": True,
                         "where": {"open": True}}],
        }],
        "policies": [{"name": "d", "entity": "Desk", "allowRead": "!data.open",
                      "allowInsert": "true"}],
    }
    with serve_api(tmp_path, manifest) as server:
        for is_open in (True, False):
            add(server, "Desk", room="a", open=is_open)
        guest = server.guest()
        codes = [
            server.call(
                "POST", "/api/entities/Desk", {"room": "a", "open": True}, guest
            ).json["error"]["code"]
            for _ in range(40)
        ]
        assert codes[:30] == ["UNIQUE_VIOLATION"] * 30 and codes[-1] == "RATE_LIMITED"
