"""OWASP API7:2023, server side request forgery: what the server fetches, and for whom."""

from __future__ import annotations

from tests.attacks.standards import check_items, not_applicable, proved

C23 = "attacks/test_c23_provider_urls.py"
ITEMS = {
    "addresses": proved(
        "an issuer at a loopback, private, link-local or metadata address, in any notation",
        f"{C23}::test_an_address_that_is_not_public_is_never_connected_to",
        f"{C23}::test_each_notation_of_loopback_is_refused",
        f"{C23}::test_no_other_url_is_fetched_in_production",
        "attacks/test_c10_jwts.py::test_keys_are_fetched_from_public_addresses_only",
    ),
    "rebinding": proved(
        "a name that changes its address after the check",
        f"{C23}::test_a_name_is_resolved_once_and_the_checked_address_is_used",
        f"{C23}::test_a_certificate_counts_for_the_name_and_not_for_the_address",
    ),
    "redirects": proved(
        "a redirect to another place", f"{C23}::test_no_redirect_is_followed",
        f"{C23}::test_no_proxy_of_the_environment_is_used",
    ),
    "answers": proved(
        "answers that are huge, compressed, slow, or never come",
        f"{C23}::test_ten_gigabytes_are_cut",
        f"{C23}::test_a_compressed_answer_is_not_unpacked",
        f"{C23}::test_a_trickle_is_cut_in_time",
        f"{C23}::test_a_host_that_does_not_answer_is_given_up_in_time",
    ),
    "errors": proved(
        "texts of errors that tell about the network",
        f"{C23}::test_no_text_of_an_error_has_what_a_url_carries",
        "identity/test_providers.py::test_what_a_provider_says_of_an_error_stays_there",
    ),
    "clients": not_applicable(
        "URLs that a client sends to be fetched",
        "No route fetches a URL of its caller: callbacks, avatars and next pages are compared with "
        "the trusted origins and only ever sent to the browser. Issuers, mail servers and the "
        "breach service come from the operator's settings.",
    ),
}


def test_each_item_is_proved() -> None:
    check_items(ITEMS, "addresses rebinding redirects answers errors clients")
