"""Rooms with members: on no path does a stranger see a message, or write one.

The read rule of a message asks for a membership, that of a reaction for one of its message's room.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from pylon.storage.ops import InsertRow, OpenDocument
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.documents import LoroClient

pytestmark = pytest.mark.stores

MINE = "exists(Member, roomId == data.roomId, userId == auth.userId)"
MANIFEST: dict[str, Any] = {
    "name": "chat",
    "entities": [
        {
            "name": "Room",
            "fields": [{"name": "name", "type": "string"}],
            "relations": [
                {"name": "messages", "target": "Message", "field": "roomId", "many": True},
            ],
        },
        {
            "name": "Member",
            "fields": [
                {"name": "roomId", "type": "id(Room)"}, {"name": "userId", "type": "string"},
                {"name": "role", "type": "string"},
            ],
            "indexes": [{"name": "by_user", "fields": ["userId", "roomId"], "unique": True}],
        },
        {
            "name": "Message",
            "fields": [
                {"name": "roomId", "type": "id(Room)"}, {"name": "body", "type": "richtext"},
                {"name": "key", "type": "string", "unique": True, "optional": True},
            ],
            "indexes": [{"name": "by_room", "fields": ["roomId"], "unique": False}],
            "relations": [{"name": "room", "target": "Room", "field": "roomId"}],
            "search": {"text": ["body"], "facets": ["roomId"], "sortable": []},
        },
        {
            "name": "Reaction",
            "fields": [
                {"name": "messageId", "type": "id(Message)"},
                {"name": "mark", "type": "string"},
            ],
            "relations": [{"name": "message", "target": "Message", "field": "messageId"}],
        },
    ],
    "actions": [{"name": "close", "input": [{"name": "roomId", "type": "string"}]}],
    "policies": [
        {"name": "room", "entity": "Room", "allow": "true"},
        {
            "name": "member", "entity": "Member", "allowRead": "data.userId == auth.userId",
            "allowWrite": "exists(Member, roomId == data.roomId, userId == auth.userId,"
            " role == 'owner')",
        },
        {"name": "message", "entity": "Message", "allow": MINE},
        {
            "name": "reaction", "entity": "Reaction", "allow": "exists(Message,"
            " id == data.messageId, exists(Member, roomId == Message.roomId,"
            " userId == auth.userId))",
        },
        {
            "name": "close", "action": "close", "allow":
            "exists(Member, roomId == input.roomId, userId == auth.userId, role == 'owner')",
        },
    ],
}
ROOM, OTHER = f"{1:040x}", f"{2:040x}"
MESSAGE, HIDDEN = f"{11:040x}", f"{12:040x}"
MEMBER = f"{21:040x}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as stage:
        add(stage, "Room", id=ROOM, name="ours")
        add(stage, "Room", id=OTHER, name="theirs")
        add(stage, "Member", id=MEMBER, roomId=ROOM, userId="ann", role="owner")
        add(stage, "Member", roomId=OTHER, userId="zoe", role="owner")
        add(stage, "Message", id=MESSAGE, roomId=ROOM, body="hello ann", key="k1")
        add(stage, "Message", id=HIDDEN, roomId=OTHER, body="hello zoe", key="k2")
        add(stage, "Reaction", id=f"{31:040x}", messageId=MESSAGE, mark="+")
        add(stage, "Reaction", id=f"{32:040x}", messageId=HIDDEN, mark="-")
        yield stage


def add(stage: ApiStage, entity: str, token: str = ADMIN_TOKEN, **row: Any) -> int:
    return stage.call("POST", f"/api/entities/{entity}", row, token).status_code


def paths(stage: ApiStage, token: str) -> dict[str, set[str]]:
    """The ids of messages that each path shows, or an equivalent of them."""
    def read(method: str, target: str, body: Any = None) -> Any:
        answer = stage.call(method, target, body, token)
        return answer.json if answer.status_code == 200 else None

    def ids(rows: Any) -> set[str]:
        return {row["id"] for row in rows or []}

    names = {ROOM: MESSAGE, OTHER: HIDDEN}
    rooms = read("POST", "/api/query", {"Room": {"include": {"messages": {}}}})["Room"]
    reactions = read("POST", "/api/query", {"Reaction": {"include": {"message": {}}}})["Reaction"]
    search = read("POST", "/api/search/Message", {"query": "hello", "facets": ["roomId"]})
    groups = read("POST", "/api/aggregate/Message", {"count": "*", "groupBy": ["roomId"]})
    found = {
        "list": ids(read("GET", "/api/entities/Message")["data"]),
        "page": ids(read("GET", "/api/entities/Message/cursor?limit=10")["data"]),
        "get": ids(filter(None, (
            read("GET", f"/api/entities/Message/{row_id}") for row_id in (MESSAGE, HIDDEN)
        ))),
        "lookup": ids(filter(None, (
            read("GET", f"/api/lookup/Message/key/{key}") for key in ("k1", "k2")
        ))),
        "query": ids(read("POST", "/api/query/Message", {"key": {"$in": ["k1", "k2"]}})),
        "ordered": ids(read("POST", "/api/query/Message", {"$order": {"body": "desc"}})),
        "search": ids(search["hits"]),
        "facets": {names[room] for room in search["facetCounts"]["roomId"]},
        "aggregate": {names[row["roomId"]] for row in groups["rows"]},
        "graph": ids(row for room in rooms for row in room["messages"]),
        "included": ids(row["message"] for row in reactions if row.get("message")),
        "snapshot": changed(read("GET", "/api/sync/pull?since=0")),
    }
    (first,) = stage.services.data.store.point(lambda reader: reader.events_after(0, 1))
    found["changes"] = changed(read("GET", f"/api/sync/pull?since={first.seq}"))
    return found


def all_of(ids: set[str]) -> dict[str, set[str]]:
    """Return the answer of `paths` where each path shows the same."""
    names = (
        "list page get lookup query ordered search facets aggregate graph included snapshot changes"
    )
    return dict.fromkeys(names.split(), ids)


def changed(pulled: Any) -> set[str]:
    return {
        event["row_id"] for event in pulled["changes"]
        if event["entity"] == "Message" and event["kind"] != "delete"
    }


def test_every_path_shows_a_member_the_room_and_a_stranger_nothing(server: ApiStage) -> None:
    ann, zoe, eve = (server.user(name) for name in ("ann", "zoe", "eve"))
    assert paths(server, ann) == all_of({MESSAGE})
    assert paths(server, zoe) == all_of({HIDDEN})
    assert paths(server, eve) == all_of(set())


def test_removed_member_sees_nothing_from_the_next_request_on(server: ApiStage) -> None:
    ann = server.user("ann")
    assert paths(server, ann)["list"] == {MESSAGE}
    server.call("DELETE", f"/api/entities/Member/{MEMBER}", None, ADMIN_TOKEN)
    seen = paths(server, ann)
    assert seen == all_of(set())
    assert add(server, "Member", roomId=ROOM, userId="ann", role="guest") == 201
    assert paths(server, ann)["query"] == {MESSAGE}


def test_only_members_write_and_the_writer_judges(server: ApiStage) -> None:
    ann, eve = server.user("ann"), server.user("eve")
    server.writer.seen.clear()
    assert add(server, "Message", ann, roomId=ROOM, body="mine") == 201
    assert add(server, "Message", eve, roomId=ROOM, body="not mine") == 403
    assert add(server, "Message", ann, roomId=OTHER, body="not there") == 403
    inserts = [op for op in server.writer.seen if isinstance(op, InsertRow)]
    assert [op.auth and op.auth.user_id for op in inserts] == ["ann", "eve", "ann"]
    target = f"/api/entities/Message/{MESSAGE}"
    assert server.call("PATCH", target, {"body": "x"}, eve).status_code == 404
    assert server.call("PATCH", target, {"roomId": OTHER}, ann).status_code == 403
    assert server.call("PATCH", target, {"body": "x"}, ann).status_code == 200
    assert server.call("DELETE", target, None, eve).status_code == 404
    reaction = f"/api/entities/Reaction/{31:040x}"
    assert server.call("DELETE", reaction, None, eve).status_code == 404
    assert server.call("DELETE", reaction, None, ann).status_code == 200
    assert server.call("DELETE", target, None, ann).status_code == 200


def test_transaction_sees_the_membership_that_it_makes(server: ApiStage) -> None:
    """Ann makes Eve a member and Eve's rows do not matter: the same caller judges both steps."""
    ann = server.user("ann")
    room = f"{3:040x}"
    steps = [
        {"op": "insert", "entity": "Room", "data": {"id": room, "name": "new"}},
        {"op": "insert", "entity": "Message", "data": {"roomId": room, "body": "first"}},
    ]
    refused = server.call("POST", "/api/transact", steps, ann)
    assert refused.status_code == 400 and refused.json["results"][-1]["error"]
    assert server.call("GET", f"/api/entities/Room/{room}", None, ann).status_code == 404
    member = {"roomId": room, "userId": "ann", "role": "owner"}
    steps.insert(1, {"op": "insert", "entity": "Member", "data": member})
    assert server.call("POST", "/api/transact", steps, ann).json["committed"] is False
    assert server.call("POST", "/api/transact", steps, ADMIN_TOKEN).json["committed"] is True
    # An owner lets a friend in; both steps are judged by the rows of the transaction.
    out = [
        {"op": "insert", "entity": "Message", "data": {"roomId": room, "body": "bye"}},
        {"op": "delete", "entity": "Member", "id": member_id(server, room, "ann")},
        {"op": "insert", "entity": "Message", "data": {"roomId": room, "body": "too late"}},
    ]
    left = server.call("POST", "/api/transact", out, ann)
    assert left.json["committed"] is False and "error" in left.json["results"][2]
    assert server.call("POST", "/api/transact", out[:2], ann).json["committed"] is True


