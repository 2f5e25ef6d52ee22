"""Forgotten passwords: the link of a mail, and what its use proves; on both stores."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from pylon import metrics
from pylon.mail.message import Mail, decode
from pylon.storage.auth_ops import Condition, PutRecord
from pylon.storage.ops import Transact
from tests.identity.test_passwords import (
    CHANGE,
    LOGIN,
    PASSWORD,
    REGISTER,
    count,
    register,
    sign_in,
    strict,
    user_row,
)
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import sign_in_app

__all__ = ["strict"]
pytestmark = pytest.mark.stores

REQUEST: Final = "/api/auth/password/reset/request"
COMPLETE: Final = "/api/auth/password/reset/complete"
NEW: Final = "entirely other words"


def mails_in(stage: ApiStage) -> list[Mail]:
    """The mails of the outbox, the oldest first."""
    found = stage.identity.store.point(
        lambda reader: reader.records("outbox", [], order=("created_at",))
    )
    return [
        decode(stage.identity.keys.open("outbox", "sealed", str(r["id"]), str(r["sealed"])))
        for r in found
    ]


def links(stage: ApiStage) -> list[str]:
    """The tokens of the reset mails in the outbox, the oldest first."""
    found = []
    for mail in mails_in(stage):
        found += re.findall(r"/reset-password\?token=([0-9a-f]{64})", mail.text)
    return found


def ask(stage: ApiStage, email: str, **more: Any) -> int:
    answer = stage.call("POST", REQUEST, {"email": email}, **more)
    if answer.status_code == 200:
        assert answer.json == {"sent": True}
    return answer.status_code


def complete(stage: ApiStage, token: str, password: str = NEW) -> tuple[int, dict[str, Any]]:
    answer = stage.call("POST", COMPLETE, {"token": token, "newPassword": password})
    return answer.status_code, answer.json


def verify_address(stage: ApiStage) -> None:
    """Note that all addresses were proved."""
    from pylon.storage.auth_ops import SetRecords

    stage.writer.submit(SetRecords("identities", [], {"verified_at": 1}))


def test_a_link_sets_a_new_password_and_signs_in(stage: ApiStage) -> None:
    first = register(stage)
    verify_address(stage)
    assert ask(stage, "ANN@example.com") == 200
    [token] = links(stage)
    status, body = complete(stage, token)
    assert status == 200, body
    assert (body["reset"], body["revoked_sessions"]) == (True, 1)
    assert "credentials_dropped" not in body
    assert stage.call("GET", "/api/auth/me", token=first["token"]).json["user_id"] is None
    assert stage.call("GET", "/api/auth/me", token=body["token"]).json["user_id"]
    assert sign_in(stage, "ann@example.com", PASSWORD)[0] == 401
    assert sign_in(stage, "ann@example.com", NEW) == (200, "")


def test_a_link_works_once_and_for_thirty_minutes(stage: ApiStage) -> None:
    register(stage)
    ask(stage, "ann@example.com")
    [token] = links(stage)
    assert complete(stage, token)[0] == 200
    messages = set()
    for bad in (token, "0" * 64, "x"):
        status, body = complete(stage, bad)
        assert (status, body["error"]["code"]) == (401, "INVALID_TOKEN")
        messages.add(body["error"]["message"])
    stage.clock.advance(60)
    ask(stage, "ann@example.com")
    stage.clock.advance(30 * 60 + 1)
    status, body = complete(stage, links(stage)[-1])
    assert (status, body["error"]["code"]) == (401, "INVALID_TOKEN")
    assert len(messages | {body["error"]["message"]}) == 1


def test_a_weak_password_leaves_the_link_valid(stage: ApiStage) -> None:
    register(stage)
    ask(stage, "ann@example.com")
    [token] = links(stage)
    for password, code in (("short", "WEAK_PASSWORD"), ("x" * 1_025, "PASSWORD_TOO_LONG")):
        status, body = complete(stage, token, password)
        assert (status, body["error"]["code"]) == (400, code)
    for body, code in (({}, "MISSING_FIELD"), ({"token": token}, "MISSING_FIELD")):
        answer = stage.call("POST", COMPLETE, body)
        assert (answer.status_code, answer.json["error"]["code"]) == (400, code)
    assert complete(stage, token)[0] == 200


def test_the_newest_two_links_are_valid(stage: ApiStage) -> None:
    register(stage)
    verify_address(stage)
    for _ in range(3):
        ask(stage, "ann@example.com")
        stage.clock.advance(61)
    first, second, third = links(stage)
    assert complete(stage, first)[0] == 401
    assert complete(stage, second)[0] == 200
    assert complete(stage, third)[0] == 401  # a reset voids all links of the account


def test_unknown_and_malformed_addresses_get_the_same_answer_and_no_mail(
    stage: ApiStage,
) -> None:
    register(stage)
    before = count(stage, "outbox")
    for email in ("nobody@example.com", "no address", "a@b@c", "ann@example.com\r\nBcc: x@y.z"):
        assert ask(stage, email) == 200
    assert count(stage, "outbox") == before
    answer = stage.call("POST", REQUEST, {"email": ""})
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "MISSING_EMAIL")


def test_the_records_of_an_unknown_address_are_no_link(stage: ApiStage) -> None:
    ask(stage, "nobody@example.com")
    found = stage.identity.store.point(lambda reader: reader.records("tokens", []))
    assert {record["purpose"] for record in found} == {"decoy"}
    in_place_of_mail = [record for record in found if record["email_key"] is None]
    assert all(
        int(record["expires_at"] or 0) <= stage.identity.now_s() for record in in_place_of_mail
    )


def test_of_an_unknown_address_as_many_records_live_as_of_a_known_one(stage: ApiStage) -> None:
    """So each request finds, and drops, the same number of older ones."""
    register(stage)
    for email in ("ann@example.com", "nobody@example.com"):
        for _ in range(4):
            ask(stage, email)
            stage.clock.advance(61)
    now_s = stage.identity.now_s()
    found = stage.identity.store.point(lambda reader: reader.records("tokens", []))
    living = [
        str(record["email_key"]) for record in found
        if record["purpose"] in ("password_reset", "decoy") and record["email_key"] is not None
        and int(record["expires_at"] or 0) > now_s
    ]
    assert sorted(living) == ["ann@example.com"] * 2 + ["nobody@example.com"] * 2


@pytest.mark.parametrize("kind", ["login", "reset", "register"])
def test_known_and_unknown_addresses_cost_the_same_work(tmp_path: Path, kind: str) -> None:
    """Attack 9, without a clock: hashes, reads of the store, and steps of transactions."""
    environ = {"PYLON_REQUIRE_EMAIL_VERIFICATION": "true"}
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        known, unknown = f"known@{kind}.com", f"unknown@{kind}.com"
        stage.call("POST", REGISTER, {"email": known, "password": PASSWORD})
        path = {"login": LOGIN, "reset": REQUEST, "register": REGISTER}[kind]
        work = []
        for email in (known, unknown):
            with watched(stage) as seen:
                stage.call("POST", path, {"email": email, "password": "another password"})
            work.append(seen())
        assert work[0] == work[1], kind
        hashes, reads, steps = work[0]
        assert hashes == (kind != "reset") and reads > 0 and steps


@contextmanager
def watched(stage: ApiStage) -> Iterator[Callable[[], tuple[float, int, list[int]]]]:
    """Count the hashes, the reads of the store and the steps of each write."""
    direct: Any = stage.services.identity.identity
    counting = CountingStore(stage.identity.store)
    made = metrics.PASSWORD_HASHES.labels("made")
    before, first = made._value.get(), len(stage.writer.seen)
    direct.identity = dataclasses.replace(stage.identity, store=counting)

    def seen() -> tuple[float, int, list[int]]:
        ops: list[Any] = stage.writer.seen[first:]
        return (
            made._value.get() - before, counting.reads,
            [len(op.ops) if isinstance(op, Transact) else 1 for op in ops],
        )

    try:
        yield seen
    finally:
        direct.identity = stage.identity


class CountingStore:
    """A store that counts the reads of a flow."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.reads = 0

    def point(self, read: Any) -> Any:
        self.reads += 1
        return self._store.point(read)


