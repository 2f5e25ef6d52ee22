"""Values that the server gives to fields: defaults, fixed fields, onUpdate, on every path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon.clock import ManualClock, SystemRandom
from pylon.ids import RowIds, make_uuid
from pylon.manifest_loader import parse_manifest
from pylon.openapi.values import entity_schemas
from pylon.seed_file import read_seed
from pylon.storage.factory import open_store_at
from pylon.storage.ops import OpenDocument
from pylon.values.defaults import instant_text
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.documents import LoroClient

pytestmark = pytest.mark.stores

MANIFEST: dict[str, Any] = {
    "name": "defaults",
    "entities": [
        {
            "name": "Note",
            "fields": [
                {"name": "text", "type": "string"},
                {"name": "done", "type": "bool", "default": False},
                {"name": "rank", "type": "int", "default": 3},
                {"name": "size", "type": "float", "default": 1, "optional": True},
                {"name": "createdAt", "type": "datetime", "default": {"$now": True},
                 "fixed": True},
                {"name": "changedAt", "type": "datetime", "onUpdate": {"$now": True}},
                {"name": "authorId", "type": "string", "default": {"$auth": "userId"},
                 "fixed": True},
                {"name": "tenantId", "type": "string", "default": {"$auth": "tenantId"},
                 "optional": True},
                {"name": "rootId", "type": "id(Note)", "default": {"$id": True}},
                {"name": "key", "type": "string", "default": {"$uuid": True}},
                {"name": "day", "type": "date", "default": {"$now": True}},
                {"name": "state", "type": "enum", "values": ["new", "old"], "default": "new"},
                {"name": "price", "type": "decimal", "default": "7.50"},
                {"name": "meta", "type": "json", "default": {"tags": []}},
                {"name": "parentId", "type": "id(Note)", "optional": True},
            ],
            "relations": [
                {"name": "parent", "target": "Note", "field": "parentId"},
            ],
        }
    ],
    "policies": [{
        "name": "own", "entity": "Note", "allowRead": "true",
        "allowInsert": "data.authorId == auth.userId && data.rank == 3",
        "allowUpdate": "true", "allowDelete": "true",
    }],
}
NOTES = "/api/entities/Note"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


def now(server: ApiStage) -> str:
    return instant_text(server.clock.wall_ns())


def row(server: ApiStage, row_id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.call("GET", f"{NOTES}/{row_id}", token=ADMIN_TOKEN).json
    return found


def test_a_new_row_gets_the_defaults_before_its_policy_is_judged(server: ApiStage) -> None:
    made = server.call("POST", NOTES, {"text": "a"}, server.user("ada"))
    assert made.status_code == 201, made.text
    found = row(server, made.json["id"])
    assert found["createdAt"] == found["changedAt"] != now(server)
    assert len(found["createdAt"]) == len("2026-03-29T00:30:00.000000Z")
    assert (found["done"], found["rank"], found["size"]) == (False, 3, 1.0)
    assert (found["authorId"], found["tenantId"]) == ("ada", None)
    assert found["rootId"] == found["id"]
    assert found["day"] == found["createdAt"][:10]
    assert (found["state"], found["price"], found["meta"]) == ("new", "7.5", {"tags": []})
    assert found["key"][14] == "7" and len(found["key"]) == 36


def test_values_that_are_sent_count_more_than_defaults(server: ApiStage) -> None:
    body = {"text": "a", "done": True, "size": None, "key": "k"}
    made = server.call("POST", NOTES, body, server.user("ada"))
    found = row(server, made.json["id"])
    assert (found["done"], found["size"], found["key"]) == (True, None, "k")


def test_null_for_a_required_field_is_no_absent_field(server: ApiStage) -> None:
    answer = server.call("POST", NOTES, {"text": "a", "done": None}, server.user("ada"))
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "NULL_NOT_ALLOWED")


@pytest.mark.parametrize("name", ["createdAt", "authorId", "changedAt"])
def test_a_client_may_not_send_a_fixed_field(server: ApiStage, name: str) -> None:
    ada = server.user("ada")
    value = {"authorId": "ada"}.get(name, "2020-01-01T00:00:00Z")
    answer = server.call("POST", NOTES, {"text": "a", name: value}, ada)
    assert answer.status_code == 400
    error = answer.json["error"]
    assert (error["code"], error["entity"], error["field"]) == ("FIELD_FIXED", "Note", name)
    made = server.call("POST", NOTES, {"text": "a"}, ada).json["id"]
    answer = server.call("PATCH", f"{NOTES}/{made}", {"text": "b", name: value}, ada)
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "FIELD_FIXED")
    assert row(server, made)["text"] == "a"


def test_an_admin_may_set_fixed_fields(server: ApiStage) -> None:
    body = {"text": "a", "authorId": "bob", "createdAt": "2020-01-01T00:00:00.000000Z"}
    made = server.call("POST", NOTES, body, ADMIN_TOKEN).json["id"]
    assert row(server, made)["authorId"] == "bob"
    assert row(server, made)["createdAt"] == "2020-01-01T00:00:00.000000Z"
    changed = {"changedAt": "2021-01-01T00:00:00.000000Z"}
    assert server.call("PATCH", f"{NOTES}/{made}", changed, ADMIN_TOKEN).status_code == 200
    assert row(server, made)["changedAt"] == "2021-01-01T00:00:00.000000Z"


def test_a_required_field_of_the_caller_needs_a_caller(server: ApiStage) -> None:
    for token in (None, ADMIN_TOKEN):  # the admin token belongs to no user
        answer = server.call("POST", NOTES, {"text": "a"}, token)
        assert answer.status_code == 400
        assert answer.json["error"]["code"] == "MISSING_FIELD"
        assert answer.json["error"]["field"] == "authorId"


def test_each_update_sets_the_field_with_on_update(server: ApiStage) -> None:
    ada = server.user("ada")
    made = server.call("POST", NOTES, {"text": "a"}, ada).json["id"]
    before = row(server, made)
    server.clock.advance(5)
    assert server.call("PATCH", f"{NOTES}/{made}", {"text": "b"}, ada).status_code == 200
    after = row(server, made)
    assert after["changedAt"] > before["changedAt"]
    assert after["createdAt"] == before["createdAt"]
    other = server.call("POST", NOTES, {"text": "p"}, ada).json["id"]
    server.clock.advance(5)
    body = {"entity": "Note", "id": made, "relation": "parent", "target_id": other}
    assert server.call("POST", "/api/link", body, ada).status_code == 200
    assert row(server, made)["changedAt"] > after["changedAt"]


def test_push_batch_and_transaction_fill_in_defaults(server: ApiStage) -> None:
    ada = server.user("ada")
    change = {"kind": "insert", "entity": "Note", "row_id": "_pending_1", "data": {"text": "p"}}
    pushed = server.call("POST", "/api/sync/push", {"changes": [change], "client_id": "c"}, ada)
    operation = {"op": "insert", "entity": "Note", "data": {"text": "b"}}
    batch = server.call("POST", "/api/batch", {"operations": [operation]}, ada)
    transact = server.call("POST", "/api/transact", [operation], ada)
    ids = [
        pushed.json["results"][0]["row_id"], batch.json["results"][0]["id"],
        transact.json["results"][0]["id"],
    ]
    for row_id in ids:
        found = row(server, row_id)
        assert (found["authorId"], found["rank"], found["rootId"]) == ("ada", 3, row_id)
    fixed = {**change, "data": {"text": "p", "createdAt": "2020-01-01T00:00:00Z"}}
    refused = server.call("POST", "/api/sync/push", {"changes": [fixed], "client_id": "c"}, ada)
    assert refused.json["results"][0]["error"]["code"] == "FIELD_FIXED"


def test_a_repeated_push_keeps_the_row_of_its_first_time(server: ApiStage) -> None:
    ada = server.user("ada")
    change = {
        "kind": "insert", "entity": "Note", "row_id": "_pending_1", "data": {"text": "p"},
        "op_id": "one",
    }
    body = {"changes": [change], "client_id": "c"}
    first = server.call("POST", "/api/sync/push", body, ada).json["results"][0]
    before = row(server, first["row_id"])
    server.clock.advance(9)
    second = server.call("POST", "/api/sync/push", body, ada).json["results"][0]
    assert (second["status"], second["row_id"]) == ("replayed", first["row_id"])
    assert row(server, first["row_id"]) == before


def test_an_import_keeps_fixed_fields_and_fills_in_missing_ones(server: ApiStage) -> None:
    rows = [
        {"id": "1" * 40, "text": "old", "authorId": "bob",
         "createdAt": "2020-01-01T00:00:00.000000Z", "rank": 9},
        {"id": "2" * 40, "text": "no author"},
    ]
    answer = server.call("POST", "/api/import", {"entities": {"Note": rows}}, ADMIN_TOKEN)
    assert (answer.json["imported"], answer.json["failed"]) == (1, 1)
    assert answer.json["errors"][0]["code"] == "MISSING_FIELD"
    found = row(server, "1" * 40)
    assert (found["authorId"], found["rank"], found["done"]) == ("bob", 9, False)
    assert found["createdAt"] == "2020-01-01T00:00:00.000000Z"


def test_a_seed_file_gets_defaults(tmp_path: Path) -> None:
    path = tmp_path / "seed.json"
    path.write_text(json.dumps({"Note": [{"text": "a", "authorId": "ada"}]}))
    ids = RowIds(ManualClock(), SystemRandom())
    store = open_store_at(tmp_path / "app.db")
    (insert,) = read_seed(path, parse_manifest(json.dumps(MANIFEST), "m"), ids, store.schema)
    assert json.loads(insert.row_json)["rank"] == 3


@pytest.mark.usefixtures("processes")
def test_a_push_to_a_document_sets_on_update_and_may_not_set_a_fixed_field(
    server: ApiStage,
) -> None:
    ada = server.user("ada")
    made = server.call("POST", NOTES, {"text": "a"}, ada).json["id"]
    before = row(server, made)
    server.writer.submit(OpenDocument("Note", made))
    stored = server.services.data.store.point(lambda reader: reader.document("Note", made))
    assert stored is not None
    client = LoroClient(stored.snapshot, *stored.updates)
    client.doc.get_map("row").insert("done", True)
    path = f"/api/crdt/Note/{made}"
    server.clock.advance(5)
    answer = server.call("POST", path, {"update": client.update().hex()}, ada)
    assert answer.status_code == 200, answer.text
    after = row(server, made)
    assert after["done"] is True and after["changedAt"] > before["changedAt"]
    client.doc.get_map("row").insert("createdAt", "2020-01-01T00:00:00Z")
    answer = server.call("POST", path, {"update": client.update().hex()}, ada)
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "FIELD_FIXED")
    assert row(server, made) == after


def test_the_api_description_requires_no_field_with_a_default() -> None:
    (note,) = parse_manifest(json.dumps(MANIFEST), "m").entities
    schemas = entity_schemas(note)
    assert schemas["NoteInsert"]["required"] == ["text"]
    assert "Only admins" in schemas["NoteInsert"]["properties"]["authorId"]["description"]


def test_uuids_of_a_manual_clock_carry_its_time_and_differ() -> None:
    clock, random = ManualClock(1_700_000_000.0), SystemRandom()
    made = {make_uuid(clock, random) for _ in range(100)}
    assert len(made) == 100
    assert {text[:13] for text in made} == {f"{1_700_000_000_000:012x}"[:8] + "-" +
                                            f"{1_700_000_000_000:012x}"[8:]}
    assert all(text[14] == "7" and text[19] in "89ab" for text in made)


def test_instants_have_the_stored_notation() -> None:
    assert instant_text(0) == "1970-01-01T00:00:00.000000Z"
    assert instant_text(1_774_744_200_123_456_789) == "2026-03-29T00:30:00.123456Z"
