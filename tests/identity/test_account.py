"""The end of an account, and its export: rows, records, sessions and organisations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from pylon import limits
from pylon.auth.transactions import carry_out
from pylon.auth_context import AuthContext
from pylon.bus.identity import CallFacts
from pylon.bus.messages import SessionRevoked
from pylon.errors import PylonError, RecordConflict
from pylon.query.predicate import TRUE
from pylon.query.rows import Query
from pylon.storage.auth_ops import Condition, PutRecord
from pylon.storage.auth_tables import TABLES
from pylon.storage.ops import InsertRow
from pylon.values import EntityCodec
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.authenticator import put_user
from tests.support.manifests import field, sign_in_app
from workers.identity.flows import account
from workers.identity.identity import Call
from workers.identity.sign_in import finish_sign_in

pytestmark = pytest.mark.stores

USERS = ("a" * 40, "b" * 40, "c" * 40)
ME, OTHER, THIRD = USERS


def app_of(**auth: Any) -> dict[str, Any]:
    app = sign_in_app()
    app["entities"].append({
        "name": "Note", "indexes": [], "crdt": False,
        "fields": [
            field("text", "string"), field("authorId", "id(User)", optional=True),
            field("reviewerId", "id(User)", optional=True),
            {**field("secret", "string", optional=True), "serverOnly": True},
        ],
    })
    app["policies"].append({
        "name": "notes", "entity": "Note",
        "allowRead": "auth.userId == data.authorId", "allowInsert": "true",
    })
    app["auth"] |= {
        "on_delete": {"Todo.authorId": "delete", "Note.authorId": "null",
                      "Note.reviewerId": "keep"}, **auth,
    }
    return app


@pytest.fixture
def people(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, app_of(org={})) as made:
        for number, user_id in enumerate(USERS):
            insert(made, "User", user_id, email=f"{number}@example.com")
        yield made


def insert(stage: ApiStage, entity: str, row_id: str = "", **fields: Any) -> str:
    row_id = row_id or stage.identity.app.ids.new()
    encoded = EntityCodec(stage.identity.app.manifest.by_name[entity]).insert(fields, row_id)
    stage.writer.submit(InsertRow(entity, row_id, encoded.values, encoded.row_json))
    return row_id


def rows(stage: ApiStage, entity: str) -> list[dict[str, Any]]:
    found = stage.identity.store.point(lambda reader: reader.rows(entity, Query(TRUE, 1_000)))
    return [orjson.loads(row) for row in found]


def fill_records(stage: ApiStage, user_id: str) -> None:
    """Put a record of the user into each table that has users."""
    samples = {"text": f"x{user_id}", "int": 5, "bytes": b"x", "bool": 1}
    for table in TABLES:
        if table.has_own_writes or "user_id" not in table.by_column:
            continue
        values = {
            column.name: samples[column.kind] for column in table.columns
            if column.name != "locked_at"  # a locked user has no sessions
        }
        if table.name == "audit":
            values["metadata"] = "{}"
        stage.writer.submit(PutRecord(table.name, {**values, "user_id": user_id}))
    for kind, subject in (("email", f"{user_id}@x.org"), ("oauth:google", user_id)):
        stage.writer.submit(PutRecord("identities", {
            "kind": kind, "subject": subject, "user_id": user_id, "created_at": 1,
        }))
    stage.writer.submit(PutRecord("tokens", {
        "hash": f"code{user_id}", "purpose": "magic", "email_key": f"{user_id}@x.org",
        "attempts": 0, "created_at": 1, "expires_at": 2**40,
    }))


def count_records(stage: ApiStage, user_id: str) -> dict[str, int]:
    where = [Condition("user_id", "=", user_id)]
    return {
        table.name: stage.identity.store.point(
            lambda reader, name=table.name: reader.count_records(name, where)
        )
        for table in TABLES if "user_id" in table.by_column
    }


def test_the_end_of_an_account_leaves_nothing_but_its_audit_record(people: ApiStage) -> None:
    for user_id in (ME, OTHER):
        fill_records(people, user_id)
        insert(people, "Todo", title="x", authorId=user_id)
        insert(people, "Note", text="x", authorId=user_id)
    before = count_records(people, OTHER)
    token, second = people.user(ME), people.user(ME)
    answer = people.call("DELETE", "/api/auth/account", token=token)
    assert answer.status_code == 200, answer.text
    assert answer.json == {
        "deleted": True, "revoked_sessions": 2, "revoked_api_keys": 1, "unlinked_accounts": 2,
    }
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert people.call("GET", "/api/auth/me", token=second).json["user_id"] is None
    assert {row["id"] for row in rows(people, "User")} == {OTHER, THIRD}
    assert [row["authorId"] for row in rows(people, "Todo")] == [OTHER]
    assert sorted(row["authorId"] or "" for row in rows(people, "Note")) == ["", OTHER]
    left = count_records(people, ME)
    assert left.pop("audit") >= 2 and set(left.values()) == {0}, left
    assert count_records(people, OTHER) == before
    newest = people.call(
        "GET", f"/api/admin/auth/audit?user_id={ME}&limit=1", token=ADMIN_TOKEN
    ).json[0]
    assert (newest["action"], newest["actor_id"]) == ("account_delete", ME)
    assert sum(isinstance(signal, SessionRevoked) for signal in people.signals) == 2
    codes = people.identity.store.point(lambda reader: reader.records("tokens", []))
    assert [code["hash"] for code in codes if code["user_id"] is None] == [f"code{OTHER}"]


def test_many_rows_go_in_steps(people: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACCOUNT_STEP_ROWS", 2)
    monkeypatch.setattr(limits, "ACCOUNT_STEPS", 3)
    for _ in range(9):
        insert(people, "Todo", title="x", authorId=ME)
    token = people.user(ME)
    answer = people.call("DELETE", "/api/auth/account", token=token)
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "UNAVAILABLE")
    assert len(rows(people, "Todo")) == 3
    assert people.call("GET", "/api/auth/me", token=token).json["user_id"] == ME
    assert people.call("DELETE", "/api/auth/account", token=token).status_code == 200
    assert rows(people, "Todo") == []


def test_rows_that_stay_by_the_manifest_refuse_the_end_where_references_are_checked(
    people: ApiStage,
) -> None:
    insert(people, "Note", text="x", reviewerId=ME)
    answer = people.call("DELETE", "/api/auth/account", token=people.user(ME))
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "REFERENCE_IN_USE")
    assert ME in {row["id"] for row in rows(people, "User")}


def test_an_account_ends_only_by_a_fresh_session(people: ApiStage) -> None:
    token = people.user(ME)
    people.clock.advance(people.identity.app.manifest.auth.reauth_s + 5)
    answer = people.call("DELETE", "/api/auth/account", token=token)
    assert (answer.status_code, answer.json["error"]["code"]) == (403, "REAUTH_REQUIRED")
    for sent in (None, ADMIN_TOKEN):
        answer = people.call("DELETE", "/api/auth/account", token=sent)
        assert (answer.status_code, answer.json["error"]["code"]) == (401, "AUTH_REQUIRED")


def org(stage: ApiStage, **roles: str) -> str:
    """Make an organisation. Args: `roles`: by user, ME as `me` and so on."""
    org_id = insert(stage, "Org", name="x", createdAt="2026-01-01T00:00:00Z", createdBy=ME)
    for name, role in roles.items():
        user_id = {"me": ME, "other": OTHER, "third": THIRD}[name]
        insert(stage, "OrgMember", orgId=org_id, userId=user_id, role=role,
               joinedAt="2026-01-01T00:00:00Z")
    return org_id


def test_the_only_owner_of_others_stays(people: ApiStage) -> None:
    org(people, me="owner", other="admin")
    insert(people, "Todo", title="x", authorId=ME)
    answer = people.call("DELETE", "/api/auth/account", token=people.user(ME))
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "LAST_OWNER")
    assert len(rows(people, "Todo")) == 1, "nothing was removed"


def test_owners_with_another_owner_and_members_leave(people: ApiStage) -> None:
    shared, alone = org(people, me="owner", other="owner", third="member"), org(people, me="owner")
    assert people.call("DELETE", "/api/auth/account", token=people.user(ME)).status_code == 200
    assert {row["id"] for row in rows(people, "Org")} == {shared} and alone != shared
    assert {row["userId"] for row in rows(people, "OrgMember")} == {OTHER, THIRD}
    assert people.call("DELETE", "/api/auth/account", token=people.user(THIRD)).status_code == 200
    answer = people.call("DELETE", "/api/auth/account", token=people.user(OTHER))
    assert answer.status_code == 200 and rows(people, "Org") == []


def test_of_two_owners_who_leave_at_once_one_stays(people: ApiStage) -> None:
    """The second transaction was planned while the first owner was there."""
    org(people, me="owner", other="owner", third="member")
    planned = account._leave_orgs(people.identity, OTHER)
    assert people.call("DELETE", "/api/auth/account", token=people.user(ME)).status_code == 200
    with pytest.raises(PylonError):
        carry_out(people.writer.submit, planned)
    answer = people.call("DELETE", "/api/auth/account", token=people.user(OTHER))
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "LAST_OWNER")
    assert [row["role"] for row in rows(people, "OrgMember")].count("owner") == 1


def test_the_export_has_the_account_without_secrets(people: ApiStage) -> None:
    fill_records(people, ME)
    insert(people, "Todo", title="mine", authorId=ME)
    insert(people, "Todo", title="not mine", authorId=OTHER)
    insert(people, "Note", text="mine", authorId=ME, secret="hidden-value")
    insert(people, "Note", text="about me, of others", authorId=OTHER, reviewerId=ME)
    token = people.user(ME)
    answer = people.call("GET", "/api/auth/account/export", token=token)
    assert answer.status_code == 200, answer.text
    body = answer.json
    assert body["user"]["email"] == "0@example.com" and "passwordHash" not in body["user"]
    assert {(i["kind"], i["subject"]) for i in body["identities"]} >= {("email", f"{ME}@x.org")}
    assert [row["title"] for row in body["rows"]["Todo.authorId"]] == ["mine"]
    assert [row["text"] for row in body["rows"]["Note.authorId"]] == ["mine"]
    assert body["rows"]["Note.reviewerId"] == [], "the policy hides it"
    assert len(body["sessions"]) == 1 and body["is_complete"] is True
    assert token not in answer.text and "hidden-value" not in answer.text
    for secret in ("hash", "sealed", "phc"):
        assert f'"{secret}"' not in answer.text
    assert people.call("GET", "/api/auth/audit?limit=1", token=token).json[0]["action"] == (
        "account_export"
    )


def test_a_large_export_says_that_it_is_not_complete(
    people: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        insert(people, "Todo", title="mine", authorId=ME)
    monkeypatch.setattr(limits, "ACCOUNT_EXPORT_ROWS", 2)
    body = people.call("GET", "/api/auth/account/export", token=people.user(ME)).json
    assert len(body["rows"]["Todo.authorId"]) == 2 and body["is_complete"] is False


def test_administrators_export_and_end_accounts(people: ApiStage) -> None:
    insert(people, "Note", text="about me, of others", authorId=OTHER, reviewerId=ME)
    path = f"/api/admin/auth/users/{ME}"
    body = people.call("GET", f"{path}/export", token=ADMIN_TOKEN).json
    assert [row["text"] for row in body["rows"]["Note.reviewerId"]] == ["about me, of others"]
    assert "secret" not in body["rows"]["Note.reviewerId"][0]
    people.call("DELETE", f"/api/entities/Note/{body['rows']['Note.reviewerId'][0]['id']}",
                token=ADMIN_TOKEN)
    token = people.user(ME)
    assert people.call("DELETE", path, token=people.user(OTHER)).status_code == 403
    answer = people.call("DELETE", path, token=ADMIN_TOKEN)
    assert answer.json["deleted"] is True and answer.json["revoked_sessions"] == 1
    assert "set-cookie" not in answer.headers
    assert people.call("GET", "/api/auth/me", token=token).json["user_id"] is None
    newest = people.call("GET", "/api/admin/auth/audit?limit=1", token=ADMIN_TOKEN).json[0]
    assert (newest["action"], newest["user_id"], newest["actor_id"]) == (
        "account_delete", ME, "__admin__",
    )
    for method, unknown in (("DELETE", path), ("GET", f"{path}/export")):
        assert people.call(method, unknown, token=ADMIN_TOKEN).status_code == 404


def test_a_sign_in_that_is_under_way_leaves_no_session_of_an_ended_account(
    people: ApiStage,
) -> None:
    put_user(people, ME)
    call = Call(b"", {}, CallFacts(AuthContext()))
    assert finish_sign_in(people.identity, call, ME, "password", []).status == 200
    assert people.call("DELETE", "/api/auth/account", token=people.user(ME)).status_code == 200
    with pytest.raises(RecordConflict):
        finish_sign_in(people.identity, call, ME, "password", [])
    assert count_records(people, ME)["sessions"] == 0