def member_id(server: ApiStage, room: str, user: str) -> str:
    (row,) = server.call(
        "POST", "/api/query/Member", {"roomId": room, "userId": user}, ADMIN_TOKEN
    ).json
    return str(row["id"])


def test_batch_and_push_are_judged_row_by_row(server: ApiStage) -> None:
    ann = server.user("ann")
    sent = [
        {"op": "insert", "entity": "Message", "data": {"roomId": room, "body": "b"}}
        for room in (ROOM, OTHER, ROOM)
    ]
    results = server.call("POST", "/api/batch", {"operations": sent}, ann).json["results"]
    assert [result["ok"] for result in results] == [True, False, True]
    pushed = server.call("POST", "/api/sync/push", {"client_id": "c", "changes": [
        {"op_id": f"o{n}", "entity": "Message", "row_id": f"{50 + n:040x}", "kind": "insert",
         "data": {"roomId": room, "body": "p"}}
        for n, room in enumerate((OTHER, ROOM))
    ]}, ann).json
    assert (pushed["applied"], len(pushed["errors"])) == (1, 1)


def test_link_needs_both_rows_in_view(server: ApiStage) -> None:
    ann, eve = server.user("ann"), server.user("eve")
    body = {"entity": "Reaction", "id": f"{31:040x}", "relation": "message"}
    linked = {**body, "target_id": HIDDEN}
    assert server.call("POST", "/api/link", linked, eve).status_code == 404
    assert server.call("POST", "/api/link", linked, ann).status_code == 403
    assert server.call("POST", "/api/link", {**body, "target_id": MESSAGE}, ann).status_code == 200


