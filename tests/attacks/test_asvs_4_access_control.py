"""OWASP ASVS 4.0.3, chapter 4 (access control), levels 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.standards import check_items, not_applicable, proved
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import sign_in_app

pytestmark = pytest.mark.stores
HERE = "attacks/test_asvs_4_access_control.py"
MATRIX = "matrix/test_matrix.py"
NUMBERS = "4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.2.1 4.2.2 4.3.1 4.3.2 4.3.3"
ITEMS = {
    "4.1.1": proved(
        "the server enforces the rules",
        f"{MATRIX}::test_a_caller_reads_what_the_model_says",
        f"{MATRIX}::test_a_caller_writes_what_the_model_says",
    ),
    "4.1.2": proved(
        "users cannot change what the rules ask",
        "attacks/test_c3_properties.py::test_no_client_writes_a_read_only_field_on_any_path",
        "identity/test_orgs.py::test_members_read_the_rows_and_nobody_else",
    ),
    "4.1.3": proved(
        "least privilege",
        "attacks/test_owasp_api05_function_level.py"
        "::test_each_route_of_administrators_refuses_everybody_else",
        "attacks/test_c4_key_scopes.py::test_a_key_is_no_administrator_and_never_more_than_its_owner",
    ),
    "4.1.4": not_applicable("deny by default", "Moved to 4.1.3 by the standard."),
    "4.1.5": proved(
        "a failure denies",
        f"{HERE}::test_an_operation_without_a_rule_is_denied_to_all_but_the_administrator",
        f"{HERE}::test_a_rule_that_cannot_be_judged_denies",
        "attacks/test_c4_key_scopes.py::test_an_app_with_an_undeclared_method_cannot_be_made",
    ),
    "4.2.1": proved(
        "objects of others",
        f"{MATRIX}::test_a_caller_reads_what_the_model_says",
        "attacks/test_owasp_api01_object_level.py"
        "::test_each_route_of_a_foreign_organisation_is_404",
    ),
    "4.2.2": proved(
        "no write by another site",
        "attacks/test_c2_browsers.py::test_a_trick_sends_no_write",
        "attacks/test_c2_browsers.py::test_a_form_with_a_cookie_sends_no_write",
        "attacks/test_c31_states.py::test_a_state_of_another_browser_signs_nobody_in",
    ),
    "4.3.1": not_applicable(
        "administrators use a second factor",
        "There is no administrators' page. pylonctl acts as the user of the machine who owns the "
        "data, and the admin token is a secret of programs with 32 characters at least; neither "
        "is a password. The app's own administrators are users, who may be asked for a code.",
    ),
    "4.3.2": proved(
        "no lists of folders, no metadata files",
        "attacks/test_b6_files.py::test_static_files_end_at_the_folders_edge",
        "attacks/test_b6_files.py::test_a_static_folder_with_the_database_in_it_is_refused",
    ),
    "4.3.3": proved(
        "more proof for what is worth more",
        "attacks/test_owasp_api02_authentication.py"
        "::test_each_sensitive_route_refuses_an_old_sign_in",
        "identity/test_reauth.py::test_the_password_makes_the_session_and_its_successors_fresh",
        "test_e2e_sessions.py::test_a_long_pull_is_cut_off_when_its_session_ends",
        "identity/test_orgs.py::test_attack_45_a_switch_shows_no_row_of_the_old_tenant",
    ),
}


def test_each_item_is_proved_or_does_not_apply() -> None:
    check_items(ITEMS, NUMBERS)


def app() -> dict[str, Any]:
    made = sign_in_app()
    made["entities"].append({
        "name": "Bare", "indexes": [], "crdt": False,
        "fields": [{"name": "title", "type": "string", "optional": True, "unique": False}],
    })
    made["entities"].append({
        "name": "Odd", "indexes": [], "crdt": False,
        "fields": [
            {"name": "title", "type": "string", "optional": True, "unique": False},
            {"name": "rank", "type": "int", "optional": True, "unique": False},
        ],
    })
    made["policies"].append({"name": "odd", "entity": "Odd", "allow": "data.rank > 0"})
    return made


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, app()) as made:
        yield made


def test_an_operation_without_a_rule_is_denied_to_all_but_the_administrator(
    stage: ApiStage,
) -> None:
    row_id = stage.call("POST", "/api/entities/Bare", {"title": "x"}, ADMIN_TOKEN).json["id"]
    path = f"/api/entities/Bare/{row_id}"
    for token in (None, stage.guest(), stage.user("u1")):
        for method, target, body in (
            ("GET", "/api/entities/Bare", None), ("GET", path, None),
            ("POST", "/api/entities/Bare", {"title": "y"}), ("PATCH", path, {"title": "y"}),
            ("DELETE", path, None), ("POST", "/api/query/Bare", {}),
            ("POST", "/api/aggregate/Bare", {"count": "*"}),
        ):
            answer = stage.call(method, target, body, token)
            assert answer.status_code in (403, 404) and "title" not in answer.text, (method, target)
        pulled = stage.call("GET", "/api/sync/pull?since=0", token=token).json
        assert [c for c in pulled["changes"] if c["entity"] == "Bare"] == []
    assert stage.call("GET", path, token=ADMIN_TOKEN).json["title"] == "x"


def test_a_rule_that_cannot_be_judged_denies(stage: ApiStage) -> None:
    """A rule compares a number that the row lacks: nobody reads, changes or deletes the row."""
    row_id = stage.call("POST", "/api/entities/Odd", {"title": "x"}, ADMIN_TOKEN).json["id"]
    user = stage.user("u1")
    path = f"/api/entities/Odd/{row_id}"
    assert stage.call("GET", path, token=user).status_code == 404
    assert stage.call("PATCH", path, {"rank": 1}, user).status_code == 404
    assert stage.call("DELETE", path, token=user).status_code == 404
    assert stage.call("POST", "/api/entities/Odd", {"title": "x"}, user).status_code == 403
    assert stage.call("POST", "/api/entities/Odd", {"rank": 1}, user).status_code == 201
    assert stage.call("GET", path, token=ADMIN_TOKEN).json.get("rank") is None
