"""OWASP API1:2023, broken object level authorization: the objects of others are not there.

`ITEMS` are the attacks of the group; `tests/matrix` meets every role, entity, verb and path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.standards import check_items, proved
from tests.identity.test_orgs import ORGS, Person, org_app
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api

pytestmark = pytest.mark.stores
MATRIX = "matrix/test_matrix.py::test_a_caller"
ITEMS = {
    "rows": proved(
        "read, write, list, search, count, pull, hear rows of others by their ids",
        f"{MATRIX}_reads_what_the_model_says", f"{MATRIX}_writes_what_the_model_says",
        f"{MATRIX}_hears_what_the_model_says", f"{MATRIX}_does_in_a_room_what_the_model_says",
        "test_e2e_chat.py::test_members_alone_see_a_private_room_on_every_path",
    ),
    "existence": proved(
        "learn whether an object of another is there",
        "attacks/test_b5_existence.py::test_ids_of_hidden_rows_are_probed_no_more_than_the_rate_allows",
        "attacks/test_b1_timing.py::test_a_hidden_row_is_answered_no_later_than_none",
    ),
    "ids": proved(
        "sessions, keys, passkeys, devices and providers of another user",
        "test_api_sessions.py::test_one_session_the_others_or_all_may_be_ended",
        "identity/test_api_keys.py::test_another_users_keys_are_not_there",
        "identity/test_passkeys.py::test_a_user_lists_renames_and_deletes_their_own_passkeys_only",
        "identity/test_totp.py::test_devices_are_listed_and_revoked_by_their_owner_alone",
        "attacks/test_owasp_api01_object_level.py"
        "::test_a_made_up_id_and_the_id_of_another_get_one_answer",
    ),
    "organisations": proved(
        "routes of an organisation that the caller is no member of",
        "attacks/test_owasp_api01_object_level.py::test_each_route_of_a_foreign_organisation_is_404",
        "identity/test_orgs.py::test_members_read_the_rows_and_nobody_else",
    ),
}


def test_each_item_is_proved() -> None:
    check_items(ITEMS, "rows existence ids organisations")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    environ = {"PYLON_DEV_MODE": "true", "PYLON_EMAIL_PROVIDER": "console"}
    with serve_api(tmp_path, org_app(), environ) as made:
        yield made


def test_each_route_of_a_foreign_organisation_is_404(stage: ApiStage) -> None:
    """Attack 3, with the ids of a real member and a real invite."""
    ann, bob, eve = (Person(stage, name) for name in ("ann", "bob", "eve"))
    org = ann.found()
    ann.invite(org, bob)
    [invite] = ann("GET", f"{ORGS}/{org}/invites")
    for method, path, body in (
        ("GET", "", None), ("PATCH", "", {"name": "Mine"}), ("DELETE", "", None),
        ("GET", "/members", None), ("PUT", f"/members/{ann.id}", {"role": "member"}),
        ("DELETE", f"/members/{ann.id}", None), ("GET", "/invites", None),
        ("POST", "/invites", {"email": "eve@example.com"}), ("DELETE", f"/invites/{invite['id']}",
                                                             None),
    ):
        assert eve(method, f"{ORGS}/{org}{path}", body) == "ORG_NOT_FOUND", (method, path)
        assert eve(method, f"{ORGS}/{'0' * 40}{path}", body) == "ORG_NOT_FOUND", (method, path)
    chosen = stage.call("POST", "/api/auth/select-org", {"orgId": org}, eve.token)
    assert chosen.status_code == 403
    assert "tenant_id" not in eve.me()
    assert ann("GET", f"{ORGS}/{org}")["role"] == "owner"
    assert [each["id"] for each in ann("GET", f"{ORGS}/{org}/invites")] == [invite["id"]]


def test_an_invite_of_another_organisation_is_not_there(stage: ApiStage) -> None:
    ann, eve = Person(stage, "ann"), Person(stage, "eve")
    org, own = ann.found(), eve.found()
    ann.invite(org, Person(stage, "bob"))
    [invite] = ann("GET", f"{ORGS}/{org}/invites")
    answer = stage.call("DELETE", f"{ORGS}/{own}/invites/{invite['id']}", token=eve.token)
    assert answer.status_code == 404
    assert [each["id"] for each in ann("GET", f"{ORGS}/{org}/invites")] == [invite["id"]]


def test_a_made_up_id_and_the_id_of_another_get_one_answer(stage: ApiStage) -> None:
    """Attack 2: the two cannot be told apart, in status, code and text."""
    ann, eve = Person(stage, "ann"), Person(stage, "eve")
    body = {"name": "k", "scopes": "rooms"}
    key = ann("POST", "/api/auth/api-keys", body)["id"]
    [session] = ann("GET", "/api/auth/sessions")
    for method, path, real, made_up in (
        ("DELETE", "/api/auth/api-keys/{}", key, f"key_{'x' * 32}"),
        ("POST", "/api/auth/api-keys/{}/rotate", key, f"key_{'x' * 32}"),
        ("DELETE", "/api/auth/sessions/{}", session["id"], "0" * 16),
    ):
        found: list[tuple[int, Any]] = []
        for row_id in (real, made_up):
            sent: Any = {} if method == "POST" else None
            answer = stage.call(method, path.format(row_id), sent, eve.token)
            text = answer.text.replace(row_id, "ID")
            found.append((answer.status_code, text))
        assert found[0] == found[1] and found[0][0] == 404, (method, path, found)
    for target in ("User", "OrgMember"):
        texts = set()
        for row_id in (ann.id, "0" * 40):
            answer = stage.call("GET", f"/api/entities/{target}/{row_id}", token=eve.token)
            assert answer.status_code == 404
            texts.add(answer.text.replace(row_id, "ID"))
        assert len(texts) == 1
    assert stage.call("GET", f"/api/entities/User/{ann.id}", token=ADMIN_TOKEN).status_code == 200
