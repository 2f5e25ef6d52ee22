"""Organisations over HTTP: made, joined, managed and left (identity.md §1.9, attacks 18 to 20)."""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from pylon import limits
from pylon.bus.messages import SessionRevoked
from pylon.manifest.diagnostics import ManifestInvalid
from pylon.storage.auth_ops import Condition, PutRecord
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.authenticator import enroll, now_s
from tests.support.manifests import sign_in_app

pytestmark = pytest.mark.stores

ORGS = "/api/auth/orgs"
SESSION = "members_session"  # the cookie


def org_app() -> dict[str, Any]:
    """The app of sign-in with organisations, and documents that belong to them."""
    app = copy.deepcopy(sign_in_app())
    app["auth"]["org"] = {}
    app["auth"]["org_roles"] = ["editor"]
    app["entities"].append({
        "name": "Doc", "crdt": False, "indexes": [],
        "fields": [
            {"name": "text", "type": "string"}, {"name": "orgId", "type": "string"},
        ],
    })
    app["policies"].append({
        "name": "docs", "entity": "Doc", "allowRead": "auth.tenantId == data.orgId",
        "allowWrite": "auth.tenantId == data.orgId && 'editor' in auth.roles",
    })
    return app


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    environ = {"PYLON_DEV_MODE": "true", "PYLON_EMAIL_PROVIDER": "console"}
    with serve_api(tmp_path, org_app(), environ) as made:
        yield made


class Person:
    """A user with a row, an address and a session."""

    def __init__(self, stage: ApiStage, name: str) -> None:
        self.stage = stage
        self.email = f"{name}@example.com"
        row = {"email": self.email, "displayName": name}
        self.id: str = stage.call("POST", "/api/entities/User", row, ADMIN_TOKEN).json["id"]
        self.token = stage.user(self.id)

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        """Call a route; its body, or its error code."""
        answer = self.stage.call(method, path, body, self.token)
        return answer.json if answer.status_code < 400 else answer.json["error"]["code"]

    def found(self, name: str = "Example") -> str:
        """Make an organisation."""
        made: str = self("POST", ORGS, {"name": name})["id"]
        return made

    def invite(self, org: str, person: Person, role: str = "member") -> str:
        """Invite somebody; the token of the mail."""
        body = {"email": person.email, "role": role}
        token: str = self("POST", f"{ORGS}/{org}/invites", body)["token"]
        return token

    def join(self, token: str) -> Any:
        return self("POST", f"/api/auth/invites/{token}/accept")

    def adds(self, org: str, person: Person, role: str = "member") -> None:
        assert person.join(self.invite(org, person, role)) == {"org_id": org, "role": role}

    def me(self) -> dict[str, Any]:
        self.stage.clock.advance(limits.SESSION_CACHE_S + 0.01)
        found: dict[str, Any] = self("GET", "/api/auth/me")
        return found


@pytest.fixture
def people(stage: ApiStage) -> tuple[Person, Person, Person]:
    return Person(stage, "ann"), Person(stage, "bob"), Person(stage, "cid")


