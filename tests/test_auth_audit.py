"""Audit records: one line of safe texts for each, and the object that the API sends."""

from __future__ import annotations

import pytest

from pylon.auth.audit import METADATA_BYTES, TEXT_CHARS, audit_json, audit_step
from pylon.clock import ManualClock, SystemRandom
from tests.storage_contract.backends import StoreStage, open_backend


@pytest.mark.stores
def test_a_record_comes_back_as_the_object_of_the_api(tmp_path: object) -> None:
    stage = StoreStage(open_backend(tmp_path))  # type: ignore[arg-type]
    op = audit_step(
        "sign_in_failed", stage.clock, SystemRandom(), user_id="u1", tenant_id="acme",
        ip="198.51.100.7", user_agent="curl/8", success=False, reason="INVALID_CREDENTIALS",
        metadata={"device": "known"},
    )
    assert stage.codes(op) == [None]
    (record,) = stage.reader.records("audit", [])
    stage.close()
    sent = audit_json(record)
    assert sent.pop("id") == record["id"] and str(record["id"]).startswith("aud_")
    assert sent == {
        "created_at": stage.clock.wall_ns() // 10**9, "action": "sign_in_failed", "user_id": "u1",
        "actor_id": None, "tenant_id": "acme", "ip": "198.51.100.7", "user_agent": "curl/8",
        "success": False, "reason": "INVALID_CREDENTIALS", "metadata": {"device": "known"},
    }


def test_texts_of_clients_are_cut_and_on_one_line() -> None:
    values = audit_step(
        "sign_in", ManualClock(), SystemRandom(), user_id="u1",
        user_agent="a\r\nX-Evil: 1\0\u2028" + "b" * 1_000, metadata={"x": "y" * METADATA_BYTES},
    ).values
    agent = values["user_agent"]
    assert len(agent) == TEXT_CHARS and agent.startswith("a X-Evil: 1 b")
    assert values["metadata"] == '{"truncated":true}'


def test_ids_sort_by_time() -> None:
    clock = ManualClock()
    ids = []
    for _ in range(20):
        ids.append(audit_step("sign_out", clock, SystemRandom(), user_id="u").values["id"])
        clock.advance(0.01)
    assert ids == sorted(ids) and len(set(ids)) == 20


def test_who_failed_is_known_only_if_they_are_signed_in() -> None:
    for actor in (None, "u2"):
        values = audit_step(
            "sign_in_failed", ManualClock(), SystemRandom(), user_id="u1", success=False,
            actor_id=actor,
        ).values
        assert (values["user_id"], values["actor_id"]) == ("u1", actor)
    worked = audit_step("sign_in", ManualClock(), SystemRandom(), user_id="u1").values
    assert worked["actor_id"] == "u1"


def test_an_administrator_is_the_actor() -> None:
    values = audit_step(
        "user_lock", ManualClock(), SystemRandom(), user_id="u1", actor_id="__admin__"
    ).values
    assert (values["user_id"], values["actor_id"]) == ("u1", "__admin__")
