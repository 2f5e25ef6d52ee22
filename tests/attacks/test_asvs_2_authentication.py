"""OWASP ASVS 4.0.3, chapter 2 (authentication), levels 1 and 2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pylon.api.identity.routes import ROUTES
from pylon.api.identity.sign_in_page import FORMS
from pylon.storage.interface import Reader
from tests.attacks.standards import check_items, not_applicable, proved
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import sign_in_app

pytestmark = pytest.mark.stores
HERE = "attacks/test_asvs_2_authentication.py"
RULES = "test_auth_passwords.py"
PASSWORDS = "identity/test_passwords.py"
RESETS = "identity/test_resets.py"
CODES = "identity/test_magic_codes.py"
TOTP = "identity/test_totp.py"
C36 = "attacks/test_c36_second_factor.py"
PASSKEYS = "attacks/test_c47_passkeys.py"
NUMBERS = """
2.1.1 2.1.2 2.1.3 2.1.4 2.1.5 2.1.6 2.1.7 2.1.8 2.1.9 2.1.10 2.1.11 2.1.12
2.2.1 2.2.2 2.2.3 2.3.1 2.3.2 2.3.3 2.4.1 2.4.2 2.4.3 2.4.4 2.4.5
2.5.1 2.5.2 2.5.3 2.5.4 2.5.5 2.5.6 2.5.7 2.6.1 2.6.2 2.6.3
2.7.1 2.7.2 2.7.3 2.7.4 2.7.5 2.7.6 2.8.1 2.8.2 2.8.3 2.8.4 2.8.5 2.8.6 2.8.7
2.9.1 2.9.2 2.9.3 2.10.1 2.10.2 2.10.3 2.10.4
"""
ITEMS = {
    "2.1.1": proved(
        "at least 12 characters",
        f"{RULES}::test_the_least_length_counts_characters_and_is_settable",
        but="The default is 10; auth.password.min_length of 12 or more meets the item.",
    ),
    "2.1.2": proved(
        "64 characters are accepted, more than 128 may be refused",
        f"{RULES}::test_long_passwords_of_any_writing_are_accepted",
        f"{RULES}::test_a_password_has_at_most_1024_bytes",
        but="Up to 1,024 bytes are accepted, which costs one hash as any other.",
    ),
    "2.1.3": proved("no truncation", f"{HERE}::test_no_character_of_a_password_is_dropped"),
    "2.1.4": proved(
        "any printable character", f"{RULES}::test_long_passwords_of_any_writing_are_accepted",
    ),
    "2.1.5": proved(
        "users change their password",
        f"{PASSWORDS}::test_a_change_ends_all_sessions_but_the_new_one",
    ),
    "2.1.6": proved(
        "a change needs the current one", f"{PASSWORDS}::test_a_change_needs_the_current_password",
    ),
    "2.1.7": proved(
        "stolen and common passwords are refused",
        f"{RULES}::test_the_commonest_passwords_are_refused_in_any_case",
        f"{RULES}::test_a_stolen_password_is_refused",
        "identity/test_pwned_ranges.py::test_a_stolen_password_is_refused_and_its_hash_stays_here",
    ),
    "2.1.8": not_applicable(
        "a meter of strength", "The page has no scripts; an app's own page may have one.",
    ),
    "2.1.9": proved("no rules of composition", f"{HERE}::test_no_kind_of_character_is_demanded"),
    "2.1.10": proved("no expiry, no history", f"{HERE}::test_a_password_never_expires"),
    "2.1.11": proved(
        "paste and password managers work", f"{HERE}::test_password_managers_know_the_fields",
    ),
    "2.1.12": not_applicable(
        "show the password for a moment", "Browsers offer it; the page has no scripts.",
    ),
    "2.2.1": proved(
        "limits against guessing", f"{PASSWORDS}::test_an_address_may_try_five_times_a_minute",
        f"{PASSWORDS}::test_a_stranger_cannot_lock_the_owner_out",
        f"{CODES}::test_five_wrong_attempts_kill_a_code",
    ),
    "2.2.2": proved(
        "weak authenticators never in place of strong ones",
        f"{C36}::test_every_first_factor_leads_to_the_question",
        but="A code by mail proves the mailbox as a reset does; with an authenticator both ask it.",
    ),
    "2.2.3": proved(
        "a notice of each change",
        f"{PASSWORDS}::test_a_notice_of_a_change_goes_to_the_stored_address",
        "identity/test_email_changes.py::test_a_change_moves_the_account_and_ends_its_other_sessions",
        "identity/test_new_devices.py::test_a_browser_that_the_user_has_not_used_is_told_of",
    ),
    "2.3.1": proved(
        "initial secrets are random and end",
        f"{CODES}::test_a_code_expires_after_ten_minutes",
        f"{RESETS}::test_a_link_works_once_and_for_thirty_minutes",
    ),
    "2.3.2": proved(
        "users enrol authenticators",
        "identity/test_passkeys.py::test_a_passkey_of_each_algorithm_signs_in_as_two_factors",
        f"{TOTP}::test_a_secret_counts_only_after_its_first_code",
    ),
    "2.3.3": proved(
        "renewal in time before authenticators end",
        "identity/test_api_keys.py"
        "::test_a_rotation_keeps_the_id_and_ends_the_old_secret_after_the_overlap",
    ),
    "2.4.1": proved(
        "passwords are salted and hashed",
        f"{PASSWORDS}::test_the_password_is_stored_nowhere_but_as_a_hash",
        "identity/test_hashing.py"
        "::test_a_hash_has_the_parameters_of_owasp_and_is_of_its_password_only",
    ),
    "2.4.2": proved(
        "a salt of at least 32 bits", f"{HERE}::test_equal_passwords_have_different_salts",
    ),
    "2.4.3": not_applicable("PBKDF2", "The hash is argon2id."),
    "2.4.4": not_applicable("bcrypt", "The hash is argon2id."),
    "2.4.5": not_applicable(
        "a further step with a secret salt",
        "Recommended only; the database file and its key file lie in one folder, so a pepper would "
        "be stolen along. Codes of few digits have one (HMAC).",
    ),
    "2.5.1": proved(
        "no secret in clear to the user",
        f"{RESETS}::test_a_link_sets_a_new_password_and_signs_in",
    ),
    "2.5.2": proved(
        "no hints or secret questions", f"{HERE}::test_no_route_takes_hints_or_questions",
    ),
    "2.5.3": proved(
        "recovery reveals no password",
        f"{PASSWORDS}::test_the_password_is_stored_nowhere_but_as_a_hash",
    ),
    "2.5.4": proved("no default accounts", f"{HERE}::test_a_new_server_has_no_accounts"),
    "2.5.5": proved(
        "a notice where an authenticator changes",
        f"{PASSWORDS}::test_a_notice_of_a_change_goes_to_the_stored_address",
        f"{RESETS}::test_the_mail_goes_to_the_stored_address",
    ),
    "2.5.6": proved(
        "recovery by a secure means",
        f"{RESETS}::test_unknown_and_malformed_addresses_get_the_same_answer_and_no_mail",
        f"{C36}::test_a_reset_asks_for_the_code_and_forgets_trusted_devices",
    ),
    "2.5.7": proved(
        "a lost second factor is replaced with the same proof as at enrolment",
        f"{C36}::test_a_thief_with_a_session_cannot_replace_or_end_the_authenticator",
        "identity/test_users.py::test_a_second_factor_is_forgotten",
    ),
    "2.6.1": proved(
        "look-up secrets count once", f"{C36}::test_a_backup_code_counts_once_and_any_case_will_do",
    ),
    "2.6.2": proved(
        "enough random bits, or a salted hash",
        f"{TOTP}::test_the_database_holds_no_secret_and_no_backup_code",
    ),
    "2.6.3": proved(
        "no foreseeable values", f"{TOTP}::test_backup_codes_have_no_ambiguous_letters_and_differ",
    ),
    "2.7.1": not_applicable("no codes by SMS", "There is no SMS."),
    "2.7.2": proved(
        "codes end after 10 minutes", f"{CODES}::test_a_code_expires_after_ten_minutes",
        but="Links end after 15 minutes, and those of resets after 30.",
    ),
    "2.7.3": proved(
        "codes count once, for their request",
        f"{CODES}::test_a_code_works_once", f"{CODES}::test_a_code_is_none_of_another_address",
        f"{CODES}::test_a_code_of_one_purpose_is_none_of_the_other",
    ),
    "2.7.4": not_applicable(
        "a second secure channel", "Mail is the channel; the page says so and offers passkeys.",
    ),
    "2.7.5": proved("only a hash is kept", f"{CODES}::test_codes_are_in_no_table"),
    "2.7.6": proved(
        "20 bits of a secure generator", f"{HERE}::test_codes_have_six_digits_of_every_value",
    ),
    "2.8.1": proved(
        "time-based codes end", f"{TOTP}::test_one_step_of_drift_is_accepted_and_no_more",
    ),
    "2.8.2": proved(
        "their keys are protected", f"{TOTP}::test_the_database_holds_no_secret_and_no_backup_code",
    ),
    "2.8.3": proved(
        "approved algorithms", f"{TOTP}::test_a_secret_counts_only_after_its_first_code",
        but="HMAC-SHA-1, as RFC 6238 and every authenticator app have it.",
    ),
    "2.8.4": proved(
        "a code counts once",
        f"{C36}::test_a_code_that_was_used_at_sign_in_is_used_on_every_route",
        "identity/test_second_factor_at_once.py"
        "::test_a_code_counts_once_on_all_workers_and_after_a_kill",
    ),
    "2.8.5": proved(
        "a replay is refused and logged",
        f"{TOTP}::test_a_challenge_dies_after_five_wrong_codes_and_in_five_minutes",
    ),
    "2.8.6": proved(
        "a stolen generator is revoked",
        "identity/test_users.py::test_a_second_factor_is_forgotten",
        f"{TOTP}::test_disabling_needs_a_code_and_ends_all_of_it",
    ),
    "2.8.7": not_applicable("biometric generators", "They stay in the device (passkeys)."),
    "2.9.1": proved(
        "keys of verification are protected",
        "identity/test_passkeys.py::test_a_passkey_of_each_algorithm_signs_in_as_two_factors",
        but="Only public keys are stored.",
    ),
    "2.9.2": proved(
        "a challenge of 64 bits, unique",
        f"{PASSKEYS}::test_an_answer_counts_once",
        f"{PASSKEYS}::test_an_old_challenge_counts_no_more",
    ),
    "2.9.3": proved(
        "approved algorithms",
        "identity/test_passkeys.py::test_a_passkey_of_each_algorithm_signs_in_as_two_factors",
    ),
    "2.10.1": proved(
        "services have no password that never changes",
        "identity/test_api_keys.py::test_a_key_ends_at_its_time_and_needs_one_in_the_future",
    ),
    "2.10.2": proved(
        "no default credentials of services", f"{HERE}::test_a_new_server_has_no_accounts",
        "attacks/test_c1_callers.py::test_without_a_previous_token_the_empty_one_is_nobody",
    ),
    "2.10.3": proved(
        "their secrets are hashed",
        "identity/test_api_keys.py::test_the_text_of_a_key_is_shown_once_and_stored_nowhere",
    ),
    "2.10.4": proved(
        "no secrets in the code; keys can be replaced",
        "test_secret_key.py::test_starts_make_keep_and_demand_the_key_file",
        "test_auth_keys.py::test_after_a_change_of_keys_both_open_and_the_new_one_seals",
    ),
}
EMAIL = "ada@example.com"
LONG = "correct horse battery staple " * 4


def test_each_item_is_proved_or_does_not_apply() -> None:
    check_items(ITEMS, NUMBERS)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    environ = {"PYLON_DEV_MODE": "true", "PYLON_EMAIL_PROVIDER": "console"}
    with serve_api(tmp_path, sign_in_app(), environ) as made:
        yield made


def register(stage: ApiStage, password: str, email: str = EMAIL) -> int:
    body = {"email": email, "password": password}
    return stage.call("POST", "/api/auth/password/register", body).status_code


def log_in(stage: ApiStage, password: str, email: str = EMAIL) -> int:
    body = {"email": email, "password": password}
    return stage.call("POST", "/api/auth/password/login", body).status_code


def test_no_character_of_a_password_is_dropped(stage: ApiStage) -> None:
    assert register(stage, LONG) == 200
    assert log_in(stage, LONG) == 200
    for wrong in (LONG[:-2], LONG[:72], LONG[:64], LONG + "x", LONG.replace("staple", "Staple"),
                  LONG.replace(" ", "", 1), LONG.replace(" ", "  ", 1)):
        assert log_in(stage, wrong) == 401, wrong


def test_no_kind_of_character_is_demanded(stage: ApiStage) -> None:
    for number, password in enumerate((
        "onlylowercaseletters", "ONLYUPPERCASELETTERS", "83920174650918", "        quiet  evening",
        "!!§§%%//((==??", "только по русски", "😀🐘🌍🎈🧊🪁🥝🎻🚲🧭",
    )):
        assert register(stage, password, f"u{number}@example.com") == 200, password


def test_a_password_never_expires(stage: ApiStage) -> None:
    assert register(stage, LONG) == 200
    stage.clock.advance(5 * 365 * 86_400)
    assert log_in(stage, LONG) == 200


def test_password_managers_know_the_fields(stage: ApiStage) -> None:
    wanted = {
        "password": {"current-password", "new-password"}, "newPassword": {"new-password"},
        "currentPassword": {"current-password"}, "email": {"username", "email"},
    }
    seen = set()
    for form in FORMS:
        page = stage.call("GET", f"/auth/{form.name}").text
        assert "onpaste" not in page and "oncopy" not in page
        for tag in re.findall(r"<input [^>]*>", page):
            name = re.search(r'name="(\w+)"', tag)
            if name is not None and name[1] in wanted and 'type="hidden"' not in tag:
                found = re.search(r'autocomplete="([\w -]+)"', tag)
                assert found is not None, tag
                assert wanted[name[1]] & set(found[1].split()), tag
                seen.add(name[1])
    assert {"password", "email"} <= seen


def test_equal_passwords_have_different_salts(stage: ApiStage) -> None:
    for name in ("a", "b"):
        assert register(stage, LONG, f"{name}@example.com") == 200
    rows = stage.identity.store.point(lambda reader: reader.records("passwords", []))
    salts = {str(row["phc"]).split("$")[4] for row in rows}
    assert len(rows) == len(salts) == 2
    assert all(len(salt) >= 22 for salt in salts)  # 16 bytes in base64


def test_no_route_takes_hints_or_questions() -> None:
    words = ("hint", "question", "answer", "birth", "maiden", "pet")
    names = {
        name for route in ROUTES if route.body is not None
        for name in route.body.struct.__struct_encode_fields__
    }
    assert {"password", "newPassword", "email"} <= names
    assert [name for name in names if any(word in name.lower() for word in words)] == []


def _count_records(table: str, reader: Reader) -> int:
    return reader.count_records(table, [])


def test_a_new_server_has_no_accounts(stage: ApiStage) -> None:
    for table in ("users", "identities", "passwords", "sessions", "api_keys", "passkeys"):
        count = stage.identity.store.point(partial(_count_records, table))
        assert count == 0, table
    assert stage.call("GET", "/api/entities/User", token=ADMIN_TOKEN).json["data"] == []
    for email, password in (("admin@example.com", "admin"), ("root@localhost", "root")):
        assert log_in(stage, password, email) == 401
    for token in ("admin", "test", "changeme", "pylon", ADMIN_TOKEN[:-1]):
        assert not stage.call("GET", "/api/auth/me", token=token).json["is_admin"]


def test_codes_have_six_digits_of_every_value(stage: ApiStage) -> None:
    """Each of the ten digits comes at each of the six places: no code is shortened."""
    places: list[set[str]] = [set() for _ in range(6)]
    for number in range(200):
        body = {"email": f"u{number}@example.com"}
        code = stage.call("POST", "/api/auth/magic/send", body).json["dev_code"]
        assert re.fullmatch("[0-9]{6}", code)
        for place, digit in zip(places, code, strict=True):
            place.add(digit)
    assert all(len(place) == 10 for place in places)
