"""Files that rows name: who may attach them, who may read them, what detaches them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import falcon.testing
import pytest

from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api

pytestmark = pytest.mark.stores

def field(name: str, type_: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": type_, **more}


PNG = b"\x89PNG\r\n\x1a\n" + b"picture" * 100
MINE = "exists(Member, room == data.room, user == auth.userId)"
APP: dict[str, Any] = {
    "manifest_version": 1, "name": "chat", "version": "0.1.0", "routes": [],
    "entities": [
        {"name": "Room", "fields": [field("name", "string")]},
        {
            "name": "Member",
            "fields": [field("room", "id(Room)", references="none"), field("user", "string")],
            "indexes": [{"name": "by_both", "fields": ["user", "room"]}],
        },
        {
            "name": "Message",
            "fields": [
                field("room", "id(Room)", onDelete="cascade", references="check"),
                field("text", "string"),
                field("image", "string", optional=True, format="file", accept=["image/*"],
                      maxBytes=1_000),
                field("other", "string", optional=True, format="file"),
            ],
            "indexes": [{"name": "by_room", "fields": ["room"]}],
        },
    ],
    "policies": [
        {"name": "rooms", "entity": "Room", "allow": "true"},
        {"name": "members", "entity": "Member", "allow": "true"},
        {
            "name": "messages", "entity": "Message", "allowRead": MINE, "allowInsert": MINE,
            "allowUpdate": MINE, "allowDelete": MINE,
        },
    ],
}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiStage]:
    settings = {
        "PYLON_SECRET_KEY": bytes(range(32)).hex(), "PYLON_FILES_DIR": str(tmp_path / "files"),
    }
    with serve_api(tmp_path, APP, settings) as stage:
        yield stage


def upload(api: ApiStage, token: str, data: bytes = PNG) -> str:
    answer = api.call("POST", "/api/files/upload", data, token)
    assert answer.status_code == 201, answer.text
    file_id: str = answer.json["id"]
    return file_id


def create(api: ApiStage, token: str, entity: str, **row: Any) -> falcon.testing.Result:
    return api.call("POST", f"/api/entities/{entity}", row, token)


def made(answer: falcon.testing.Result) -> str:
    assert answer.status_code == 201, answer.text
    row_id: str = answer.json["id"]
    return row_id


def code(answer: falcon.testing.Result) -> str:
    found: str = answer.json["error"]["code"]
    return found


def status(api: ApiStage, token: str | None, file_id: str) -> int:
    found: int = api.call("GET", f"/api/files/{file_id}", token=token).status_code
    return found


@pytest.fixture
def room(api: ApiStage) -> str:
    """A room of ann and bob."""
    room_id = made(create(api, ADMIN_TOKEN, "Room", name="r"))
    for user in ("ann", "bob"):
        made(create(api, ADMIN_TOKEN, "Member", room=room_id, user=user))
    return room_id


def test_a_file_is_read_by_whoever_may_read_its_row(api: ApiStage, room: str) -> None:
    ann, bob, eve = api.user("ann"), api.user("bob"), api.user("eve")
    file_id = upload(api, ann)
    assert [status(api, token, file_id) for token in (ann, bob, eve, None)] == [200, 404, 404, 404]
    message = made(create(api, ann, "Message", room=room, text="hi", image=file_id))
    assert [status(api, token, file_id) for token in (ann, bob, eve, None)] == [200, 200, 404, 404]
    listed = api.call("GET", "/api/files?attached=true", token=ann).json["files"]
    assert [(f["entity"], f["row_id"], f["field"]) for f in listed] == [
        ("Message", message, "image")
    ]
    # A membership that ends counts at once.
    members = api.call("GET", "/api/entities/Member", token=ADMIN_TOKEN).json["data"]
    (of_bob,) = [row["id"] for row in members if row["user"] == "bob"]
    api.call("DELETE", f"/api/entities/Member/{of_bob}", token=ADMIN_TOKEN)
    assert status(api, bob, file_id) == 404
    for method in ("PATCH", "DELETE"):  # a reader is no owner
        assert code(api.call(method, f"/api/files/{file_id}", {"public": True}, bob)) == (
            "FILE_NOT_FOUND"
        )


@pytest.mark.parametrize("path", ["entities", "batch", "transact", "push"])
def test_nobody_attaches_the_file_of_somebody_else(api: ApiStage, room: str, path: str) -> None:
    """The confused deputy: eve would read ann's file through a row of her own."""
    ann, bob = api.user("ann"), api.user("bob")
    file_id = upload(api, ann)
    row = {"room": room, "text": "mine", "image": file_id}
    answer: Any
    if path == "entities":
        answer = create(api, bob, "Message", **row)
        assert answer.status_code == 409 and code(answer) == "FILE_NOT_ATTACHABLE"
    elif path == "push":
        change = {
            "seq": 0, "entity": "Message", "row_id": "1" * 40, "kind": "insert", "data": row,
            "timestamp": "",
        }
        answer = api.call(
            "POST", "/api/sync/push", {"changes": [change], "client_id": "c"}, bob
        )
        assert "file" in answer.text and api.call(
            "GET", "/api/entities/Message", token=ADMIN_TOKEN
        ).json["data"] == []
    else:
        operations = [{"op": "insert", "entity": "Message", "data": row}]
        body: Any = operations if path == "transact" else {"operations": operations}
        answer = api.call("POST", f"/api/{path}", body, bob)
        assert "is no file of yours" in answer.text
    assert status(api, bob, file_id) == 404
    mine = made(create(api, bob, "Message", room=room, text="x"))
    answer = api.call("PATCH", f"/api/entities/Message/{mine}", {"image": file_id}, bob)
    assert code(answer) == "FILE_NOT_ATTACHABLE"
    assert status(api, bob, file_id) == 404


