"""OWASP API3:2023, broken object property level authorization."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.standards import check_items, proved
from tests.identity.test_orgs import ORGS, Person, org_app
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api

pytestmark = pytest.mark.stores
C3 = "attacks/test_c3_properties.py"
HERE = "attacks/test_owasp_api03_properties.py"
ITEMS = {
    "reads": proved(
        "hidden fields by every path of reading, in errors and in logs",
        f"{C3}::test_no_role_reads_a_hidden_field_on_any_path",
        f"{C3}::test_events_of_the_log_have_no_hidden_field",
        f"{C3}::test_no_socket_stream_or_live_query_carries_a_hidden_field",
        f"{C3}::test_a_whole_server_publishes_no_hidden_field",
        f"{C3}::test_an_export_is_for_administrators_and_has_all",
    ),
    "conditions": proved(
        "conditions, orders and rules that tell the value of a hidden field",
        f"{C3}::test_no_rule_may_name_a_hidden_field",
    ),
    "writes": proved(
        "fields that only the server writes",
        f"{C3}::test_no_client_writes_a_read_only_field_on_any_path",
        f"{C3}::test_a_document_cannot_write_a_managed_field",
        "matrix/test_matrix.py::test_a_caller_writes_what_the_model_says",
    ),
    "assignment": proved(
        "members of a body that the route does not have",
        "identity/test_passwords.py::test_roles_and_ids_of_the_body_are_ignored",
        f"{HERE}::test_more_members_of_a_body_of_organisations_change_nothing",
    ),
    "account": proved(
        "secrets in what a user gets of the own account",
        "identity/test_account.py::test_the_export_has_the_account_without_secrets",
        "test_api_auth.py::test_the_session_shows_the_user_without_what_is_hidden",
        "test_api_sessions.py::test_the_administrator_sees_sessions_without_tokens",
    ),
}


def test_each_item_is_proved() -> None:
    check_items(ITEMS, "reads conditions writes assignment account")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    environ = {"PYLON_DEV_MODE": "true", "PYLON_EMAIL_PROVIDER": "console"}
    with serve_api(tmp_path, org_app(), environ) as made:
        yield made


def test_more_members_of_a_body_of_organisations_change_nothing(stage: ApiStage) -> None:
    ann, bob = Person(stage, "ann"), Person(stage, "bob")
    forged = {"id": "f" * 40, "createdBy": bob.id, "role": "admin", "owner": bob.id,
              "tenantId": "x", "is_admin": True, "user_id": bob.id, "userId": bob.id}
    made = ann("POST", ORGS, {"name": "One", **forged})
    assert isinstance(made, str) or (made["id"] != "f" * 40 and made["role"] == "owner")
    org = made["id"] if isinstance(made, dict) else ann.found("One")
    before = stage.call("GET", "/api/export", token=ADMIN_TOKEN).json["entities"]
    for method, path, body in (
        ("PATCH", f"{ORGS}/{org}", {"name": "One"}),
        ("PUT", f"{ORGS}/{org}/members/{ann.id}", {"role": "owner"}),
    ):
        stage.call(method, path, {**forged, **body}, ann.token)
    after = stage.call("GET", "/api/export", token=ADMIN_TOKEN).json["entities"]
    assert after == before
    key = ann("POST", "/api/auth/api-keys", {"name": "k", "scopes": "rooms", **forged})
    if isinstance(key, dict):
        me = stage.call("GET", "/api/auth/me", token=key["key"]).json
        assert (me["user_id"], me["is_admin"], me["roles"]) == (ann.id, False, [])
