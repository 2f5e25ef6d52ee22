"""OWASP API9:2023, improper inventory management: every route is known, and none is left over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.standards import check_items, not_applicable, proved
from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app

pytestmark = pytest.mark.stores
HERE = "attacks/test_owasp_api09_inventory.py"
ITEMS = {
    "documented": proved(
        "a route or an error code that no document has",
        "test_openapi.py::test_every_route_and_method_is_in_the_document",
        "test_openapi.py::test_every_error_answer_names_real_codes_of_its_status",
        "attacks/test_c4_key_scopes.py::test_every_route_and_method_is_in_the_table",
    ),
    "development": proved(
        "routes and answers of development, in production",
        f"{HERE}::test_what_is_for_development_is_not_there_in_production",
    ),
    "old-tokens": proved(
        "tokens and keys of before that still count",
        "attacks/test_c1_callers.py::test_without_a_previous_token_the_empty_one_is_nobody",
        "identity/test_api_keys.py"
        "::test_a_rotation_keeps_the_id_and_ends_the_old_secret_after_the_overlap",
    ),
    "versions": not_applicable(
        "older versions of the API that run beside this one",
        "There is one version of each route; the published clients keep using it.",
    ),
    "flows": not_applicable(
        "data that goes to third parties without anybody's knowledge",
        "The server sends data to mail servers and providers of the operator's settings alone, "
        "and calls nobody else.",
    ),
}


def test_each_item_is_proved() -> None:
    check_items(ITEMS, "documented development old-tokens versions flows")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app()) as made:
        yield made


def test_what_is_for_development_is_not_there_in_production(stage: ApiStage) -> None:
    token = stage.call("POST", "/api/auth/password/register", {
        "email": "ada@example.com", "password": "four random words here",
    }).json
    assert "dev_code" not in token
    session = token["token"]
    for each in (None, session):
        reset = stage.call("POST", "/api/__test__/reset", {}, each)
        assert reset.status_code in (403, 404), reset.text
        minted = stage.call("POST", "/api/auth/session", {"user_id": "u"}, each)
        assert minted.status_code == 403
        upgraded = stage.call("POST", "/api/auth/upgrade", {"user_id": "u"}, each)
        assert upgraded.status_code in (401, 403), upgraded.text
    sent = stage.call("POST", "/api/auth/magic/send", {"email": "ada@example.com"})
    assert "dev_code" not in sent.text
    refused = stage.call("DELETE", f"/api/entities/User/{token['user_id']}", token=session)
    assert refused.json["error"]["code"] == "POLICY_DENIED"  # without the rule that refused
    assert set(refused.json["error"]) <= {"code", "message", "hint"}