def test_the_life_of_an_organisation(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    made = ann("POST", ORGS, {"name": " Example "})
    org = made["id"]
    assert made == {"id": org, "name": "Example", "created_at": made["created_at"], "role": "owner"}
    assert ann("GET", ORGS) == [made] and ann("GET", f"{ORGS}/{org}") == made
    assert ann("PATCH", f"{ORGS}/{org}", {"name": "Other"}) == {"id": org, "name": "Other"}
    ann.adds(org, bob, "editor")
    members = ann("GET", f"{ORGS}/{org}/members")
    assert {(m["user_id"], m["role"], m["email"], m["name"]) for m in members} == {
        (ann.id, "owner", ann.email, "ann"), (bob.id, "editor", bob.email, "bob"),
    }
    member = f"{ORGS}/{org}/members/{bob.id}"
    assert ann("PUT", member, {"role": "admin"}) == {"role": "admin", "updated": True}
    assert bob("GET", f"{ORGS}/{org}")["role"] == "admin"
    assert bob("DELETE", member) == {"removed": True}
    assert bob("GET", f"{ORGS}/{org}") == "ORG_NOT_FOUND" and bob("GET", ORGS) == []
    assert ann("DELETE", f"{ORGS}/{org}") == {"deleted": True}
    assert ann("GET", f"{ORGS}/{org}") == "ORG_NOT_FOUND"


def test_members_read_the_rows_and_nobody_else(people: tuple[Person, Person, Person]) -> None:
    ann, bob, cid = people
    org = ann.found()
    token = ann.invite(org, cid)
    ann.adds(org, bob)
    for person, orgs, members, invites in ((ann, 1, 2, 2), (bob, 1, 2, 0), (cid, 0, 0, 0)):
        counts = [
            person("GET", f"/api/entities/{name}")["count"]
            for name in ("Org", "OrgMember", "OrgInvite")
        ]
        assert counts == [orgs, members, invites]
    row = {"orgId": org, "userId": cid.id, "role": "owner", "joinedAt": "2026-01-01T00:00:00Z"}
    assert cid("POST", "/api/entities/OrgMember", row) == "READONLY_FIELD"
    (own,) = [m for m in bob("GET", "/api/entities/OrgMember")["data"] if m["userId"] == bob.id]
    assert bob("PATCH", f"/api/entities/OrgMember/{own['id']}", {"role": "owner"}) == (
        "READONLY_FIELD"
    )
    invites = ann("GET", "/api/entities/OrgInvite")["data"]
    assert all("tokenHash" not in row for row in invites) and token not in str(invites)


# Method, path, body; the roles that may, and what the others get.
MATRIX: list[tuple[str, str, Any, set[str]]] = [
    ("GET", "", None, {"owner", "admin", "editor", "member"}),
    ("PATCH", "", {"name": "x"}, {"owner", "admin"}),
    ("GET", "/members", None, {"owner", "admin", "editor", "member"}),
    ("PUT", "/members/{other}", {"role": "editor"}, {"owner", "admin"}),
    ("PUT", "/members/{other}", {"role": "owner"}, {"owner"}),
    ("PUT", "/members/{owner}", {"role": "member"}, {"owner"}),
    ("DELETE", "/members/{other}", None, {"owner", "admin"}),
    ("DELETE", "/members/{owner}", None, {"owner"}),
    ("GET", "/invites", None, {"owner", "admin"}),
    ("POST", "/invites", {"email": "d@example.com"}, {"owner", "admin"}),
    ("POST", "/invites", {"email": "d@example.com", "role": "owner"}, {"owner"}),
    ("DELETE", "/invites/{invite}", None, {"owner", "admin"}),
    ("DELETE", "", None, {"owner"}),
]


@pytest.mark.parametrize("case", MATRIX, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_attack_18_each_route_as_each_role(
    stage: ApiStage, case: tuple[str, str, Any, set[str]]
) -> None:
    method, path, body, may = case
    for role in ("owner", "admin", "editor", "member", "removed", "stranger", "guest"):
        ann, bob, other = (Person(stage, f"{role}-{name}") for name in ("ann", "bob", "other"))
        org = ann.found()
        ann.adds(org, other)
        invite = ann("POST", f"{ORGS}/{org}/invites", {"email": "e@example.com"})["id"]
        if role not in ("stranger", "guest"):
            ann.adds(org, bob, "member" if role == "removed" else role)
        if role == "removed":
            ann("DELETE", f"{ORGS}/{org}/members/{bob.id}")
        if role == "guest":
            bob.token = stage.guest()
        target = path.format(other=other.id, owner=ann.id, invite=invite)
        found = bob(method, f"{ORGS}/{org}{target}", body)
        if role in may:
            assert not isinstance(found, str), (role, found)
        elif role == "guest":
            assert found == "AUTH_REQUIRED"
        else:
            assert found == ("ORG_NOT_FOUND" if role in ("removed", "stranger") else "FORBIDDEN")
        anonymous = stage.call(method, f"{ORGS}/{org}{target}", body)
        assert anonymous.status_code == 401
        if role == "owner" and method == "DELETE" and not path:
            continue
        assert stage.call(method, f"{ORGS}/{'f' * 40}{target}", body, ann.token).json["error"][
            "code"
        ] == "ORG_NOT_FOUND"


def test_attack_19_the_last_owner_stays(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    org = ann.found()
    assert ann("DELETE", f"{ORGS}/{org}/members/{ann.id}") == "LAST_OWNER"
    assert ann("PUT", f"{ORGS}/{org}/members/{ann.id}", {"role": "member"}) == "LAST_OWNER"
    ann.adds(org, bob)
    ann("PUT", f"{ORGS}/{org}/members/{bob.id}", {"role": "owner"})
    assert ann("DELETE", f"{ORGS}/{org}/members/{ann.id}") == {"removed": True}
    assert bob("DELETE", f"{ORGS}/{org}/members/{bob.id}") == "LAST_OWNER"


@pytest.mark.parametrize("how", ["leave", "demote"])
def test_attack_19_two_owners_that_go_at_once_leave_one(
    people: tuple[Person, Person, Person], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob, _ = people
    org = ann.found()
    ann.adds(org, bob, "owner")
    writer, stage = ann.stage.writer, ann.stage
    submit = writer.submit
    is_first = True

    def go(person: Person) -> Any:
        path = f"{ORGS}/{org}/members/{person.id}"
        return person("DELETE", path) if how == "leave" else person("PUT", path, {"role": "member"})

    def overtaken(op: Any) -> Any:
        """Bob goes when Ann has read everything, and has not written yet."""
        nonlocal is_first
        if is_first and type(op).__name__ == "Transact":
            is_first = False
            assert not isinstance(go(bob), str)
        return submit(op)

    monkeypatch.setattr(type(writer), "submit", lambda self, op: overtaken(op))
    assert go(ann) == "LAST_OWNER"
    monkeypatch.undo()
    assert ann("GET", f"{ORGS}/{org}")["role"] == "owner"
    assert stage is ann.stage


def test_attack_20_invites_are_for_one_account_once_and_in_time(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, cid = people
    org = ann.found()
    token = ann.invite(org, bob)
    assert cid.join(token) == "WRONG_EMAIL" and ann.join(token) == "WRONG_EMAIL"
    assert ann.stage.call("POST", f"/api/auth/invites/{token}/accept").status_code == 401
    replaced, token = token, ann.invite(org, bob)
    assert bob.join(replaced) == "INVITE_NOT_FOUND"
    (waiting,) = ann("GET", f"{ORGS}/{org}/invites")
    assert waiting["token_prefix"] == token[:8] and token not in str(waiting)
    assert bob.join(token) == {"org_id": org, "role": "member"}
    assert bob.join(token) == "ALREADY_ACCEPTED"
    assert bob.join(ann.invite(org, bob)) == "ALREADY_MEMBER"
    token = ann.invite(org, cid)
    invite = next(i for i in ann("GET", f"{ORGS}/{org}/invites") if i["email"] == cid.email)["id"]
    assert ann("DELETE", f"{ORGS}/{org}/invites/{invite}") == {"revoked": True}
    assert ann("DELETE", f"{ORGS}/{org}/invites/{invite}") == "NOT_FOUND"
    assert cid.join(token) == "INVITE_NOT_FOUND"
    token = ann.invite(org, cid)
    ann.stage.clock.advance(7 * 86_400)
    assert cid.join(token) == "INVITE_EXPIRED"
    for nonsense in ("x", "a" * 32, "%00", token[:-1]):
        assert cid.join(nonsense) in ("INVITE_NOT_FOUND", "NOT_FOUND", "INVALID_REQUEST")


def test_an_invite_of_a_deleted_organisation_is_gone(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    org = ann.found()
    token = ann.invite(org, bob)
    ann("DELETE", f"{ORGS}/{org}")
    assert bob.join(token) == "INVITE_NOT_FOUND"


def test_the_selected_organisation_is_the_tenant_with_the_role_of_the_moment(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    org = ann.found()
    ann.adds(org, bob, "editor")
    assert bob("POST", "/api/auth/select-org", {"orgId": org}) == {"tenantId": org}
    assert [type(s) for s in bob.stage.signals] == [SessionRevoked]
    me = bob.me()
    assert (me["tenant_id"], me["roles"]) == (org, ["editor"])
    doc = {"text": "x", "orgId": org}
    assert "id" in bob("POST", "/api/entities/Doc", doc)
    ann("PUT", f"{ORGS}/{org}/members/{bob.id}", {"role": "member"})
    assert bob.me()["roles"] == ["member"]
    assert bob("POST", "/api/entities/Doc", doc) == "POLICY_DENIED"
    assert bob("GET", "/api/entities/Doc")["count"] == 1
    ann("DELETE", f"{ORGS}/{org}/members/{bob.id}")
    assert "tenant_id" not in bob.me() and bob.me()["roles"] == []
    assert bob("GET", "/api/entities/Doc")["count"] == 0
    sessions = ann.stage.identity.store.point(
        lambda reader: reader.records("sessions", [Condition("user_id", "=", bob.id)])
    )
    assert [session["tenant_id"] for session in sessions] == [None]


def test_a_role_that_needs_an_authenticator_counts_once_its_user_has_one(tmp_path: Path) -> None:
    app = org_app()
    app["auth"]["totp"] = {"required_roles": ["owner", "editor"]}
    environ = {
        "PYLON_DEV_MODE": "true", "PYLON_EMAIL_PROVIDER": "console",
        "PYLON_JWT_SECRET": "0123456789abcdef" * 2,
    }
    with serve_api(tmp_path, app, environ) as stage:
        ann, bob = Person(stage, "ann"), Person(stage, "bob")
        org = ann.found()
        assert ann("GET", f"{ORGS}/{org}/members") == "TOTP_SETUP_REQUIRED"
        assert ann("POST", f"{ORGS}/{org}/invites", {"email": bob.email, "role": "editor"}) == (
            "TOTP_SETUP_REQUIRED"
        )
        _, ann.token = enroll(stage, ann.token)
        ann.adds(org, bob, "editor")
        bob("POST", "/api/auth/select-org", {"orgId": org})
        me = bob.me()
        assert (me["tenant_id"], me["roles"], me["totp_setup_required"]) == (org, [], True)
        doc = {"text": "x", "orgId": org}
        assert bob("POST", "/api/entities/Doc", doc) == "POLICY_DENIED"
        jwt = bob("POST", "/api/auth/jwt")["token"]
        refused = stage.call("POST", "/api/entities/Doc", doc, jwt)
        assert refused.json["error"]["code"] == "POLICY_DENIED"
        authenticator, bob.token = enroll(stage, bob.token)
        assert bob.me()["roles"] == ["editor"] and "totp_setup_required" not in bob.me()
        assert "id" in bob("POST", "/api/entities/Doc", doc)
        assert stage.call("POST", "/api/entities/Doc", doc, jwt).status_code == 201
        code = authenticator.code(now_s(stage))
        assert bob("POST", "/api/auth/totp/disable", {"code": code}) == {"disabled": True}
        assert bob.me()["roles"] == [] and bob.me()["totp_setup_required"]


def test_attack_45_a_switch_shows_no_row_of_the_old_tenant(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    first, second = ann.found("first"), ann.found("second")
    for org in (first, second):
        row = {"text": org, "orgId": org}
        ann.stage.call("POST", "/api/entities/Doc", row, ADMIN_TOKEN)
    for org in (first, second, None):
        assert ann("POST", "/api/auth/select-org", {"orgId": org}) == {"tenantId": org}
        ann.me()
        seen = [row["text"] for row in ann("GET", "/api/entities/Doc")["data"]]
        assert seen == ([org] if org else [])
        pulled = ann("GET", "/api/sync/pull?since=0")["changes"]
        assert [c["data"]["text"] for c in pulled if c["entity"] == "Doc"] == seen
    assert bob("POST", "/api/auth/select-org", {"orgId": first}) == "NOT_A_MEMBER"
    for body in ({}, {"orgId": 7}, {"orgId": []}):
        assert ann("POST", "/api/auth/select-org", body) == "MISSING_ORG_ID"


@pytest.mark.parametrize(("path", "body", "code"), [
    (ORGS, {}, "MISSING_NAME"), (ORGS, {"name": " "}, "MISSING_NAME"),
    (ORGS, {"name": "x" * 101}, "INVALID_NAME"), (ORGS, {"name": "a\nb"}, "INVALID_NAME"),
    (f"{ORGS}/ORG/invites", {"email": "nope"}, "INVALID_EMAIL"),
    (f"{ORGS}/ORG/invites", {"email": "a@example.com\r\nBcc: b@example.com"}, "INVALID_EMAIL"),
    (f"{ORGS}/ORG/invites", {"email": "a@example.com", "role": "boss"}, "BAD_ROLE"),
])
def test_bodies_that_are_refused(
    people: tuple[Person, Person, Person], path: str, body: Any, code: str
) -> None:
    ann = people[0]
    assert ann("POST", path.replace("ORG", ann.found()), body) == code


def test_an_app_without_organisations_answers_501(tmp_path: Path) -> None:
    with serve_api(tmp_path, sign_in_app()) as server:
        answer = server.call("POST", ORGS, {"name": "x"}, server.user("u1"))
        assert (answer.status_code, answer.json["error"]["code"]) == (501, "ORG_NOT_CONFIGURED")


def test_attack_21_an_invite_ends_what_others_registered_in_advance(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    key = bob("POST", "/api/auth/api-keys", {})["key"]
    bob.stage.writer.submit(PutRecord("users", {"user_id": bob.id, "created_at": 1}))
    bob.stage.writer.submit(PutRecord("identities", {
        "kind": "email", "subject": bob.email, "user_id": bob.id, "created_at": 1,
    }))
    org = ann.found()
    token = ann.invite(org, bob)
    old = bob.token
    answer = bob.join(token)
    assert (answer["org_id"], answer["role"], answer["credentials_dropped"]) == (
        org, "member", True,
    )
    bob.stage.clock.advance(limits.SESSION_CACHE_S + 0.01)
    assert bob.stage.call("GET", "/api/auth/me", None, old).json["user_id"] is None
    assert bob.stage.call("GET", "/api/auth/me", None, key).status_code == 401
    bob.token = answer["token"]
    assert bob.me()["user_id"] == bob.id and bob("GET", f"{ORGS}/{org}")["role"] == "member"


# --- The link of the mail ------------------------------------------------------------------------


class Browser:
    """A browser with the session cookie of a person, which shows the page of an invite."""

    def __init__(self, person: Person, token: str) -> None:
        self.person = person
        self.cookie = f"{SESSION}={person.token}"
        path = f"/api/auth/invites/{token}/accept"
        self.page = person.stage.client.simulate_get(path, headers={"Cookie": self.cookie})
        made = re.findall(r"members_ml=[0-9a-f]+", self.page.headers.get("set-cookie", ""))
        self.cookie = "; ".join([self.cookie, *made])
        self.fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', self.page.text))

    def send(self, **fields: str) -> Any:
        """Send the form of the page, as a browser does from a page without a referrer."""
        return self.person.stage.client.simulate_post(
            "/api/auth/invites/accept", body=urlencode({**self.fields, **fields}),
            headers={"Cookie": self.cookie, "Origin": "null",
                     "Content-Type": "application/x-www-form-urlencoded"},
        )


def test_the_link_of_a_mail_asks_to_sign_in_first(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    token = ann.invite(ann.found(), bob)
    path = f"/api/auth/invites/{token}/accept"
    answer = ann.stage.client.simulate_get(path)
    assert answer.status_code == 302
    assert answer.headers["location"] == f"/auth/?next={quote(path, safe='')}"
    page = ann.stage.client.simulate_get(answer.headers["location"])
    assert page.status_code == 200 and path in html.unescape(page.text)


def test_the_page_of_a_link_joins_by_its_button(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    org = ann.found("A <b>")
    browser = Browser(bob, ann.invite(org, bob, "editor"))
    assert browser.page.status_code == 200 and "A &lt;b&gt;" in browser.page.text
    assert bob("GET", ORGS) == [], "opening the link joins nothing"
    answer = browser.send()
    assert (answer.status_code, answer.headers["location"]) == (302, "/")
    cookie = answer.headers.get("set-cookie", "")
    if cookie:  # the link has proved the mailbox, so there is a new session
        bob.token = cookie.partition(";")[0].partition("=")[2]
    assert [found["role"] for found in bob("GET", ORGS)] == ["editor"]


def test_a_form_that_the_page_has_not_made_joins_nothing(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, cid = people
    token = ann.invite(ann.found(), bob)
    browser = Browser(bob, token)
    assert browser.send(nonce="").status_code == 403
    assert browser.send(nonce="0" * 64).status_code == 403
    assert bob("GET", ORGS) == []
    assert Browser(cid, token).send().status_code == 400, "the invite of another address"
    unknown = bob.stage.client.simulate_get(
        "/api/auth/invites/unknown/accept", headers={"Cookie": f"{SESSION}={bob.token}"}
    )
    assert unknown.status_code == 400 and "no such invite" in unknown.text


# --- The rows of an organisation that ends ---------------------------------------------------


def rows_app() -> dict[str, Any]:
    """Documents that go with their organisation, notes that lose it, and logs that stay."""
    app = org_app()
    doc = app["entities"][-1]
    for name in ("Note", "Log"):
        app["entities"].append({**copy.deepcopy(doc), "name": name})
        app["entities"][-1]["fields"][1]["optional"] = True
    app["auth"]["org"]["on_delete"] = {
        "Doc.orgId": "delete", "Note.orgId": "null", "Log.orgId": "keep",
    }
    return app


def org_of_rows(stage: ApiStage, entity: str) -> list[str | None]:
    rows = stage.call("GET", f"/api/entities/{entity}", token=ADMIN_TOKEN).json["data"]
    return sorted((row.get("orgId") for row in rows), key=str)


@pytest.mark.parametrize("by", ["owner", "account"])
def test_the_rows_of_an_organisation_end_as_the_manifest_says(tmp_path: Path, by: str) -> None:
    """A deleted organisation, and one that ends with the account of its only member."""
    with serve_api(tmp_path, rows_app()) as stage:
        ann, bob = Person(stage, "ann"), Person(stage, "bob")
        org, other = ann.found(), bob.found()
        for entity in ("Doc", "Note", "Log"):
            for of_org in (org, org, other):
                body = {"text": "x", "orgId": of_org}
                path = f"/api/entities/{entity}"
                assert stage.call("POST", path, body, ADMIN_TOKEN).status_code == 201
        assert bob("DELETE", f"{ORGS}/{org}") == "ORG_NOT_FOUND"
        assert org_of_rows(stage, "Doc") == sorted([org, org, other])
        path = f"{ORGS}/{org}" if by == "owner" else "/api/auth/account"
        assert stage.call("DELETE", path, token=ann.token).status_code == 200
        assert org_of_rows(stage, "Doc") == [other]
        assert org_of_rows(stage, "Note") == sorted([None, None, other], key=str)
        assert org_of_rows(stage, "Log") == sorted([org, org, other])


@pytest.mark.parametrize(("words", "text"), [
    ({"Doc.nothing": "delete"}, "auth.org.on_delete names"), ({"Doc.orgId": "drop"}, "known word"),
    ({"Doc.orgId": "null"}, "cannot become null"), ([], "must be an object"),
])
def test_a_wrong_fate_of_rows_stops_the_start(tmp_path: Path, words: Any, text: str) -> None:
    app = rows_app()
    app["auth"]["org"]["on_delete"] = words
    with pytest.raises(ManifestInvalid, match=text), serve_api(tmp_path, app):
        pass
