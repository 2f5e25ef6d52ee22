"""A6: one address cannot make guests without bound; others are not refused meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.api import serve_api
from tests.support.manifests import notes_app

PROXIED = {"PYLON_TRUST_PROXY_HOPS": "1", "PYLON_GUESTS_PER_IP_PER_MIN": "3"}


@pytest.mark.parametrize("path", ["/api/auth/guest", "/api/auth/anonymous"])
def test_one_address_makes_thirty_guests_at_once_and_another_is_not_refused(
    tmp_path: Path, path: str
) -> None:
    with serve_api(tmp_path, notes_app(), PROXIED) as server:
        def post(address: str) -> int:
            answer = server.call("POST", path, headers={"X-Forwarded-For": address})
            if answer.status_code == 429:
                assert answer.json["error"]["code"] == "RATE_LIMITED"
                wait_s = answer.json["error"]["retry_after_secs"]
                assert answer.headers["Retry-After"] == str(wait_s)
            status: int = answer.status_code
            return status

        made = [post("192.0.2.1") for _ in range(100)]
        assert sum(status < 300 for status in made) == 30
        assert made.count(429) == 70
        assert post("192.0.2.2") < 300
        server.clock.advance(60)
        again = [post("192.0.2.1") for _ in range(10)]
        assert sum(status < 300 for status in again) == 3, "as many in a minute"


def test_the_addresses_of_one_ipv6_network_count_together(tmp_path: Path) -> None:
    with serve_api(tmp_path, notes_app(), PROXIED) as server:
        made = [
            server.call(
                "POST", "/api/auth/guest", headers={"X-Forwarded-For": f"2001:db8::{number:x}"}
            ).status_code
            for number in range(1, 60)
        ]
        assert made.count(201) == 30
