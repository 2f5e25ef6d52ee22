"""The audit log over HTTP: one's own records, those of an organisation, and all."""

from __future__ import annotations

from typing import Any

import pytest

from pylon.auth.audit import audit_step
from pylon.auth_context import AuthContext
from pylon.bus.identity import CallFacts
from pylon.errors import Forbidden, NoActiveTenant
from tests.support.api import ADMIN_TOKEN, ApiStage
from workers.identity.flows.audit import list_of_tenant
from workers.identity.identity import Call

pytestmark = pytest.mark.stores


def record(stage: ApiStage, action: str, user_id: str, **facts: Any) -> None:
    app = stage.identity.app
    stage.writer.submit(audit_step(action, app.clock, app.random, user_id=user_id, **facts))
    stage.clock.advance(1)


def fill(stage: ApiStage) -> None:
    record(stage, "sign_up", "u1", ip="198.51.100.7", user_agent="Chrome on macOS")
    record(stage, "sign_in", "u2", tenant_id="acme")
    record(stage, "sign_in_failed", "u1", success=False, reason="INVALID_CREDENTIALS",
           metadata={"device": "unknown"})
    record(stage, "user_lock", "u1", actor_id="__admin__", tenant_id="acme")


def listed(stage: ApiStage, path: str, token: str) -> list[tuple[str, str]]:
    answer = stage.call("GET", path, token=token)
    assert answer.status_code == 200, answer.text
    return [(entry["action"], entry["user_id"]) for entry in answer.json]


def test_users_read_their_own_records_newest_first(stage: ApiStage) -> None:
    fill(stage)
    token = stage.user("u1")
    assert listed(stage, "/api/auth/audit", token) == [
        ("user_lock", "u1"), ("sign_in_failed", "u1"), ("sign_up", "u1"),
    ]
    assert listed(stage, "/api/auth/audit?limit=1", token) == [("user_lock", "u1")]
    assert listed(stage, "/api/auth/audit?limit=0", token) == []
    answer = stage.call("GET", "/api/auth/audit?limit=2", token=token)
    failed = answer.json[1]
    assert failed.pop("id").startswith("aud_") and failed.pop("created_at") > 0
    assert failed == {
        "action": "sign_in_failed", "user_id": "u1", "actor_id": None, "tenant_id": None,
        "ip": None, "user_agent": None, "success": False, "reason": "INVALID_CREDENTIALS",
        "metadata": {"device": "unknown"},
    }
    assert answer.json[0]["actor_id"] == "__admin__"


def test_administrators_read_all_records_and_select_some(stage: ApiStage) -> None:
    fill(stage)
    path = "/api/admin/auth/audit"
    everything = stage.call("GET", path, token=ADMIN_TOKEN).json
    assert [entry["action"] for entry in everything][-4:] == [
        "user_lock", "sign_in_failed", "sign_in", "sign_up",
    ]
    assert listed(stage, f"{path}?user_id=u2", ADMIN_TOKEN) == [("sign_in", "u2")]
    assert listed(stage, f"{path}?action=sign_up&user_id=u1", ADMIN_TOKEN) == [("sign_up", "u1")]
    assert listed(stage, f"{path}?tenant_id=acme&limit=1", ADMIN_TOKEN) == [("user_lock", "u1")]
    before = next(e["created_at"] for e in everything if e["action"] == "sign_in_failed")
    assert listed(stage, f"{path}?before={before}", ADMIN_TOKEN) == [
        ("sign_in", "u2"), ("sign_up", "u1"),
    ]


def test_callers_whom_the_audit_log_refuses(stage: ApiStage) -> None:
    token = stage.user("u1")
    for path, sent, status, code in (
        ("/api/auth/audit", None, 401, "AUTH_REQUIRED"),
        ("/api/auth/audit", ADMIN_TOKEN, 401, "AUTH_REQUIRED"),
        ("/api/auth/audit/tenant", token, 400, "NO_ACTIVE_TENANT"),
        ("/api/admin/auth/audit", token, 403, "FORBIDDEN"),
        ("/api/admin/auth/audit", None, 403, "FORBIDDEN"),
        ("/api/auth/audit?limit=-1", token, 400, "INVALID_QUERY"),
        ("/api/auth/audit?limit=1e3", token, 400, "INVALID_QUERY"),
    ):
        answer = stage.call("GET", path, token=sent)
        assert (answer.status_code, answer.json["error"]["code"]) == (status, code), path


def test_the_log_of_an_organisation_is_for_its_owners_and_admins(stage: ApiStage) -> None:
    fill(stage)

    def ask(**auth: Any) -> bytes:
        facts = CallFacts(auth=AuthContext("u2", **auth))
        return list_of_tenant(stage.identity, Call(b"", {}, facts)).body

    for role in ("owner", "admin"):
        body = ask(tenant_id="acme", roles=(role,))
        assert b"user_lock" in body and b"sign_up" not in body
    assert ask(tenant_id="other", roles=("owner",)) == b"[]"
    with pytest.raises(Forbidden):
        ask(tenant_id="acme", roles=("member",))
    with pytest.raises(NoActiveTenant):
        ask(roles=("owner",))
