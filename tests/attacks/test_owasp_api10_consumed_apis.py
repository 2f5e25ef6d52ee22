"""OWASP API10:2023, unsafe consumption of APIs: what providers and mail servers answer."""

from __future__ import annotations

from tests.attacks.standards import check_items, not_applicable, proved

C30 = "attacks/test_c30_hostile_issuers.py"
ITEMS = {
    "nonsense": proved(
        "errors, HTML, other types, huge and slow answers",
        f"{C30}::test_nonsense_at_each_endpoint",
        "attacks/test_c23_provider_urls.py::test_ten_gigabytes_are_cut",
        "identity/test_providers.py::test_a_provider_that_is_down",
    ),
    "discovery": proved(
        "discovery of another issuer, and mix-up of two",
        f"{C30}::test_discovery_that_lies",
        f"{C30}::test_an_issuer_that_differs_by_a_slash_is_another_one",
        f"{C30}::test_a_token_of_one_provider_is_none_of_another",
    ),
    "tokens": proved(
        "forged ID tokens, weak keys, rotated keys",
        f"{C30}::test_tokens_that_are_forged",
        f"{C30}::test_a_weak_key_of_the_provider_is_not_used",
    ),
    "claims": proved(
        "claims of another nonce, subject, audience or time; an address that is not verified",
        f"{C30}::test_claims_that_lie", f"{C30}::test_userinfo_of_another_user",
        "attacks/test_c31_states.py"
        "::test_an_address_that_the_provider_does_not_vouch_for_takes_nothing_over",
    ),
    "secrets": proved(
        "our secrets in logs, and theirs in our answers",
        f"{C30}::test_secrets_are_in_no_log",
        "identity/test_providers.py::test_the_database_has_no_secret_of_a_sign_in",
    ),
    "mail": proved(
        "mail servers that hang, refuse or end",
        "identity/test_mail_processes.py::test_a_mail_server_that_is_down_delays_mails_only",
        "identity/test_mail_processes.py::test_a_mail_server_that_hangs_stops_no_sign_in",
    ),
    "breaches": proved(
        "the service of stolen passwords, which is away or answers nonsense",
        "identity/test_pwned_ranges.py::test_a_service_that_answers_nothing_refuses_nobody",
        "identity/test_pwned_ranges.py::test_a_service_that_is_away_refuses_nobody",
    ),
    "others": not_applicable(
        "other services", "The server calls none; backups go to a folder of the operator.",
    ),
}


def test_each_item_is_proved() -> None:
    check_items(ITEMS, "nonsense discovery tokens claims secrets mail breaches others")
