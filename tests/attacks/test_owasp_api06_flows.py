"""OWASP API6:2023, unrestricted access to sensitive business flows: sign-up, invites, mails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.standards import check_items, proved
from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app

pytestmark = pytest.mark.stores
HERE = "attacks/test_owasp_api06_flows.py"
ITEMS = {
    "accounts": proved(
        "accounts and guests made by a program",
        f"{HERE}::test_one_address_makes_ten_accounts_an_hour_and_another_goes_on",
        "attacks/test_a6_guests.py::test_the_addresses_of_one_ipv6_network_count_together",
    ),
    "invites": proved(
        "an invite of another account, a used, a revoked, an old one; many invites",
        "identity/test_orgs.py::test_attack_20_invites_are_for_one_account_once_and_in_time",
        "identity/test_orgs.py::test_an_invite_of_a_deleted_organisation_is_gone",
    ),
    "advance": proved(
        "an account that a stranger registers for the victim in advance",
        "attacks/test_c21_registered_in_advance.py::test_what_the_stranger_had_is_dead",
        "identity/test_orgs.py::test_attack_21_an_invite_ends_what_others_registered_in_advance",
        "identity/test_providers.py"
        "::test_the_owner_of_a_mailbox_takes_an_account_over_that_somebody_registered_before",
    ),
    "address": proved(
        "a change of the address beside a reset, and its way back",
        "identity/test_mail_processes.py"
        "::test_a_change_of_the_address_and_links_of_the_account_at_once",
        "identity/test_email_changes.py::test_the_owner_takes_a_change_back",
    ),
    "app": proved(
        "flows of the app, by the rules of its manifest",
        "test_request_rates.py::test_inserts_count_on_every_path",
        "test_request_rates.py::test_a_rule_counts_per_what_it_says",
    ),
    "captcha": proved(
        "programs that answer as people do: with PYLON_CAPTCHA_PROVIDER they need a captcha",
        "identity/test_captcha.py::"
        "test_what_anybody_may_ask_for_needs_a_captcha_that_counts_once",
        "identity/test_captcha.py::test_a_service_that_is_away_lets_nobody_through",
    ),
}


def test_each_item_is_proved() -> None:
    check_items(ITEMS, "accounts invites advance address app captcha")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    environ = {"PYLON_AUTH_RATES": "true", "PYLON_TRUSTED_PROXY_HOPS": "0"}
    with serve_api(tmp_path, sign_in_app(), environ) as made:
        yield made


def test_one_address_makes_ten_accounts_an_hour_and_another_goes_on(stage: ApiStage) -> None:
    def register(number: int, address: str) -> int:
        body = {"email": f"u{number}@example.com", "password": "four random words here"}
        path = "/api/auth/password/register"
        return stage.call("POST", path, body, remote_addr=address).status_code

    assert [register(n, "203.0.113.7") for n in range(11)] == [200] * 10 + [429]
    assert register(20, "203.0.113.8") == 200
    stage.clock.advance(3601)
    assert register(21, "203.0.113.7") == 200