def test_the_mail_goes_to_the_stored_address(stage: ApiStage) -> None:
    register(stage, "ann@Example.com")
    ask(stage, "ANN@EXAMPLE.COM")
    assert {mail.to for mail in mails_in(stage)} == {"ann@example.com"}


def test_the_first_proof_of_a_mailbox_ends_what_a_stranger_has_prepared(stage: ApiStage) -> None:
    """Attack 21: somebody registered with the victim's address in advance."""
    attacker = register(stage, "victim@example.com")
    stage.writer.submit(PutRecord("identities", {
        "kind": "oauth:google", "subject": "attacker", "user_id": attacker["user_id"],
        "created_at": 1,
    }))
    ask(stage, "victim@example.com")
    status, body = complete(stage, links(stage)[-1])
    assert (status, body.get("credentials_dropped")) == (200, True)
    assert body["user_id"] == attacker["user_id"]  # the row stays
    assert stage.call("GET", "/api/auth/me", token=attacker["token"]).json["user_id"] is None
    assert sign_in(stage, "victim@example.com", PASSWORD)[0] == 401
    assert sign_in(stage, "victim@example.com", NEW) == (200, "")
    assert count(stage, "identities", Condition("kind", "=", "oauth:google")) == 0
    assert user_row(stage, body["user_id"])["emailVerified"] is not None


