"""workers.identity.accounts: whose an address is, new users, and the proof of a mailbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pylon.auth.email_address import parse_email
from pylon.auth.transactions import Step, carry_out
from pylon.errors import RecordConflict, RecordExists, UniqueViolation, UserCreateFailed
from pylon.storage.auth_ops import Condition, PutRecord
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import field, sign_in_app
from workers.identity.accounts import (
    Account,
    find_account,
    has_credentials,
    new_user,
    prove_mailbox,
)
from workers.identity.identity import Identity

ADA = parse_email("Ada@Example.com")


def commit(identity: Identity, steps: list[Step]) -> None:
    carry_out(identity.writer.submit, steps)


def count(identity: Identity, table: str, user_id: str) -> int:
    where = [Condition("user_id", "=", user_id)]
    return identity.store.point(lambda reader: reader.count_records(table, where))


def row_of(identity: Identity, user_id: str) -> dict[str, Any]:
    raw = identity.store.point(lambda reader: reader.get("User", user_id))
    assert raw is not None
    found: dict[str, Any] = json.loads(raw)
    return found


def make(identity: Identity, *, is_verified: bool) -> str:
    user_id, steps = new_user(identity, ADA, is_verified=is_verified, name=" Ada ")
    commit(identity, steps)
    return user_id


def add_credentials(identity: Identity, user_id: str) -> None:
    """The records that somebody who registered in advance may have left."""
    now = identity.now_s()
    commit(identity, [
        PutRecord("passwords", {"user_id": user_id, "phc": "x", "changed_at": now}),
        PutRecord("totp", {"user_id": user_id, "sealed": "x", "created_at": now}),
        PutRecord("backup_codes", {"user_id": user_id, "hash": "x", "created_at": now}),
        PutRecord("identities", {
            "kind": "oauth:evil", "subject": "s", "user_id": user_id, "created_at": now,
        }),
        PutRecord("tokens", {
            "hash": "reset", "purpose": "password_reset", "user_id": user_id, "attempts": 0,
            "created_at": now, "expires_at": now + 60,
        }),
        PutRecord("tokens", {
            "hash": "revert", "purpose": "email_revert", "user_id": user_id, "attempts": 0,
            "created_at": now, "expires_at": now + 60,
        }),
    ])


def test_a_new_user_has_a_row_and_an_identity(stage: ApiStage) -> None:
    identity = stage.identity
    assert find_account(identity, ADA) is None
    user_id = make(identity, is_verified=True)
    assert find_account(identity, parse_email("ADA@example.COM")) == Account(user_id, True)
    row = row_of(identity, user_id)
    assert (row["email"], row["displayName"]) == ("ada@example.com", "Ada")
    assert row["emailVerified"] == row["createdAt"] and row["createdAt"].endswith("Z")


def test_a_user_whose_address_was_not_proved_has_no_stamp(stage: ApiStage) -> None:
    identity = stage.identity
    user_id = make(identity, is_verified=False)
    assert find_account(identity, ADA) == Account(user_id, False)
    assert row_of(identity, user_id)["emailVerified"] is None


def test_two_users_of_one_address_are_refused(stage: ApiStage) -> None:
    identity = stage.identity
    _, steps = new_user(identity, ADA, is_verified=False)
    _, others = new_user(identity, ADA, is_verified=False)
    commit(identity, steps)
    with pytest.raises(UniqueViolation):  # the rows
        commit(identity, others)
    with pytest.raises(RecordExists):
        commit(identity, [step for step in others if isinstance(step, PutRecord)])


def test_the_proof_of_a_mailbox_drops_what_was_there_before(stage: ApiStage) -> None:
    identity = stage.identity
    user_id = make(identity, is_verified=False)
    assert not has_credentials(identity, user_id)
    add_credentials(identity, user_id)
    assert has_credentials(identity, user_id)
    account = find_account(identity, ADA)
    assert account is not None
    steps = prove_mailbox(identity, account, ADA)
    commit(identity, steps)
    for table in ("passwords", "totp", "backup_codes", "sessions"):
        assert count(identity, table, user_id) == 0, table
    assert count(identity, "identities", user_id) == 1
    assert count(identity, "tokens", user_id) == 1, "the owner's revert link stays"
    assert find_account(identity, ADA) == Account(user_id, True)
    assert row_of(identity, user_id)["emailVerified"] is not None
    with pytest.raises(RecordConflict):  # once: a proof that comes late drops nothing
        commit(identity, steps)


def test_an_account_that_was_verified_keeps_everything(stage: ApiStage) -> None:
    identity = stage.identity
    user_id = make(identity, is_verified=True)
    add_credentials(identity, user_id)
    account = find_account(identity, ADA)
    assert account is not None and prove_mailbox(identity, account, ADA) == []
    assert count(identity, "passwords", user_id) == 1


def test_a_row_of_the_app_is_adopted_by_whoever_proves_its_address(stage: ApiStage) -> None:
    identity = stage.identity
    answer = stage.call("POST", "/api/entities/User", {"email": "ada@example.com"}, ADMIN_TOKEN)
    assert answer.status_code == 201, answer
    user_id = answer.json["id"]
    account = find_account(identity, ADA)
    assert account == Account(user_id, is_verified=False, has_identity=False)
    commit(identity, prove_mailbox(identity, account, ADA))
    assert find_account(identity, ADA) == Account(user_id, True)
    assert count(identity, "users", user_id) == 1


def test_a_manifest_without_a_fitting_user_entity_is_named(tmp_path: Path) -> None:
    app = sign_in_app()
    app["entities"][0]["fields"].append(field("plan", "string"))
    with serve_api(tmp_path, app) as made, pytest.raises(UserCreateFailed, match="plan"):
        new_user(made.identity, ADA, is_verified=True)
    app = sign_in_app()
    app["auth"]["user"]["entity"] = "Person"
    (tmp_path / "b").mkdir()
    with serve_api(tmp_path / "b", app) as made, pytest.raises(UserCreateFailed, match="Person"):
        new_user(made.identity, ADA, is_verified=True)