def test_action_asks_by_its_inputs(server: ApiStage) -> None:
    ann, eve = server.user("ann"), server.user("eve")
    for token, room, wanted in ((ann, ROOM, 200), (ann, OTHER, 403), (eve, ROOM, 403)):
        answer = server.call("POST", "/api/actions/close", {"roomId": room}, token)
        assert answer.status_code == wanted
    assert server.call("POST", "/api/actions/close", {}, ann).status_code == 403


@pytest.mark.usefixtures("processes")
def test_documents_take_updates_of_members_only(server: ApiStage) -> None:
    ann, eve = server.user("ann"), server.user("eve")
    server.writer.submit(OpenDocument("Message", MESSAGE))
    stored = server.services.data.store.point(lambda reader: reader.document("Message", MESSAGE))
    assert stored is not None
    client = LoroClient(stored.snapshot, *stored.updates)
    client.text("body").insert(5, " dear")
    body = {"update": client.update().hex()}
    target = f"/api/crdt/Message/{MESSAGE}"
    assert server.call("POST", target, body, eve).status_code == 404
    assert server.call("POST", target, body, ann).status_code == 200
    row = server.call("GET", f"/api/entities/Message/{MESSAGE}", None, ann).json
    assert row["body"] == "hello dear ann"
    server.call("DELETE", f"/api/entities/Member/{MEMBER}", None, ADMIN_TOKEN)
    assert server.call("POST", target, body, ann).status_code == 404


def test_import_of_an_admin_asks_nothing(server: ApiStage) -> None:
    rows = {"entities": {"Message": [{"roomId": OTHER, "body": "i"}]}}
    answer = server.call("POST", "/api/import", rows, ADMIN_TOKEN)
    assert answer.json["imported"] == 1
    exported = server.call("GET", "/api/export/Message", None, ADMIN_TOKEN)
    assert len(orjson.loads(exported.content)["entities"]["Message"]) == 3