def test_a_missing_file_and_that_of_somebody_else_look_alike(api: ApiStage, room: str) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    theirs, missing = upload(api, ann), "file_" + "0" * 40 + "_upload"
    pending = api.call("POST", "/api/files/init", {}, bob)
    found = [
        create(api, bob, "Message", room=room, text="x", image=file_id)
        for file_id in (theirs, missing)
    ]
    assert {answer.text.replace(theirs, "").replace(missing, "") for answer in found} == {
        found[0].text.replace(theirs, "")
    }
    if pending.status_code == 200:
        answer = create(api, bob, "Message", room=room, text="x", image=pending.json["assetId"])
        assert code(answer) == "FILE_NOT_ATTACHABLE"


def test_a_file_is_attached_once(api: ApiStage, room: str) -> None:
    ann = api.user("ann")
    file_id = upload(api, ann)
    answer = create(api, ann, "Message", room=room, text="x", image=file_id, other=file_id)
    assert code(answer) == "FILE_NOT_ATTACHABLE"
    first = made(create(api, ann, "Message", room=room, text="x", image=file_id))
    assert code(create(api, ann, "Message", room=room, text="y", other=file_id)) == (
        "FILE_NOT_ATTACHABLE"
    )
    # The same value again is no change.
    answer = api.call("PATCH", f"/api/entities/Message/{first}", {"image": file_id, "text": "z"},
                      ann)
    assert answer.status_code == 200


def test_another_value_and_a_deletion_detach(api: ApiStage, room: str) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    old, new = upload(api, ann), upload(api, ann)
    message = made(create(api, ann, "Message", room=room, text="x", image=old))
    api.call("PATCH", f"/api/entities/Message/{message}", {"image": new}, ann)
    assert [status(api, bob, file_id) for file_id in (old, new)] == [404, 200]
    again = made(create(api, ann, "Message", room=room, text="y", other=old))
    assert status(api, bob, old) == 200
    assert api.call("DELETE", f"/api/entities/Message/{again}", token=ann).status_code == 200
    assert [status(api, bob, file_id) for file_id in (old, new)] == [404, 200]
    # A cascade deletes the messages of the room.
    assert api.call("DELETE", f"/api/entities/Room/{room}", token=ADMIN_TOKEN).status_code == 200
    listed = api.call("GET", "/api/files?attached=false", token=ann).json["files"]
    assert {file["id"] for file in listed} == {old, new}


def test_a_field_takes_types_and_sizes_that_it_names(api: ApiStage, room: str) -> None:
    ann = api.user("ann")
    text, large = upload(api, ann, b"hello"), upload(api, ann, PNG + b"x" * 1_000)
    for file_id in (text, large):
        answer = create(api, ann, "Message", room=room, text="x", image=file_id)
        assert answer.status_code == 400 and code(answer) == "INVALID_VALUE", answer.text
        assert answer.json["error"]["field"] == "image"
        made(create(api, ann, "Message", room=room, text="x", other=file_id))


def test_a_refused_write_attaches_nothing(api: ApiStage, room: str) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    file_id = upload(api, ann)
    operations = [
        {"op": "insert", "entity": "Message",
         "data": {"room": room, "text": "x", "image": file_id}},
        {"op": "update", "entity": "Message", "id": "9" * 40, "data": {"text": "y"}},
    ]
    answer = api.call("POST", "/api/transact", operations, ann)
    assert "Row not found" in answer.text
    assert status(api, bob, file_id) == 404
    answer = create(api, ann, "Message", room="8" * 40, text="x", image=file_id)
    assert answer.status_code >= 400
    assert api.call("GET", "/api/files?attached=true", token=ann).json["files"] == []


def test_an_administrator_attaches_any_file(api: ApiStage, room: str) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    file_id = upload(api, ann)
    made(create(api, ADMIN_TOKEN, "Message", room=room, text="x", image=file_id))
    assert status(api, bob, file_id) == 200
