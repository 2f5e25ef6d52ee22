"""OWASP API4:2023, unrestricted resource consumption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon import limits
from tests.attacks.standards import check_items, not_applicable, proved
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import sign_in_app

pytestmark = pytest.mark.stores
HERE = "attacks/test_owasp_api04_consumption.py"
ITEMS = {
    "rates": proved(
        "requests without an end, from one address, one user or one network",
        "test_request_rates.py::test_an_address_has_its_limit_and_another_is_not_refused",
        "test_request_rates.py::test_the_addresses_of_an_ipv6_site_have_four_times_the_limit",
        "attacks/test_a6_guests.py"
        "::test_one_address_makes_thirty_guests_at_once_and_another_is_not_refused",
    ),
    "hashes": proved(
        "long passwords and many sign-ins at once",
        "attacks/test_c5_passwords.py::test_a_huge_password_is_refused_without_a_hash",
        "attacks/test_c5_passwords.py::test_a_rush_of_sign_ins_is_bounded_and_reads_go_on",
        "identity/test_hashing.py::test_a_full_queue_refuses_at_once_and_the_others_are_served",
    ),
    "mails": proved(
        "mails to a victim, and from one client to many",
        "attacks/test_c16_mail_bombs.py::test_one_address_gets_few_mails_from_a_hundred_clients",
        "attacks/test_c16_mail_bombs.py::test_one_client_sends_few_mails_to_many_addresses",
    ),
    "bodies": proved(
        "bodies that are large, deep, compressed, slow or in pieces",
        "attacks/test_a2_json.py::test_body_of_millions_of_values_is_never_decoded",
        "attacks/test_a4_sockets.py::test_a_kilobyte_that_unpacks_to_a_megabyte_is_refused",
        "attacks/test_a5_connections.py::test_a_body_in_very_many_tiny_chunks_is_refused",
        "attacks/test_a3_large_rows.py::test_every_way_to_make_a_row_too_large_is_refused",
    ),
    "pages": proved(
        "answers of any size",
        f"{HERE}::test_no_list_answers_more_than_its_bound",
        "attacks/test_a3_large_rows.py::test_a_long_answer_is_read_in_pages_of_bounded_size",
    ),
    "queries": proved(
        "patterns, sorts and graphs that take all time",
        "attacks/test_a1_patterns.py::test_work_is_linear_in_texts_and_patterns",
        "attacks/test_a7_fairness.py::test_sorts_of_one_address_leave_connections_to_others",
    ),
    "sockets": proved(
        "sockets, rooms, live queries and shards without a bound",
        "attacks/test_a6_rooms.py::test_one_address_cannot_take_all_rooms",
        "attacks/test_a6_rooms.py::test_live_queries_are_counted_over_all_sockets",
        "attacks/test_a6_shards.py"
        "::test_one_identity_makes_so_many_shards_and_the_next_client_is_let_in",
        "attacks/test_a5_connections.py"
        "::test_connections_that_wait_for_their_client_keep_nobody_out",
    ),
    "accounts": proved(
        "keys and passkeys of one user without a bound",
        "identity/test_api_keys.py::test_a_user_has_fifty_keys_at_most",
        "identity/test_passkeys.py::test_a_user_has_so_many_passkeys_and_no_more",
    ),
    "paid": not_applicable(
        "services of others that cost money for each call",
        "The server sends no SMS and calls no paid service; mails have the rates above.",
    ),
}


def test_each_item_is_proved() -> None:
    check_items(ITEMS, "rates hashes mails bodies pages queries sockets accounts paid")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app(), {"PYLON_LIST_LIMIT": "20"}) as made:
        yield made


def test_no_list_answers_more_than_its_bound(stage: ApiStage) -> None:
    """A client that asks for everything gets a page, or a refusal that names the bound."""
    count = limits.CURSOR_PAGE_MAX + 1
    operations = [
        {"op": "insert", "entity": "User", "data": {"email": f"u{number}@example.com"}}
        for number in range(count)
    ]
    made = stage.call("POST", "/api/batch", {"operations": operations}, ADMIN_TOKEN)
    assert made.json["succeeded"] == count
    huge = 10 ** 9
    for method, target, request in (
        ("GET", "/api/entities/User", None),
        ("GET", f"/api/entities/User?limit={huge}", None),
        ("GET", f"/api/entities/User?page=1&per_page={huge}", None),
        ("GET", f"/api/entities/User/cursor?limit={huge}", None),
        ("POST", "/api/query/User", {"$limit": huge}),
        ("POST", "/api/query/User", {}),
        ("POST", "/api/query", {"User": {"limit": huge}}),
        ("POST", "/api/query", {"User": {}}),
        ("GET", f"/api/admin/auth/users?limit={huge}", None),
        ("GET", f"/api/admin/auth/audit?limit={huge}", None),
        ("GET", f"/api/admin/auth/sessions?limit={huge}", None),
    ):
        answer = stage.call(method, target, request, ADMIN_TOKEN)
        assert answer.status_code in (200, 400), (target, answer.text)
        if answer.status_code == 200:
            rows = answer.text.count("@example.com")
            bound = limits.CURSOR_PAGE_MAX if "cursor" in target else 20
            assert 0 < rows <= bound or "/admin/" in target, (target, rows)
