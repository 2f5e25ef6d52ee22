"""Attack: many clients have mails sent to one address. It gets ten an hour, of all kinds together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app
from tests.support.outbox import take_mails

pytestmark = pytest.mark.stores
PATHS = ("/api/auth/magic/send", "/api/auth/magic-link/send")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app(), {"PYLON_AUTH_RATES": "true"}) as made:
        yield made


def test_one_address_gets_few_mails_from_a_hundred_clients(stage: ApiStage) -> None:
    spellings = ("ann@b\u00fccher.example", "Ann@B\u00dcCHER.example", "ANN@xn--bcher-kva.example")
    for minute in range(60):
        for client in range(2):
            answer = stage.call(
                "POST", PATHS[client], {"email": spellings[minute % 3]},
                remote_addr=f"10.{client}.0.{minute}",
            )
            assert answer.status_code in (200, 429)
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
        stage.clock.advance(60)
    # Ten at once, and one more each six minutes.
    assert len(take_mails(stage)) <= 20
    for minute in range(60):
        stage.call("POST", PATHS[0], {"email": spellings[0]}, remote_addr=f"10.3.0.{minute}")
        stage.clock.advance(60)
    assert len(take_mails(stage)) <= 10


def test_one_client_sends_few_mails_to_many_addresses(stage: ApiStage) -> None:
    statuses = [
        stage.call(
            "POST", PATHS[number % 2], {"email": f"user{number}@example.com"},
            remote_addr=f"2001:db8::{number:x}",  # of one /64
        ).status_code
        for number in range(30)
    ]
    assert statuses.count(200) == 3 == len(take_mails(stage))
