"""OWASP ASVS 4.0.3, chapter 3 (session management), levels 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon.api.identity.routes import ROUTES
from tests.attacks.standards import check_items, proved
from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app

pytestmark = pytest.mark.stores
HERE = "attacks/test_asvs_3_sessions.py"
SESSIONS = "test_api_sessions.py"
COOKIES = "test_auth_cookies.py"
C2 = "attacks/test_c2_browsers.py"
NUMBERS = """
3.1.1 3.2.1 3.2.2 3.2.3 3.2.4 3.3.1 3.3.2 3.3.3 3.3.4 3.4.1 3.4.2 3.4.3 3.4.4 3.4.5
3.5.1 3.5.2 3.5.3 3.7.1
"""
ITEMS = {
    "3.1.1": proved(
        "no session token in a URL",
        "attacks/test_owasp_api02_authentication.py::test_credentials_in_a_url_sign_nobody_in",
        "test_e2e_sessions.py::test_no_token_lies_in_a_file_a_log_a_metric_or_a_backup",
        but="An event stream takes ?token=, as browsers send no header there; the access log "
            "leaves it out.",
    ),
    "3.2.1": proved(
        "a new token at each sign-in",
        "identity/test_passwords.py::test_each_sign_in_makes_a_new_token",
        f"{SESSIONS}::test_a_sign_in_with_a_planted_cookie_gets_a_new_token",
    ),
    "3.2.2": proved(
        "64 bits at least", "test_auth_tokens.py::test_a_new_token_has_the_documented_form",
    ),
    "3.2.3": proved(
        "browsers keep it in a secure cookie",
        "test_api_auth.py::test_a_browser_gets_a_cookie_that_signs_it_in",
    ),
    "3.2.4": proved(
        "made by approved algorithms",
        "test_auth_tokens.py::test_only_the_hash_identifies_a_session",
    ),
    "3.3.1": proved(
        "sign-out ends it, and Back shows nothing",
        "test_api_auth.py::test_logout_ends_the_session_and_tells_the_hubs",
        "identity/test_routes.py::test_no_answer_of_sign_in_may_be_cached",
        "test_e2e_sessions.py::test_a_session_that_was_ended_is_dead_everywhere_within_a_second",
    ),
    "3.3.2": proved(
        "users sign in again after 12 hours or 30 idle minutes",
        f"{SESSIONS}::test_use_moves_the_end_once_in_a_tenth_of_the_life_and_sets_the_cookie",
        f"{SESSIONS}::test_a_session_has_a_greatest_age_and_may_be_fixed",
        but="The default is 30 idle days and 90 days at most; session.expires_in and "
            "session.max_age meet the item.",
    ),
    "3.3.3": proved(
        "a password change ends the other sessions",
        "identity/test_passwords.py::test_a_change_ends_all_sessions_but_the_new_one",
        "attacks/test_c36_second_factor.py"
        "::test_a_reset_asks_for_the_code_and_forgets_trusted_devices",
    ),
    "3.3.4": proved(
        "users list their sessions and end them",
        f"{SESSIONS}::test_a_list_shows_the_sign_ins_of_the_caller_alone",
        f"{SESSIONS}::test_one_session_the_others_or_all_may_be_ended",
    ),
    "3.4.1": proved(
        "cookies are Secure", f"{COOKIES}::test_the_default_cookie_of_a_server",
        f"{HERE}::test_every_cookie_of_a_server_is_secure_http_only_and_same_site",
    ),
    "3.4.2": proved(
        "cookies are HttpOnly",
        f"{HERE}::test_every_cookie_of_a_server_is_secure_http_only_and_same_site",
    ),
    "3.4.3": proved(
        "cookies are SameSite", f"{COOKIES}::test_same_site_none_forces_secure",
        f"{HERE}::test_every_cookie_of_a_server_is_secure_http_only_and_same_site",
    ),
    "3.4.4": proved(
        "the prefix __Host-",
        f"{C2}::test_a_start_refuses_what_browsers_would_not_keep_safe",
        but="PYLON_COOKIE_NAME sets it; the default name is that of the published clients.",
    ),
    "3.4.5": proved(
        "a path where apps share a domain", f"{COOKIES}::test_every_setting_shows",
    ),
    "3.5.1": proved(
        "users end what they granted to linked apps",
        "identity/test_providers.py::test_a_signed_in_user_links_a_provider",
        "identity/test_api_keys.py::test_a_revoked_key_is_dead_and_its_sockets_are_told",
    ),
    "3.5.2": proved(
        "sessions rather than static keys",
        "attacks/test_c4_key_scopes.py::test_a_key_reaches_no_route_of_sign_in_but_the_public_ones",
        "identity/test_api_keys.py::test_a_key_dies_with_the_lock_and_with_the_row_of_its_owner",
    ),
    "3.5.3": proved(
        "stateless tokens are signed and checked",
        "attacks/test_c10_jwts.py::test_another_header_counts_for_nothing",
        "attacks/test_c10_jwts.py::test_other_claims_are_refused",
        "attacks/test_c10_jwts.py::test_a_token_counts_in_its_time_only",
        "attacks/test_c1_callers.py"
        "::test_a_bad_key_or_jwt_is_401_in_the_header_and_nobody_in_a_cookie",
    ),
    "3.7.1": proved(
        "a full, fresh sign-in before what is sensitive",
        "attacks/test_owasp_api02_authentication.py"
        "::test_each_sensitive_route_refuses_an_old_sign_in",
        f"{HERE}::test_a_guest_and_a_challenge_reach_no_route_of_accounts",
    ),
}
ADA = {"email": "ada@example.com", "password": "four random words here"}
PAGE = {"Origin": "http://localhost:3000"}


def test_each_item_is_proved_or_does_not_apply() -> None:
    check_items(ITEMS, NUMBERS)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app()) as made:
        yield made


def test_every_cookie_of_a_server_is_secure_http_only_and_same_site(stage: ApiStage) -> None:
    answers = [
        stage.call("POST", "/api/auth/password/register", ADA, headers=PAGE),
        stage.call("POST", "/api/auth/password/login", ADA, headers=PAGE),
        stage.call("POST", "/api/auth/guest", headers=PAGE),
        stage.call("POST", "/api/auth/magic-link/send", {"email": ADA["email"]}, headers=PAGE),
        stage.call("DELETE", "/api/auth/session", headers=PAGE),
    ]
    seen = set()
    for answer in answers:
        assert answer.status_code in (200, 201), answer.text
        for name, cookie in answer.cookies.items():
            assert cookie.secure and cookie.http_only and cookie.path, name
            assert cookie.same_site in ("Lax", "Strict"), name
            seen.add(name.removeprefix("members_"))
    assert {"session", "dev", "ml"} <= seen


def test_a_guest_and_a_challenge_reach_no_route_of_accounts(stage: ApiStage) -> None:
    """A session that stands for no proved person changes no account."""
    guest = stage.guest()
    routes = [
        route for route in ROUTES if route.who == "fresh" and route.action != "delete_account"
    ]  # a guest may end itself
    assert len(routes) > 4
    for route in routes:
        body = {"newEmail": "x@example.com", "code": "123456"}
        path = route.path.replace("{", "").replace("}", "")
        for token in (guest, f"mfa_{'x' * 43}"):
            sent = None if route.method == "DELETE" else body
            answer = stage.call(route.method, path, sent, token)
            assert answer.status_code in (400, 401, 403, 404, 501), (path, answer.text)
