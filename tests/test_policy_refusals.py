"""POLICY_DENIED: in dev mode it names the rule and its place, and the comparison that failed with
both values; in production it names nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon.auth_context import ANONYMOUS
from pylon.manifest_loader import load_manifest
from pylon.policy.rules import compile_rules
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import field, private_rooms_app

pytestmark = pytest.mark.stores

DEV = {"PYLON_DEV_MODE": "true"}


def app() -> dict[str, Any]:
    rooms = private_rooms_app()
    rooms["entities"] += [{
        "name": "Note", "fields": [field("ownerId", "string"), field("roomId", "string")],
    }]
    rooms["actions"] = [{"name": "run", "input": [field("n", "int")]}]
    rooms["policies"] += [
        {
            "name": "notes", "entity": "Note", "allowRead": "true",
            "allowInsert": "exists(Member, roomId == data.roomId, userId == auth.userId)",
            "allowUpdate": "data.ownerId == auth.userId",
            "allowDelete": "auth.userId != null && (auth.hasRole('mod') || false)",
        },
        {"name": "runs", "action": "run", "allow": "input.n > 3"},
        {
            "name": "members", "entity": "Member", "allowRead": "auth.isAdmin",
            "allowInsert": "data.userId == auth.userId",
        },
    ]
    return rooms


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, app(), DEV) as server:
        yield server


def refused(api: ApiStage, method: str, path: str, token: str, body: Any = None) -> Any:
    answer = api.call(method, path, body, token)
    assert answer.status_code == 403, answer.text
    assert answer.json["error"]["code"] == "POLICY_DENIED"
    assert answer.json["error"]["message"] == "Access denied by policy"
    return answer.json["error"]


def test_each_action_names_its_rule_and_the_values(dev: ApiStage) -> None:
    ann = dev.user("ann")
    note = {"ownerId": "bob", "roomId": "7"}
    made = dev.call("POST", "/api/entities/Note", note, ADMIN_TOKEN).json["id"]
    error = refused(dev, "POST", "/api/entities/Note", ann, note)
    rule = "exists(Member, roomId == data.roomId, userId == auth.userId)"
    assert {name: error[name] for name in ("policy", "rule", "place", "expression", "failed")} == {
        "policy": "notes", "rule": "allowInsert", "place": "test.json:1", "expression": rule,
        "failed": [f'{rule} is false: data.roomId is "7", auth.userId is "ann"'],
    }
    assert error["hint"].startswith('policy "notes" (test.json:1): allowInsert denies it, because')
    error = refused(dev, "POST", "/api/entities/Member", ann, {"roomId": "7", "userId": "bob"})
    assert error["failed"] == [
        'data.userId == auth.userId is false: data.userId is "bob", auth.userId is "ann"'
    ]
    error = refused(dev, "PATCH", f"/api/entities/Note/{made}", ann, {"ownerId": "ann"})
    assert "of the row before the update" in error["hint"]
    assert error["failed"] == [
        'data.ownerId == auth.userId is false: data.ownerId is "bob", auth.userId is "ann"'
    ]
    error = refused(dev, "DELETE", f"/api/entities/Note/{made}", ann)
    assert error["failed"] == ["'mod' in auth.roles is false: auth.roles is []", "false is false"]
    error = refused(dev, "GET", "/api/entities/Member", ann)
    assert (error["policy"], error["rule"], error["failed"]) == (
        "members", "allowRead", ["auth.isAdmin is false"],
    )
    error = refused(dev, "POST", "/api/actions/run", ann, {"n": 2})
    assert (error["policy"], error["failed"]) == ("runs", ["input.n > 3 is false: input.n is 2"])


def test_rooms_name_their_rule_or_that_there_is_none(dev: ApiStage) -> None:
    ann = dev.user("ann")
    error = refused(dev, "POST", "/api/rooms/join", ann, {"room": "room:7"})
    assert (error["policy"], error["rule"]) == ("members_only", "allowJoin")
    assert 'room.id is "7", auth.userId is "ann"' in error["failed"][0]
    error = refused(dev, "POST", "/api/rooms/join", ann, {"room": "lobby"})
    assert 'No policy of rooms has a rule of join for "lobby"' in error["hint"]
    assert json.loads(error["hint"].split(": ", 1)[1])["room"] == "*"


def test_production_names_nothing(tmp_path: Path) -> None:
    with serve_api(tmp_path, app()) as api:
        ann = api.user("ann")
        note = {"ownerId": "bob", "roomId": "7"}
        made = api.call("POST", "/api/entities/Note", note, ADMIN_TOKEN).json["id"]
        for method, path, body in (
            ("POST", "/api/entities/Note", note),
            ("PATCH", f"/api/entities/Note/{made}", {"ownerId": "ann"}),
            ("DELETE", f"/api/entities/Note/{made}", None),
            ("GET", "/api/entities/Member", None),
            ("POST", "/api/actions/run", {"n": 2}),
            ("POST", "/api/rooms/join", {"room": "room:7"}),
            ("POST", "/api/rooms/join", {"room": "lobby"}),
        ):
            error = refused(api, method, path, ann, body)
            assert error.keys() <= {"code", "message", "hint"}
            assert error.get("hint", "").startswith(("Check your auth token", ""))
            assert "bob" not in json.dumps(error) and "Member" not in json.dumps(error)


def test_the_place_of_a_rule_is_its_line_also_in_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "copy.json"
    path.write_text(json.dumps(app(), indent=2))
    rules = compile_rules(load_manifest(path, name="pylon.manifest.json"))
    row = {"id": "a", "ownerId": "bob", "roomId": "7"}
    (found,) = rules.for_entity("Note").explain("delete", ANONYMOUS, row)
    file, _, line = found.rule.place.rpartition(":")
    assert file == "pylon.manifest.json"
    assert '"allowDelete"' in path.read_text().splitlines()[int(line) - 1]
    manifest = load_manifest(path)
    assert manifest.text == path.read_text()
