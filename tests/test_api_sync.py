"""Pull and push: hints, bounds, identities, long snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pylon import limits
from pylon.api.sync import pull
from pylon.api.sync.hints import HintPublisher
from pylon.auth.tokens import session_id_of
from pylon.changelog.hints import hint_key
from pylon.clock import ManualClock
from pylon.errors import QueryTimeout, StoreUnavailable
from pylon.errors.wire import WireError
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api

pytestmark = pytest.mark.stores

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "sync", "version": "1.0.0",
    "entities": [{
        "name": "Note", "indexes": [], "relations": [],
        "fields": [
            {"name": "text", "type": "string", "optional": False, "unique": False},
            {"name": "ownerId", "type": "string", "optional": True, "unique": False},
        ],
    }],
    "routes": [], "queries": [], "actions": [],
    "policies": [{"name": "all", "entity": "Note", "allowRead": "true",
                  "allowWrite": "data.ownerId == null || auth.userId == data.ownerId"}],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


def insert(op_id: Any = None, **data: Any) -> dict[str, Any]:
    return {"entity": "Note", "row_id": "_pending_1", "kind": "insert", "op_id": op_id,
            "data": {"text": "x", **data}}


def push(server: ApiStage, *changes: Any, token: str | None = None, **more: Any) -> Any:
    answer = server.call("POST", "/api/sync/push", {"changes": list(changes), **more}, token)
    assert answer.status_code == 200, answer.text
    return answer.json


def test_a_pull_is_hinted_under_its_session_or_its_address(server: ApiStage) -> None:
    token = server.guest()
    push(server, insert(), insert(), insert())
    server.call("GET", "/api/sync/pull?since=0", token=token)
    server.call("GET", "/api/sync/pull?since=2", token=token)
    server.call("GET", "/api/sync/pull?since=3")
    server.call("GET", "/api/sync/pull?since=1", token=ADMIN_TOKEN)
    server.call("GET", "/api/sync/pull?since=99", token=token)  # 410: nothing was pulled
    mine, address = hint_key(session_id_of(token), ""), hint_key(None, "127.0.0.1")
    # A snapshot leaves its client at the head; of a delta only the beginning is sure.
    assert server.hinted == [(mine, 3), (mine, 2), (address, 3), (address, 1)]


def test_a_failed_pull_is_hinted_at_the_cursor_of_its_client(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(server, insert(), insert(), insert())

    def late(*_: object) -> NoReturn:
        raise QueryTimeout("too slow")

    monkeypatch.setattr(pull, "build_delta", late)
    assert server.call("GET", "/api/sync/pull?since=2").status_code == 503
    assert server.hinted == [(hint_key(None, "127.0.0.1"), 2)]


def test_a_hint_is_written_again_when_it_is_smaller_or_old() -> None:
    clock, written = ManualClock(), list[tuple[int, int]]()
    hints = HintPublisher(lambda key, cursor: written.append((key, cursor)), clock)
    for key, cursor in ((1, 7), (2, 3), (1, 5), (1, 9), (1, 5)):
        hints.publish(key, cursor)
    assert written == [(1, 7), (2, 3), (1, 5)]
    clock.advance(limits.HINT_WINDOW_S - limits.HINT_TTL_S)
    hints.publish(1, 9)
    assert written[3:] == [(1, 9)]


def test_a_pull_whose_note_cannot_be_written_is_not_answered(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: HintPublisher, key: int, cursor: int) -> None:
        raise StoreUnavailable("The runtime folder cannot be written to")

    monkeypatch.setattr(HintPublisher, "publish", full)
    for since in (0, 1):
        push(server, insert())
        answer = server.call("GET", f"/api/sync/pull?since={since}")
        assert (answer.status_code, answer.json["error"]["code"]) == (503, "STORE_UNAVAILABLE")


def test_op_ids_belong_to_the_user_or_else_to_the_client(server: ApiStage) -> None:
    ada, bob = server.user("ada"), server.user("bob")
    assert push(server, insert("op"), token=ada)["deduped"] == 0
    assert push(server, insert("op"), token=bob)["deduped"] == 0
    assert push(server, insert("op"), client_id="c1")["deduped"] == 0
    assert push(server, insert("op"), client_id="c2")["deduped"] == 0
    assert push(server, insert("op"))["deduped"] == 0
    again = push(server, insert("op"), token=server.user("ada"), client_id="other")
    assert (again["applied"], again["deduped"]) == (1, 1)
    assert push(server, insert("op"), client_id="c1")["results"][0]["status"] == "replayed"
    assert push(server)["cursor"]["last_seq"] == 5


@pytest.mark.parametrize("op_id", ["x" * 201, 7, {}])
def test_op_ids_have_a_form(server: ApiStage, op_id: Any) -> None:
    answer = push(server, insert(op_id))
    assert answer["errors"] == ["insert Note: op_id must be text of at most 200 characters"]
    assert answer["results"][0]["error"]["code"] == "INVALID_DATA"


def test_policies_are_judged_for_each_change(server: ApiStage) -> None:
    ada = server.user("ada")
    answer = push(server, insert(ownerId="bob"), insert(ownerId="ada"), insert("x"), token=ada)
    assert [r["status"] for r in answer["results"]] == ["error", "applied", "applied"]
    assert answer["errors"] == ["insert Note: Access denied by policy"]
    assert (answer["applied"], answer["cursor"]["last_seq"]) == (2, 2)


def test_changes_of_one_row_keep_their_order(server: ApiStage) -> None:
    row_id = "0" * 40
    change = {"entity": "Note", "row_id": row_id}
    answer = push(
        server, insert(id=row_id), {**change, "kind": "update", "data": {"text": "y"}},
        {**change, "kind": "delete"}, {**change, "kind": "update", "data": {"text": "z"}},
    )
    assert [r["status"] for r in answer["results"]] == ["applied", "applied", "applied", "error"]
    assert answer["errors"] == [f"update Note/{row_id}: Row not found"]


def test_of_a_long_push_the_beginning_is_done_and_the_rest_named(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUSH_CHANGES", 3)
    answer = push(server, *[insert() for _ in range(5)])
    assert (answer["applied"], len(answer["results"]), answer["remaining"]) == (3, 3, 2)
    assert "remaining" not in push(server, insert())


def test_a_failing_store_fails_the_push_and_not_its_changes(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = server.writer.submit_all

    def failing(ops: Any) -> Any:
        refusal = WireError.from_error(StoreUnavailable("disk full"))
        return [type(reply)(reply.id, error=refusal) for reply in real(ops)]

    monkeypatch.setattr(server.writer, "submit_all", failing)
    answer = server.call("POST", "/api/sync/push", {"changes": [insert("op")]})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json["error"]["code"] == "STORE_UNAVAILABLE"


def test_a_large_snapshot_is_one_answer(server: ApiStage) -> None:
    text = "x" * 500
    for _ in range(3):
        push(server, *[insert(text=text) for _ in range(700)])
    answer = server.call("GET", "/api/sync/pull?since=0")
    assert len(answer.content) > 1_000_000
    assert "content-length" not in answer.headers
    page = answer.json
    assert len({change["row_id"] for change in page["changes"]}) == 2100
    assert page["cursor"]["last_seq"] == 2100
    assert not page["has_more"]
    assert server.hinted == [(hint_key(None, "127.0.0.1"), 2100)]


def test_a_delta_is_paged(server: ApiStage) -> None:
    push(server, *[insert() for _ in range(900)])
    push(server, *[insert() for _ in range(900)])
    page = server.call("GET", "/api/sync/pull?since=1").json
    assert page["cursor"]["last_seq"] == 1001
    assert page["has_more"]
    assert server.hinted == [(hint_key(None, "127.0.0.1"), 1001)]
