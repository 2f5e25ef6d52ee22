"""OWASP API2:2023, broken authentication."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon.api.identity.routes import ROUTES
from tests.attacks.standards import check_items, proved
from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app

pytestmark = pytest.mark.stores
HERE = "attacks/test_owasp_api02_authentication.py"
ITEMS = {
    "stuffing": proved(
        "lists of stolen passwords, from one and from many addresses",
        "identity/test_passwords.py::test_an_address_may_try_five_times_a_minute",
        "identity/test_passwords.py::test_a_stranger_cannot_lock_the_owner_out",
        "identity/test_passwords.py::test_rates_do_not_tell_whether_an_account_exists",
    ),
    "guessing": proved(
        "guesses of codes and tokens",
        "identity/test_magic_codes.py::test_five_wrong_attempts_kill_a_code",
        "identity/test_mail_processes.py::test_of_fifty_guesses_at_once_five_count",
        "attacks/test_c36_second_factor.py::test_guesses_of_backup_codes_end_the_challenge",
    ),
    "replay": proved(
        "a link, code, state, challenge or answer twice, in parallel, after a kill",
        "identity/test_crashes.py::test_a_link_is_used_once_by_fifty_requests_at_once",
        "identity/test_mail_processes.py::test_of_fifty_uses_of_one_code_at_once_one_signs_in",
        "identity/test_mail_processes.py::test_a_code_is_used_once_although_the_process_is_killed",
        "identity/test_second_factor_at_once.py"
        "::test_a_code_counts_once_on_all_workers_and_after_a_kill",
        "attacks/test_c31_states.py::test_a_state_is_good_once",
        "attacks/test_c47_passkeys.py::test_an_answer_counts_once",
    ),
    "purposes": proved(
        "a token of one purpose at another route",
        "attacks/test_c7_token_purposes.py::test_a_secret_works_for_its_own_purpose_alone",
    ),
    "fixation": proved(
        "a session that the attacker planted",
        "test_api_sessions.py::test_a_sign_in_with_a_planted_cookie_gets_a_new_token",
        "attacks/test_c31_states.py::test_a_planted_session_cookie_is_replaced",
        f"{HERE}::test_a_password_sign_in_over_a_planted_cookie_ends_it_for_the_browser",
    ),
    "timing": proved(
        "times that tell whether an account is there",
        "attacks/test_c5_passwords.py::test_times_do_not_tell_whether_an_address_has_an_account",
    ),
    "tokens": proved(
        "forged keys, JWTs and admin tokens",
        "attacks/test_c10_jwts.py::test_another_header_counts_for_nothing",
        "attacks/test_c10_jwts.py::test_a_public_key_is_no_secret",
        "attacks/test_c10_jwts.py::test_a_huge_or_changed_token_is_refused",
        "attacks/test_c1_callers.py::test_a_bad_key_or_jwt_is_401_in_the_header_and_nobody_in_a_cookie",
        "attacks/test_c1_callers.py"
        "::test_the_admin_token_in_a_url_or_a_subprotocol_of_another_case_is_nobody",
        "attacks/test_c4_key_scopes.py"
        "::test_a_key_reaches_a_route_by_the_scopes_of_the_table_alone",
    ),
    "urls": proved(
        "credentials in a URL, where logs and histories keep them",
        f"{HERE}::test_credentials_in_a_url_sign_nobody_in",
    ),
    "sensitive": proved(
        "a stolen session changes the address, the second factor or the keys",
        f"{HERE}::test_each_sensitive_route_refuses_an_old_sign_in",
        "identity/test_passwords.py::test_a_change_needs_the_current_password",
    ),
}
ADA = {"email": "ada@example.com", "password": "four random words here"}


def test_each_item_is_proved() -> None:
    check_items(
        ITEMS, "stuffing guessing replay purposes fixation timing tokens urls sensitive"
    )


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    app = sign_in_app()
    app["auth"]["org"] = {}
    environ = {"PYLON_WEBAUTHN_ORIGIN": "http://localhost:3000"}
    with serve_api(tmp_path, app, environ) as made:
        yield made


def test_credentials_in_a_url_sign_nobody_in(stage: ApiStage) -> None:
    stage.call("POST", "/api/auth/password/register", ADA)
    query = "email=ada%40example.com&password=four+random+words+here"
    bodies: tuple[Any, ...] = (None, {}, b"")
    for each in bodies:
        answer = stage.call("POST", f"/api/auth/password/login?{query}", each)
        assert answer.status_code == 400 and "token" not in answer.json, each
    assert stage.call("GET", f"/api/auth/password/login?{query}").status_code == 405
    token = stage.call("POST", "/api/auth/password/login", ADA).json["token"]
    for name in ("token", "access_token", "authorization", "session"):
        answer = stage.call("GET", f"/api/auth/me?{name}={token}")
        assert answer.status_code in (200, 400), name
        assert answer.status_code == 400 or answer.json["user_id"] is None, name


def test_a_password_sign_in_over_a_planted_cookie_ends_it_for_the_browser(stage: ApiStage) -> None:
    """Attack 8: the session that the attacker knows is not the one of the victim."""
    stage.call("POST", "/api/auth/password/register", ADA)
    planted = stage.guest()
    answer = stage.call("POST", "/api/auth/password/login", ADA, headers={
        "Cookie": f"members_session={planted}", "Origin": "http://localhost:3000",
        "Content-Type": "application/json",
    })
    token = answer.json["token"]
    assert token != planted and f"members_session={token}" in answer.headers["set-cookie"]
    assert stage.call("GET", "/api/auth/me", token=planted).json["user_id"] is None


def test_each_sensitive_route_refuses_an_old_sign_in(stage: ApiStage) -> None:
    """Every route that the table calls fresh, and the keys for everything."""
    token = stage.call("POST", "/api/auth/password/register", ADA).json["token"]
    stage.clock.advance(601)
    fresh = [route for route in ROUTES if route.who == "fresh"]
    assert {"request_email_change", "passkey_delete"} <= {route.action for route in fresh}
    body = {"newEmail": "eve@example.com", "code": "123456"}
    calls: list[tuple[str, str, Any]] = [
        (route.method, re.sub(r"\{\w+\}", "x", route.path),
         body if route.method != "DELETE" else None)
        for route in fresh
    ]
    calls.append(("POST", "/api/auth/api-keys", {"name": "all", "scopes": "*"}))
    for method, path, sent in calls:
        answer = stage.call(method, path, sent, token)
        assert (answer.status_code, answer.json["error"]["code"]) == (403, "REAUTH_REQUIRED"), path
    assert stage.call("GET", "/api/auth/me", token=token).json["user_id"] is not None