def test_a_row_of_the_app_is_adopted_by_who_reads_its_mail(stage: ApiStage) -> None:
    made = stage.call(
        "POST", "/api/entities/User", {"email": "app@example.com", "role": "editor"}, ADMIN_TOKEN
    ).json
    ask(stage, "app@example.com")
    status, body = complete(stage, links(stage)[-1])
    assert (status, body["user_id"]) == (200, made["id"])
    assert sign_in(stage, "app@example.com", NEW) == (200, "")
    row = user_row(stage, made["id"])
    assert row["role"] == "editor" and row["emailVerified"] is not None


def test_a_link_of_another_purpose_sets_no_password(stage: ApiStage) -> None:
    """Attack 7."""
    from workers.identity import codes

    user_id = register(stage)["user_id"]
    for purpose in (codes.SIGN_IN_LINK, codes.CHANGE_LINK, "decoy"):
        made = codes.make_link(
            stage.identity, purpose, 600, email_key="ann@example.com", user_id=user_id,
            data={"email": "ann@example.com"},
        )
        stage.writer.submit_all(made.steps)
        assert complete(stage, made.secret)[0] == 401


def test_a_change_of_the_password_voids_links_on_their_way(stage: ApiStage) -> None:
    token = register(stage)["token"]
    ask(stage, "ann@example.com")
    body = {"currentPassword": PASSWORD, "newPassword": "a third password"}
    assert stage.call("POST", CHANGE, body, token).status_code == 200
    assert complete(stage, links(stage)[-1])[0] == 401


def test_one_mailbox_gets_at_most_ten_mails_an_hour(strict: ApiStage) -> None:
    """Attack 16: from a hundred addresses."""
    strict.call("POST", REGISTER, {"email": "ann@example.com", "password": PASSWORD})
    before = count(strict, "outbox")
    for n in range(100):
        ask(strict, "ann@example.com", remote_addr=f"198.51.100.{n}")
        strict.clock.advance(30)
    assert count(strict, "outbox") - before <= 20  # ten at once, and one more in six minutes
    assert {ask(strict, "ann@example.com", remote_addr="192.0.2.1") for _ in range(3)} == {429}


def test_login_still_works_while_a_reset_is_on_its_way(stage: ApiStage) -> None:
    register(stage)
    ask(stage, "ann@example.com")
    assert stage.call(
        "POST", LOGIN, {"email": "ann@example.com", "password": PASSWORD}
    ).status_code == 200
