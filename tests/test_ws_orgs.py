"""Sockets of members of organisations: they end with the membership, and with the role."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from pylon.storage.auth_ops import Condition, DropRecords, PutRecord, SetRecords
from tests.support.stage import MANIFEST, Stage
from tests.support.websocket_client import WebSocketClient
from tests.test_ws_api_keys import say
from workers.hub.sessions import SESSION_ENDED

pytestmark = [pytest.mark.stores, pytest.mark.usefixtures("processes")]


def org_manifest() -> dict[str, Any]:
    manifest = copy.deepcopy(MANIFEST)
    manifest["auth"] = {"org": {}, "totp": {"required_roles": ["admin"]}}
    for policy in manifest["policies"]:
        if policy["entity"] == "Member":
            policy["allowRead"] = "auth.tenantId == data.ownerId && 'admin' in auth.roles"
    return manifest




def member(stage: Stage, org: str, user_id: str, role: str) -> str:
    """Make a user a member; the id of the row."""
    row_id = stage.app.ids.new()
    body = {"orgId": org, "userId": user_id, "role": role, "joinedAt": "2026-01-01T00:00:00Z"}
    stage.write(stage.database.insert("OrgMember", row_id, **body))
    return row_id


@pytest.mark.parametrize("end", ["removed", "role changed", "authenticator removed"])
def test_the_sockets_of_a_member_close_within_a_second(tmp_path: Any, end: str) -> None:
    stage = Stage(tmp_path / "orgs", org_manifest())
    try:
        org = stage.app.ids.new()
        stage.write(stage.database.insert(
            "Org", org, name="x", createdAt="2026-01-01T00:00:00Z", createdBy="u1"
        ))
        rows = {user: member(stage, org, user, "admin") for user in ("u1", "u2")}
        for user in rows:  # the role needs an authenticator
            stage.write(PutRecord("totp", {
                "user_id": user, "sealed": "s", "confirmed_at": 1, "created_at": 1,
            }))
        ws = stage.start("ws")
        clients = {}
        for user in rows:
            token, session_id = stage.login(user)
            of_session = [Condition("session_id", "=", session_id)]
            stage.write(SetRecords("sessions", of_session, {"tenant_id": org}))
            clients[user] = WebSocketClient(ws.port, token=token)
            say(clients[user], type="ping", id=1)
        stage.write(stage.insert("Member", text="theirs", ownerId=org))
        for client in clients.values():
            while client.read_json().get("data", {}).get("text") != "theirs":
                pass
        before_s = time.monotonic()
        if end == "removed":
            stage.write(stage.delete("OrgMember", rows["u1"]))
        elif end == "role changed":
            stage.write(stage.update("OrgMember", rows["u1"], role="member"))
        else:
            stage.write(DropRecords("totp", [Condition("user_id", "=", "u1")]))
        assert clients["u1"].read_close()[0] == SESSION_ENDED
        assert time.monotonic() - before_s < 1.5
        assert say(clients["u2"], type="ping", id=2)["type"] == "pong"
    finally:
        stage.close()
