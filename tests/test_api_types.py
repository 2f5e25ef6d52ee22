"""Datetimes, the newer types and constraints on every path of the API that writes or asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon.clock import ManualClock, SystemRandom
from pylon.errors import PylonError
from pylon.ids import RowIds
from pylon.manifest_loader import parse_manifest
from pylon.seed_file import read_seed
from pylon.storage.factory import open_store_at
from pylon.storage.ops import OpenDocument
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.documents import LoroClient

pytestmark = pytest.mark.stores

MANIFEST: dict[str, Any] = {
    "name": "shop",
    "entities": [{
        "name": "Order",
        "fields": [
            {"name": "at", "type": "datetime", "optional": True},
            {"name": "dueOn", "type": "date", "optional": True},
            {"name": "total", "type": "decimal", "minimum": "0", "default": "1.50"},
            {"name": "state", "type": "enum", "values": ["open", "paid"], "default": "open"},
            {"name": "meta", "type": "json", "default": {"tags": []}},
            {"name": "raw", "type": "json", "wire": "text", "optional": True},
            {"name": "email", "type": "string", "format": "email", "optional": True},
            {"name": "slug", "type": "string", "pattern": "^[a-z]+$", "maxLength": 5,
             "optional": True},
        ],
        "indexes": [{"name": "by_total", "fields": ["total"]}],
        "search": {"facets": ["state", "total", "dueOn"], "sortable": ["at", "total"]},
    }],
    "actions": [{"name": "pay", "input": [
        {"name": "amount", "type": "decimal", "maximum": "100"},
        {"name": "how", "type": "enum", "values": ["card", "cash"]},
    ]}],
    "policies": [
        {"name": "orders", "entity": "Order",
         "allowRead": "data.total < 1000 && data.at != '2000-01-01'",
         "allowInsert": "true", "allowUpdate": "true", "allowDelete": "true"},
        {"name": "pay", "action": "pay", "allow": "input.amount > 0.5"},
    ],
}
ORDERS = "/api/entities/Order"
# Each is a body that a constraint or a type refuses, and the field at fault.
BAD = [
    ({"at": "yesterday"}, "at"), ({"dueOn": "2026-03-29T00:00Z"}, "dueOn"),
    ({"total": "-0.01"}, "total"), ({"total": 1.5}, "total"), ({"state": "Paid"}, "state"),
    ({"meta": {"a": "\0"}}, "meta"), ({"raw": "{"}, "raw"), ({"email": "nobody"}, "email"),
    ({"slug": "Abc"}, "slug"), ({"slug": "abcdef"}, "slug"),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


def post(server: ApiStage, path: str, body: Any, token: str = ADMIN_TOKEN) -> Any:
    return server.call("POST", path, body, token)


def insert(server: ApiStage, **body: Any) -> str:
    answer = post(server, ORDERS, body)
    assert answer.status_code == 201, answer.text
    made: str = answer.json["id"]
    return made


def row(server: ApiStage, row_id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.call("GET", f"{ORDERS}/{row_id}", token=ADMIN_TOKEN).json
    return found


def found(server: ApiStage, body: dict[str, Any]) -> list[str]:
    answer = post(server, "/api/query/Order", body)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json]


def test_a_bound_finds_every_notation_of_an_instant(server: ApiStage) -> None:
    """Case B23: 18 notations were compared as texts."""
    rows = [
        insert(server, at=text) for text in (
            "2026-03-29T00:30:00.000Z", "2026-03-28T19:30:00-05:00", "2026-03-29 00:30:00Z",
        )
    ]
    early = insert(server, at="2026-03-29T00:29:59Z")
    assert sorted(found(server, {"at": {"$gte": "2026-03-29T00:30:00Z"}})) == sorted(rows)
    assert found(server, {"at": {"$lt": "2026-03-29T02:30:00+02:00"}}) == [early]
    assert sorted(found(server, {"at": {"$in": ["1774744200Z"]}})) == sorted(rows)
    assert {row(server, one)["at"] for one in rows} == {"2026-03-29T00:30:00.000000Z"}
    looked = server.call(
        "GET", "/api/lookup/Order/at/2026-03-29T00:29:59Z", token=ADMIN_TOKEN
    )
    assert looked.json["id"] == early
    sorted_rows = post(server, "/api/search/Order", {"sort": ["at", "asc"]}).json["hits"]
    assert sorted_rows[0]["id"] == early


@pytest.mark.parametrize("operand", ["yesterday", {"$gt": "yesterday"}, {"$in": ["2026"]}])
def test_an_operand_that_is_no_datetime_is_refused(server: ApiStage, operand: Any) -> None:
    """Case B24: the filter was taken, and found nothing."""
    answer = post(server, "/api/query/Order", {"at": operand})
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "INVALID_VALUE")
    assert answer.json["error"]["field"] == "at"


def test_a_row_has_the_normal_form_on_every_read(server: ApiStage) -> None:
    made = insert(
        server, at="1774744200Z", dueOn="2026-03-29", total="010.500", state="paid",
        meta={"b": 1, "a": [True, None]}, raw='{ "z": 1 }', email="a@example.org", slug="abc",
    )
    wanted = {
        "id": made, "at": "2026-03-29T00:30:00.000000Z", "dueOn": "2026-03-29", "total": "10.5",
        "state": "paid", "meta": {"a": [True, None], "b": 1}, "raw": '{"z":1}',
        "email": "a@example.org", "slug": "abc",
    }
    assert row(server, made) == wanted
    assert post(server, "/api/query/Order", {"total": "10.50"}).json == [wanted]
    pull = server.call("GET", "/api/sync/pull?since=0", token=ADMIN_TOKEN).json
    assert [change["data"] for change in pull["changes"]] == [wanted]
    default = row(server, insert(server))
    assert (default["total"], default["state"], default["meta"]) == ("1.5", "open", {"tags": []})
    assert found(server, {"meta.a": {"$contains": True}, "raw.z": {"$gte": 1}}) == [made]
    figures = post(server, "/api/aggregate/Order", {"sum": ["total"], "avg": ["total"]}).json
    assert figures == {"rows": [{"sum_total": "12", "avg_total": "6"}]}
    search = post(server, "/api/search/Order", {"facets": ["total", "state"]}).json
    assert search["facetCounts"]["total"] == {"1.5": 1, "10.5": 1}
    filtered = post(server, "/api/search/Order", {"filters": {"total": "10.5"}}).json
    assert [hit["id"] for hit in filtered["hits"]] == [made]
    stranger = server.user("ada")
    assert post(server, "/api/query/Order", {"total": {"$gt": 2}}, stranger).json == [wanted]
    hidden = insert(server, total="1000")
    listed = post(server, "/api/query/Order", {}, stranger).json
    assert hidden not in [one["id"] for one in listed] and len(listed) == 2


@pytest.mark.parametrize(("body", "field"), BAD)
def test_every_path_refuses_a_bad_value_and_names_its_field(
    server: ApiStage, body: dict[str, Any], field: str
) -> None:
    made = insert(server)
    before = row(server, made)
    ada = server.user("ada")

    def refused(answer: Any) -> None:
        assert "INVALID_VALUE" in answer.text, answer.text
        assert f"Order.{field} must be" in answer.text

    refused(post(server, ORDERS, body))
    refused(server.call("PATCH", f"{ORDERS}/{made}", body, ADMIN_TOKEN))
    change = {"op_id": "o1", "entity": "Order", "row_id": "f" * 40, "kind": "insert", "data": body}
    update = {**change, "op_id": "o2", "row_id": made, "kind": "update"}
    refused(post(server, "/api/sync/push", {"changes": [change], "client_id": "c"}, ada))
    refused(post(server, "/api/sync/push", {"changes": [update], "client_id": "c"}, ada))
    operations = [{"op": "insert", "entity": "Order", "data": body}]
    batch = post(server, "/api/batch", {"operations": operations}, ada)
    assert f"Order.{field} must be" in batch.text
    transact = post(server, "/api/transact", operations, ada)
    assert transact.status_code == 400
    assert f"Order.{field} must be" in transact.json["results"][0]["error"]
    imported = post(server, "/api/import", {"entities": {"Order": [body]}})
    assert f"Order.{field} must be" in imported.text
    assert row(server, made) == before
    assert len(found(server, {})) == 1


@pytest.mark.parametrize(("body", "field"), BAD)
def test_a_seed_file_refuses_a_bad_value(
    tmp_path: Path, body: dict[str, Any], field: str
) -> None:
    path = tmp_path / "seed.json"
    path.write_text(json.dumps({"Order": [body]}))
    manifest = parse_manifest(json.dumps(MANIFEST), "m.json")
    schema = open_store_at(tmp_path / "app.db").schema
    with pytest.raises(PylonError) as caught:
        read_seed(path, manifest, RowIds(ManualClock(), SystemRandom()), schema)
    assert f"Order.{field} must be" in caught.value.message


@pytest.mark.usefixtures("processes")
def test_a_document_takes_good_values_and_refuses_bad_ones(server: ApiStage) -> None:
    made = insert(server, meta={"a": 1}, total="2")
    server.writer.submit(OpenDocument("Order", made))
    store = server.services.data.store
    path = f"/api/crdt/Order/{made}"

    def push(**values: Any) -> Any:
        stored = store.point(lambda reader: reader.document("Order", made))
        assert stored is not None
        client = LoroClient(*stored.parts)
        assert json.loads(client.row()["meta"]) == row(server, made)["meta"]
        for name, value in values.items():
            client.doc.get_map("row").insert(name, value)
        return server.call("POST", path, {"update": client.update().hex()}, ADMIN_TOKEN)

    assert push(at="2026-03-29 00:30", total="2.50", meta='{"b": [1]}').status_code < 300
    after = row(server, made)
    assert (after["at"], after["total"]) == ("2026-03-29T00:30:00.000000Z", "2.5")
    assert after["meta"] == {"b": [1]}
    head = store.point(lambda reader: reader.head_seq())
    assert push(slug="abc").status_code < 300
    assert store.point(lambda reader: reader.head_seq()) == head + 1
    for values in ({"total": "-1"}, {"state": "gone"}, {"meta": "{"}, {"slug": "toolong"}):
        assert push(**values).status_code == 400
    assert row(server, made) == {**after, "slug": "abc"}


def test_inputs_of_actions_have_types_and_constraints(server: ApiStage) -> None:
    ada = server.user("ada")
    assert post(server, "/api/actions/pay", {"amount": "1.00", "how": "card"}, ada).json["executed"]
    wrong = post(server, "/api/actions/pay", {"amount": "1", "how": "gold"}, ada)
    assert wrong.status_code == 400 and "one of card, cash" in wrong.text
    too_much = post(server, "/api/actions/pay", {"amount": "101", "how": "card"}, ada)
    assert too_much.status_code == 403, "the policy judges an amount that does not fit as null"
    denied = post(server, "/api/actions/pay", {"amount": "0.5", "how": "cash"}, ada)
    assert denied.status_code == 403


def test_the_manifest_and_the_description_have_the_types(server: ApiStage) -> None:
    fields = server.call("GET", "/api/manifest").json["entities"][0]["fields"]
    assert fields[3]["values"] == ["open", "paid"] and fields[5]["wire"] == "text"
    api = server.call("GET", "/api/openapi.json", token=ADMIN_TOKEN).json
    where = api["components"]["schemas"]["OrderWhere"]
    assert set(where["patternProperties"]) == {r"^meta\.", r"^raw\."}


def test_an_export_is_imported_as_it_was(server: ApiStage) -> None:
    made = insert(server, total="2.5", meta={"a": [1.5]}, raw="[1]", at="1774744200Z")
    before = row(server, made)
    exported = server.call("GET", "/api/export", token=ADMIN_TOKEN).json
    assert exported["entities"]["Order"] == [before]
    assert server.call("DELETE", f"{ORDERS}/{made}", token=ADMIN_TOKEN).status_code < 300
    assert post(server, "/api/import", exported).status_code < 300
    assert row(server, made) == before
