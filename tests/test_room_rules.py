"""Policies of rooms: which rooms a pattern matches, which rules hold; requests over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon.auth_context import ADMIN, AuthContext
from pylon.bus.rooms_messages import JoinRoom
from pylon.manifest_loader import parse_manifest
from pylon.policy.room_rules import RoomAction, RoomRules
from pylon.policy.rules import compile_rules
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import private_rooms_app

pytestmark = pytest.mark.stores

ANN = AuthContext(user_id="ann", roles=("host",))


def rules_of(*policies: dict[str, str]) -> RoomRules:
    manifest = {
        "name": "x", "entities": [{"name": "Note", "fields": [{"name": "a", "type": "string"}]}],
        "policies": [{"name": str(at), **policy} for at, policy in enumerate(policies)],
    }
    return compile_rules(parse_manifest(json.dumps(manifest), "m.json")).rooms


def test_without_a_policy_of_rooms_every_room_is_open() -> None:
    rules = rules_of({"entity": "Note", "allowRead": "true"})
    assert not rules
    assert rules.may("join", ANN, "any")


@pytest.mark.parametrize(
    ("pattern", "name", "room_id"),
    [
        ("room:*", "room:7", "7"), ("room:*", "room:", ""), ("*", "x", "x"),
        ("room:*", "room:a:b", "a:b"), ("lobby", "lobby", None),
    ],
)
def test_a_rule_sees_the_name_and_what_the_star_stands_for(
    pattern: str, name: str, room_id: str | None
) -> None:
    is_id = "room.id == null" if room_id is None else f"room.id == '{room_id}'"
    rules = rules_of({"room": pattern, "allowJoin": f"room.name == '{name}' && {is_id}"})
    assert rules.may("join", ANN, name)


@pytest.mark.parametrize("name", ["room", "Room:7", "lobby", "", "xroom:7"])
def test_a_room_without_a_pattern_is_open_to_admins_only(name: str) -> None:
    rules = rules_of({"room": "room:*", "allow": "true"}, {"room": "lobbyx", "allow": "true"})
    assert not rules.may("join", ANN, name)
    assert rules.may("join", ADMIN, name)
    assert rules.may("join", ANN, "room:7")


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        ({"allow": "true"}, ["join", "broadcast", "presence"]),
        ({"allowJoin": "true"}, ["join", "broadcast", "presence"]),
        ({"allowJoin": "true", "allowBroadcast": "false"}, ["join", "presence"]),
        ({"allowJoin": "true", "allowPresence": "false"}, ["join", "broadcast"]),
        ({"allow": "true", "allowJoin": "false"}, []),
        ({"allowBroadcast": "true"}, ["broadcast"]),
    ],
)
def test_an_action_without_its_own_rule_has_that_of_join(
    policy: dict[str, str], allowed: list[RoomAction]
) -> None:
    rules = rules_of({"room": "r", **policy})
    actions: list[RoomAction] = ["join", "broadcast", "presence"]
    assert [action for action in actions if rules.may(action, ANN, "r")] == allowed


def test_all_policies_that_match_must_pass() -> None:
    rules = rules_of(
        {"room": "*", "allowJoin": "auth.userId != null"},
        {"room": "staff:*", "allowJoin": "auth.hasRole('staff')"},
        {"room": "staff:*", "allowBroadcast": "auth.hasRole('host')"},
    )
    staff = AuthContext(user_id="bob", roles=("staff",))
    assert rules.may("join", ANN, "tea")
    assert not rules.may("join", ANN, "staff:1")
    assert rules.may("join", staff, "staff:1")
    assert not rules.may("broadcast", staff, "staff:1"), "the third policy has a rule of it"
    assert not rules.may("join", AuthContext(), "tea")


# --- Over HTTP ---------------------------------------------------------------------------


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, private_rooms_app()) as server:
        yield server


def post(api: ApiStage, verb: str, token: str, room: str, **body: Any) -> tuple[int, Any]:
    answer = api.call("POST", f"/api/rooms/{verb}", {"room": room, **body}, token)
    return answer.status_code, answer.json.get("error", {}).get("code", answer.json)


def add_member(api: ApiStage, room_id: str, user_id: str, role: str = "") -> str:
    body = {"roomId": room_id, "userId": user_id, "role": role}
    answer = api.call("POST", "/api/entities/Member", body, ADMIN_TOKEN)
    assert answer.status_code == 201, answer.text
    row_id: str = answer.json["id"]
    return row_id


def test_only_those_whom_the_rules_allow_join_and_read(api: ApiStage) -> None:
    ann, eve = api.user("ann"), api.user("eve")
    add_member(api, "7", "ann")
    assert post(api, "join", ann, "room:7")[0] == 200
    assert post(api, "join", eve, "room:7") == (403, "POLICY_DENIED")
    assert post(api, "join", ann, "room:8") == (403, "POLICY_DENIED")
    assert post(api, "join", ann, "lobby") == (403, "POLICY_DENIED"), "no pattern matches it"
    assert post(api, "join", ADMIN_TOKEN, "room:8", user_id="eve")[0] == 200
    for token, status in ((ann, 200), (eve, 403), (ADMIN_TOKEN, 200)):
        assert api.call("GET", "/api/rooms/room:7", token=token).status_code == status
    listed = {
        name: [room["name"] for room in api.call("GET", "/api/rooms", token=token).json]
        for name, token in (("ann", ann), ("eve", eve), ("admin", ADMIN_TOKEN))
    }
    assert listed == {"ann": ["room:7"], "eve": [], "admin": ["room:7", "room:8"]}


def test_a_broadcast_has_a_rule_of_its_own(api: ApiStage) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    add_member(api, "7", "ann", "host")
    add_member(api, "7", "bob")
    for token in (ann, bob):
        assert post(api, "join", token, "room:7")[0] == 200
    said = {"topic": "t", "data": 1}
    assert post(api, "broadcast", ann, "room:7", **said) == (200, {"broadcasted": True})
    assert post(api, "broadcast", bob, "room:7", **said) == (403, "POLICY_DENIED")
    assert post(api, "presence", bob, "room:7", data=1) == (200, {"updated": True})


def test_a_member_who_may_no_longer_join_leaves_at_the_next_request(api: ApiStage) -> None:
    bob = api.user("bob")
    row_id = add_member(api, "7", "bob")
    assert post(api, "join", bob, "room:7")[0] == 200
    api.call("DELETE", f"/api/entities/Member/{row_id}", token=ADMIN_TOKEN)
    assert post(api, "presence", bob, "room:7") == (403, "POLICY_DENIED")
    answer = api.call("GET", "/api/rooms/room:7", token=ADMIN_TOKEN)
    assert answer.json["members"] == []
    api.services.realtime.rooms.submit(JoinRoom("room:7", "bob", b"null"))
    assert api.call("GET", "/api/rooms/room:7", token=bob).status_code == 403
    assert api.call("GET", "/api/rooms/room:7", token=ADMIN_TOKEN).json["members"] == []
    assert post(api, "leave", bob, "room:7")[0] == 200, "leaving is free to all"
