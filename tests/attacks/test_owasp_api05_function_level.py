"""OWASP API5:2023, broken function level authorization: each administrator's route as each role."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import falcon.inspect
import pytest

from tests.attacks.standards import check_items, proved
from tests.identity.test_orgs import Person, org_app
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api

pytestmark = pytest.mark.stores
HERE = "attacks/test_owasp_api05_function_level.py"
ITEMS = {
    "admin": proved(
        "each route of administrators as anonymous, guest, user, owner and API key",
        f"{HERE}::test_each_route_of_administrators_refuses_everybody_else",
        "attacks/test_c4_key_scopes.py::test_a_key_reaches_no_route_of_sign_in_but_the_public_ones",
    ),
    "organisation": proved(
        "each route of an organisation as each of its roles",
        "identity/test_orgs.py::test_attack_18_each_route_as_each_role",
        "identity/test_orgs.py::test_attack_19_two_owners_that_go_at_once_leave_one",
    ),
    "read-only": proved(
        "a write by a caller that may only read",
        "attacks/test_c4_key_scopes.py::test_a_read_only_caller_changes_nothing_on_any_route",
    ),
    "undeclared": proved(
        "a route whose access nobody has declared",
        "attacks/test_c4_key_scopes.py::test_an_app_with_an_undeclared_method_cannot_be_made",
        "attacks/test_c4_key_scopes.py::test_every_route_and_method_is_in_the_table",
    ),
    "methods": proved(
        "another method, or a header that names another",
        f"{HERE}::test_no_header_changes_the_method_or_the_path",
    ),
    "removed": proved(
        "the rights of a former member",
        "test_ws_orgs.py::test_the_sockets_of_a_member_close_within_a_second",
        "identity/test_orgs.py"
        "::test_the_selected_organisation_is_the_tenant_with_the_role_of_the_moment",
    ),
}
# Of administrators, besides all below /api/admin/. `session` POST: outside of dev mode.
MORE = [
    ("GET", "/api/export"), ("GET", "/api/export/User"), ("POST", "/api/import"),
    ("POST", "/api/auth/session"), ("GET", "/api/pubsub/channels"),
    ("POST", "/api/pubsub/publish"), ("GET", "/api/pubsub/history/c"), ("GET", "/api/shards"),
    ("POST", "/api/shards"), ("DELETE", "/api/shards/counter:1"),
    ("POST", "/api/shards/counter:1/move"),
]
BODIES = {
    "/api/import": {"entities": {}}, "/api/auth/session": {"user_id": "u"},
    "/api/pubsub/publish": {"channel": "c", "message": "m"}, "/api/shards": {"id": "counter:1"},
    "/api/shards/counter:1/move": {"worker": "1"},
}


def test_each_item_is_proved() -> None:
    check_items(ITEMS, "admin organisation read-only undeclared methods removed")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, org_app()) as made:
        yield made


def test_each_route_of_administrators_refuses_everybody_else(stage: ApiStage) -> None:
    """Attack 18."""
    routes = MORE + [
        (method.method, re.sub(r"\{\w+\}", "x", route.path))
        for route in falcon.inspect.inspect_routes(stage.client.app)
        for method in route.methods if not method.internal and method.method != "HEAD"
        and route.path.startswith("/api/admin/")
    ]
    assert len(routes) > 20
    owner = Person(stage, "ann")
    stage.call("POST", "/api/auth/select-org", {"orgId": owner.found()}, owner.token)
    assert owner.me()["roles"] == ["owner"]
    before = stage.call("GET", "/api/export", token=ADMIN_TOKEN).json["entities"]
    for token in (None, stage.guest(), Person(stage, "bob").token, owner.token):
        for method, path in routes:
            body = BODIES.get(path, {}) if method in ("POST", "PUT", "PATCH") else None
            answer = stage.call(method, path, body, token)
            assert answer.status_code in (401, 403), (method, path, answer.text)
            assert answer.json["error"]["code"] in ("AUTH_REQUIRED", "FORBIDDEN"), (method, path)
    after = stage.call("GET", "/api/export", token=ADMIN_TOKEN).json["entities"]
    assert {**after, "User": before["User"]} == before


def test_no_header_changes_the_method_or_the_path(stage: ApiStage) -> None:
    person = Person(stage, "ann")
    path = f"/api/entities/User/{person.id}"
    for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        for method in ("GET", "POST"):
            stage.call(method, path, None if method == "GET" else {}, person.token, {
                name: "DELETE", "X-Original-URL": "/api/admin/auth/users", "X-Rewrite-URL": "/x",
            })
    stage.call("GET", f"{path}?_method=DELETE", token=person.token)
    assert stage.call("GET", path, token=ADMIN_TOKEN).status_code == 200
