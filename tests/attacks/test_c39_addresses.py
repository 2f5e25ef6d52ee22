"""Attack: spellings of an address, to get a second account or somebody else's mail.

Each spelling of the corpus is one account with its mailbox, or refused; mail goes to the stored
address only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app
from tests.support.outbox import take_code, take_mails
from tests.test_auth_email_address import CORPUS

pytestmark = pytest.mark.stores
ENTRIES = [entry for entry in CORPUS if not entry.get("dev")]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app()) as made:
        yield made


def test_each_spelling_is_one_account_with_its_mailbox_or_refused(stage: ApiStage) -> None:
    user_by_key: dict[str, str] = {}
    for entry in ENTRIES:
        sent = stage.call("POST", "/api/auth/magic/send", {"email": entry["typed"]})
        if entry["key"] is None:
            assert sent.status_code == 400, entry
            assert sent.json["error"]["code"] in ("INVALID_EMAIL", "MISSING_EMAIL")
            assert take_mails(stage) == []
            continue
        assert sent.status_code == 200, entry
        body = {"email": entry["typed"], "code": take_code(stage, entry["key"])}
        answer = stage.call("POST", "/api/auth/magic/verify", body)
        assert answer.status_code == 200, (entry, answer.json)
        user_id = answer.json["user_id"]
        assert user_by_key.setdefault(entry["key"], user_id) == user_id, entry
        stage.clock.advance(1)
    assert len(set(user_by_key.values())) == len(user_by_key), "no two mailboxes share an account"
