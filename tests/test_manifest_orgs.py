"""Entities of organisations: which a manifest gets, and who may write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pylon.manifest.model import Manifest, OrgConfig
from pylon.manifest.org_entities import org_entities
from pylon.manifest_loader import parse_manifest
from tests.support.api import ADMIN_TOKEN, serve_api

pytestmark = pytest.mark.stores

USER = {"name": "User", "fields": [{"name": "email", "type": "string", "optional": True}]}
NAMES = ["Org", "OrgMember", "OrgInvite"]


def parsed(auth: dict[str, Any], *entities: dict[str, Any], **more: Any) -> Manifest:
    document = {"name": "a", "entities": [USER, *entities], "auth": auth, **more}
    return parse_manifest(json.dumps(document), "test.json")


@pytest.mark.parametrize("auth", [{}, {"org": None}, {"org": {"disabled": True}}])
def test_an_app_that_asks_for_no_organisations_gets_no_entities(auth: dict[str, Any]) -> None:
    made = parsed(auth)
    assert list(made.by_name) == ["User"] and made.auth.org is None and org_entities(made) is None


def test_an_app_that_asks_gets_entities_and_policies_that_it_may_name() -> None:
    doc = {"name": "Doc", "fields": [{"name": "orgId", "type": "id(Org)"}]}
    rule = {"name": "p", "entity": "Doc",
            "allow": "exists(OrgMember, orgId == data.orgId, userId == auth.userId)"}
    made = parsed({"org": {}, "org_roles": ["editor"]}, doc, policies=[rule])
    assert list(made.by_name) == ["User", "Doc", *NAMES]
    assert made.auth.org == OrgConfig() and made.auth.org_roles == ("editor",)
    found = org_entities(made)
    assert found is not None and found.invite.hidden == {"tokenHash"}
    assert found.member.by_name["userId"].target == "User"
    assert {e["name"] for e in made.source["entities"]} == {"User", "Doc", *NAMES}


def test_entities_of_the_app_stay_as_they_are_and_may_have_other_names() -> None:
    team = {"name": "Team", "fields": [
        {"name": name, "type": "string", "optional": True}
        for name in ("name", "createdAt", "createdBy", "colour")
    ]}
    made = parsed({"org": {"entity": "Team", "member_entity": "Seat"}}, team)
    assert list(made.by_name) == ["User", "Team", "Seat", "OrgInvite"]
    assert made.by_name["Seat"].by_name["orgId"].target == "Team"
    assert made.by_name["Team"].read_only == {"name", "createdAt", "createdBy"}
    assert org_entities(made) is not None


def test_an_entity_without_the_fields_is_no_entity_of_organisations() -> None:
    assert org_entities(parsed({"org": {}}, {"name": "OrgMember", "fields": []})) is None


def test_nobody_but_administrators_writes_them(tmp_path: Path) -> None:
    members = [
        {"name": name, "entity": name, "allow": "true"} for name in NAMES
    ]
    document = {
        "name": "a", "entities": [USER], "auth": {"org": {}}, "policies": members,
    }
    values = {
        "Org": {"name": "x", "createdAt": "2026-01-01T00:00:00Z", "createdBy": "u"},
    }
    with serve_api(tmp_path, document) as server:
        token = server.user("u1")
        for name in NAMES:
            row = values.get(name, {"role": "owner"})
            target = f"/api/entities/{name}"
            for method, path, body in (
                ("POST", target, row), ("POST", target, {}),
                ("DELETE", f"{target}/{'a' * 40}", None),
                ("PATCH", f"{target}/{'a' * 40}", row),
                ("POST", "/api/transact", [{"op": "insert", "entity": name, "data": row}]),
            ):
                answer = server.call(method, path, body, token)
                assert "read-only" in answer.text and answer.status_code in (400, 403), path
        made = server.call("POST", "/api/entities/Org", values["Org"], ADMIN_TOKEN)
        assert made.status_code == 201, made.text
        assert server.call("GET", "/api/entities/Org", None, ADMIN_TOKEN).json["count"] == 1
