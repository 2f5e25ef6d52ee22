"""The rows of a guest become those of the user that the guest signs in as."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from pylon import limits
from pylon.api.data.changes import make_insert
from pylon.auth.tokens import session_id_of
from pylon.auth.transactions import carry_out
from pylon.auth_context import ADMIN, AuthContext
from pylon.bus.identity import CallFacts
from pylon.bus.messages import SessionRevoked
from pylon.errors import UniqueViolation
from pylon.storage.auth_ops import Condition
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.authenticator import put_user
from tests.support.manifests import field, sign_in_app
from workers.identity.carry_jobs import carry_out_jobs
from workers.identity.carry_over import Carry, plan_carry
from workers.identity.identity import Call
from workers.identity.sign_in import finish_sign_in

pytestmark = pytest.mark.stores

USER = "user-1"


def app_of_guests(on_conflict: str = "skip") -> dict[str, Any]:
    """Todos of an author and an editor, and one mark of a user on each list."""
    app = sign_in_app()
    everybody = {f"allow{verb}": "true" for verb in ("Read", "Insert", "Update", "Delete")}
    app["entities"] += [
        {"name": "Task", "crdt": False, "indexes": [], "fields": [
            field("title", "string"), field("authorId", "string"),
            field("editorId", "string", optional=True),
        ]},
        {"name": "Mark", "crdt": False, "fields": [
            field("list", "string", optional=True), field("userId", "string"),
            field("stars", "int", optional=True),
        ], "indexes": [{"name": "once", "fields": ["list", "userId"], "unique": True}]},
    ]
    app["policies"] += [{"name": n, "entity": n, **everybody} for n in ("Task", "Mark")]
    app["auth"]["guest"] = {
        "carry": ["Task.authorId", "Task.editorId", "Mark.userId"], "on_conflict": on_conflict,
    }
    app["references"] = "none"
    return app


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, app_of_guests()) as made:
        yield made


def facts_of(stage: ApiStage, token: str) -> CallFacts:
    me = stage.call("GET", "/api/auth/me", token=token).json
    return CallFacts(AuthContext(me["user_id"], is_guest=me.get("is_guest", False)))


@pytest.fixture(autouse=True)
def account(stage: ApiStage) -> None:
    put_user(stage, USER)


def insert(stage: ApiStage, entity: str, **row: Any) -> str:
    answer = stage.call("POST", f"/api/entities/{entity}", row, ADMIN_TOKEN)
    assert answer.status_code == 201, answer.text
    row_id: str = answer.json["id"]
    return row_id


def rows(stage: ApiStage, entity: str) -> dict[str, dict[str, Any]]:
    found = stage.call("POST", f"/api/query/{entity}", {}, ADMIN_TOKEN).json
    return {row["id"]: row for row in found}


def sign_in(stage: ApiStage, token: str, **options: Any) -> Carry:
    carry = plan_carry(stage.identity, facts_of(stage, token), USER, **options)
    assert carry is not None
    carry_out(stage.identity.writer.submit, carry.steps)
    return carry


def run_jobs(stage: ApiStage) -> int:
    stage.clock.advance(3)
    return carry_out_jobs(stage.identity)


def test_all_fields_of_users_are_carried_and_the_guest_is_gone(stage: ApiStage) -> None:
    token = stage.guest()
    guest = facts_of(stage, token).auth.user_id
    todo = insert(stage, "Todo", title="by reference", authorId=guest)
    both = insert(stage, "Task", title="both", authorId=guest, editorId=guest)
    edited = insert(stage, "Task", title="edited", authorId="other", editorId=guest)
    foreign = insert(stage, "Task", title="foreign", authorId="other", editorId=None)
    head = stage.engine.head
    carry = sign_in(stage, token)
    assert carry.extra() == {"carried": {"moved": 3, "skipped": 0}}
    assert rows(stage, "Todo")[todo]["authorId"] == USER
    tasks = rows(stage, "Task")
    assert (tasks[both]["authorId"], tasks[both]["editorId"]) == (USER, USER)
    assert (tasks[edited]["authorId"], tasks[edited]["editorId"]) == ("other", USER)
    assert tasks[foreign]["authorId"] == "other"
    assert stage.engine.head == head + 3, "a change event for each row"
    stage.clock.advance(1)
    assert stage.call("GET", "/api/auth/me", token=token).json["user_id"] is None
    (event,) = stage.identity.store.point(lambda reader: reader.records(
        "audit", [Condition("action", "=", "anonymous_merge")]
    ))
    assert orjson.loads(str(event["metadata"])) == {"guest": guest, "moved": 3, "skipped": 0}
    assert run_jobs(stage) == 1
    assert run_jobs(stage) == 0, "once"


def test_who_is_no_guest_carries_nothing(stage: ApiStage) -> None:
    facts = facts_of(stage, stage.user("u1"))
    assert plan_carry(stage.identity, facts, USER) is None
    assert plan_carry(stage.identity, CallFacts(), USER) is None


def make_marks(stage: ApiStage, guest: str | None) -> tuple[str, ...]:
    return (
        insert(stage, "Mark", list="a", userId=guest, stars=1),
        insert(stage, "Mark", list="b", userId=guest, stars=1),
        insert(stage, "Mark", list=None, userId=guest, stars=1),
        insert(stage, "Mark", list="a", userId=USER, stars=2),
        insert(stage, "Mark", list=None, userId=USER, stars=2),
    )


def test_a_row_that_the_user_has_already_is_skipped(stage: ApiStage) -> None:
    token = stage.guest()
    guest = facts_of(stage, token).auth.user_id
    taken, free, null, mine, other = make_marks(stage, guest)
    assert sign_in(stage, token).extra() == {"carried": {"moved": 2, "skipped": 1}}
    assert run_jobs(stage) == 1
    marks = rows(stage, "Mark")
    assert {row_id: row["userId"] for row_id, row in marks.items()} == {
        taken: guest, free: USER, null: USER, mine: USER, other: USER,
    }


def test_a_row_may_take_the_place_of_the_user_s(tmp_path: Path) -> None:
    with serve_api(tmp_path, app_of_guests("replace")) as stage:
        token = stage.guest()
        guest = facts_of(stage, token).auth.user_id
        taken, free, null, mine, other = make_marks(stage, guest)
        assert sign_in(stage, token).extra() == {"carried": {"moved": 3, "skipped": 0}}
        marks = rows(stage, "Mark")
        assert set(marks) == {taken, free, null, other} and mine not in marks
        assert {row["userId"] for row in marks.values()} == {USER}


def test_the_rest_is_moved_by_a_job_also_after_a_crash(
    stage: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CARRIED_ROWS", 3)
    token = stage.guest()
    guest = facts_of(stage, token).auth.user_id
    for number in range(5):
        insert(stage, "Task", title=f"{number}", authorId=guest)
    insert(stage, "Mark", list="a", userId=USER)
    insert(stage, "Mark", list="a", userId=guest)
    insert(stage, "Mark", list="b", userId=guest)
    assert sign_in(stage, token).extra() == {
        "carried": {"moved": 3, "skipped": 0, "pending": 4}
    }
    assert carry_out_jobs(stage.identity) == 0, "the guest's token is still known somewhere"
    written_late = insert(stage, "Task", title="late", authorId=guest)
    submit_all = stage.writer.submit_all

    def fail(ops: Any) -> Any:
        submit_all(ops[:1])
        raise RuntimeError("killed")

    monkeypatch.setattr(stage.writer, "submit_all", fail)
    with pytest.raises(RuntimeError, match="killed"):
        run_jobs(stage)
    monkeypatch.setattr(stage.writer, "submit_all", submit_all)
    assert run_jobs(stage) == 0, "another process may have it"
    stage.clock.advance(60)
    assert run_jobs(stage) == 1
    tasks = rows(stage, "Task")
    assert {row["authorId"] for row in tasks.values()} == {USER} and written_late in tasks
    marks = sorted((row["list"], row["userId"]) for row in rows(stage, "Mark").values())
    assert marks == sorted([("a", USER), ("a", guest), ("b", USER)])
    assert run_jobs(stage) == 0


def test_a_row_that_conflicts_meanwhile_refuses_the_transaction_and_a_new_plan_skips_it(
    stage: ApiStage
) -> None:
    token = stage.guest()
    facts = facts_of(stage, token)
    insert(stage, "Mark", list="a", userId=facts.auth.user_id)
    planned = plan_carry(stage.identity, facts, USER)
    assert planned is not None and planned.moved == 1
    insert(stage, "Mark", list="a", userId=USER)
    with pytest.raises(UniqueViolation):
        carry_out(stage.identity.writer.submit, planned.steps)
    assert stage.call("GET", "/api/auth/me", token=token).json["is_guest"]
    again = plan_carry(stage.identity, facts, USER)
    assert again is not None and (again.moved, again.skipped) == (0, 1)
    left = plan_carry(stage.identity, facts, USER, moves_rows=False)
    assert left is not None and left.extra() == {
        "carried": {"moved": 0, "skipped": 0, "pending": 1}
    }


def finish(stage: ApiStage, token: str | None, steps: list[Any] | None = None) -> Any:
    facts = CallFacts() if token is None else facts_of(stage, token)
    answer = finish_sign_in(
        stage.identity, Call(b"", {}, facts), USER, "password", steps or []
    )
    return orjson.loads(answer.body)


def test_every_sign_in_of_a_guest_carries_and_says_so(stage: ApiStage) -> None:
    token = stage.guest()
    guest = facts_of(stage, token).auth.user_id
    task = insert(stage, "Task", title="mine", authorId=guest)
    assert "carried" not in finish(stage, None)
    signed_in = finish(stage, token)
    assert signed_in["carried"] == {"moved": 1, "skipped": 0}
    assert rows(stage, "Task")[task]["authorId"] == USER
    assert stage.signals == [SessionRevoked(session_id_of(token))]
    me = stage.call("GET", "/api/auth/me", token=signed_in["token"]).json
    assert me["user_id"] == USER and "is_guest" not in me


def test_a_sign_in_whose_rows_change_meanwhile_plans_again(
    stage: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = stage.guest()
    guest = facts_of(stage, token).auth.user_id
    gone = insert(stage, "Task", title="goes", authorId=guest)
    insert(stage, "Mark", list="a", userId=guest)
    submit = stage.writer.submit

    def change_first(op: Any) -> Any:
        monkeypatch.setattr(stage.writer, "submit", submit)
        insert(stage, "Mark", list="a", userId=USER)
        stage.call("DELETE", f"/api/entities/Task/{gone}", token=ADMIN_TOKEN)
        return submit(op)

    monkeypatch.setattr(stage.writer, "submit", change_first)
    assert finish(stage, token)["carried"] == {"moved": 0, "skipped": 1}


def test_an_error_of_the_sign_in_itself_is_raised_to_its_flow(stage: ApiStage) -> None:
    token = stage.guest()
    insert(stage, "Mark", list="a", userId=USER)
    entity = stage.identity.app.manifest.by_name["Mark"]
    again = make_insert(
        stage.identity.app, entity, ADMIN, {"list": "a", "userId": USER, "stars": None}
    )
    with pytest.raises(UniqueViolation):
        finish(stage, token, [again])
    assert stage.call("GET", "/api/auth/me", token=token).json["is_guest"]


# --- POST /api/auth/upgrade ----------------------------------------------------------------


def test_an_upgrade_makes_the_guest_s_session_the_user_s(tmp_path: Path) -> None:
    with serve_api(tmp_path, app_of_guests(), {"PYLON_DEV_MODE": "true"}) as stage:
        token = stage.guest()
        facts = facts_of(stage, token)
        renewed = stage.call("POST", "/api/auth/refresh", token=token).json["token"]
        task = insert(stage, "Task", title="mine", authorId=facts.auth.user_id)
        answer = stage.call("POST", "/api/auth/upgrade", {"user_id": USER}, renewed)
        assert answer.json == {
            "upgraded": True, "user_id": USER, "carried": {"moved": 1, "skipped": 0},
        }
        assert SessionRevoked(session_id_of(token)) in stage.signals, "the guest's sockets close"
        stage.clock.advance(1)
        me = stage.call("GET", "/api/auth/me", token=renewed).json
        assert me["user_id"] == USER and "is_guest" not in me
        assert stage.call("GET", "/api/auth/me", token=token).json["user_id"] is None
        assert rows(stage, "Task")[task]["authorId"] == USER
        store = stage.identity.store
        assert store.point(lambda r: r.family_ends([session_id_of(token)])) == {}
        again = stage.call("POST", "/api/auth/upgrade", {"user_id": USER}, renewed)
        assert again.json["error"]["code"] == "UPGRADE_FAILED"
        missing = stage.call("POST", "/api/auth/upgrade", {}, renewed)
        assert missing.json["error"]["code"] == "MISSING_USER_ID"


def test_in_production_an_administrator_upgrades_with_the_guest_s_token(stage: ApiStage) -> None:
    token = stage.guest()
    refused = stage.call("POST", "/api/auth/upgrade", {"user_id": USER}, token)
    assert refused.json["error"]["code"] == "FORBIDDEN"
    body = {"user_id": USER, "token": token}
    assert stage.call("POST", "/api/auth/upgrade", body, ADMIN_TOKEN).json["upgraded"]
    stage.clock.advance(1)
    assert stage.call("GET", "/api/auth/me", token=token).json["user_id"] == USER
