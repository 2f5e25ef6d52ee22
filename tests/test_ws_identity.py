"""Who a socket speaks for: `auth` messages, sessions that end, and the end of old connections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pylon.auth.issue import SessionIssuer
from pylon.auth.session_life import SessionLife
from pylon.bus.messages import SessionRevoked
from pylon.clock import SystemClock, SystemRandom
from pylon.storage.auth_ops import Condition, EndSessions, SetRecords
from tests.support.stage import ADMIN_TOKEN, ISSUER, Stage, Worker
from tests.support.stores import TestStore
from tests.support.websocket_client import WebSocketClient
from workers.ws import frames

pytestmark = pytest.mark.stores


@pytest.fixture(scope="module")
def stage(
    tested_store: TestStore, processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("identity"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def ws(stage: Stage) -> Worker:
    return stage.start("ws", PYLON_SOCKETS_PER_IP="0")


def connect(stage: Stage, worker: Worker, token: str | None = None) -> WebSocketClient:
    return WebSocketClient(worker.port, path=f"/?since={stage.engine.head}", token=token)


def become(client: WebSocketClient, token: Any) -> Any:
    """Send `auth`; the answer. Events before it are handed to the caller by `seen`."""
    client.send_frame(frames.TEXT, json.dumps({"type": "auth", "token": token}).encode())
    while True:
        message = client.read_json()
        if message.get("type") in ("auth", "error"):
            return message


def is_nobody_s(stage: Stage, worker: Worker, token: str) -> None:
    """A socket with a dead token is anonymous from its first moment on."""
    client = connect(stage, worker, token)
    stage.write(
        stage.insert("Mine", text="no", ownerId="bob"),
        stage.insert("Mine", text="no", ownerId="ada"),
        stage.insert("Public", text="all"),
    )
    assert client.read_events(1) == [("insert", "all")]


def test_an_identity_changes_without_loss_repetition_or_leak(stage: Stage, ws: Worker) -> None:
    (ada, _), (bob, _) = stage.login("ada"), stage.login("bob")
    client = connect(stage, ws, ada)
    row = stage.insert("Mine", text="ada's", ownerId="ada")
    head = stage.write(row, stage.insert("Public", text="1")).events[-1].seq
    assert [text for _, text in client.read_events(2)] == ["ada's", "1"]
    assert become(client, bob) == {"type": "auth", "ok": True, "user_id": "bob", "last_seq": head}
    stage.write(
        stage.update("Mine", row.row_id, text="still ada's"),
        stage.insert("Mine", text="bob's", ownerId="bob"),
        stage.insert("Public", text="2"),
    )
    assert [text for _, text in client.read_events(2)] == ["bob's", "2"]
    assert become(client, None)["user_id"] is None
    stage.write(
        stage.insert("Mine", text="bob's", ownerId="bob"),
        stage.insert("Member", text="members"),
        stage.insert("Public", text="3"),
    )
    assert client.read_events(1) == [("insert", "3")]
    assert become(client, ADMIN_TOKEN)["code"] == "UNAUTHORIZED"  # it counts in a header only
    stage.write(stage.insert("Secret", text="secret"), stage.insert("Public", text="4"))
    assert client.read_events(1) == [("insert", "4")]


@pytest.mark.parametrize(
    ("token", "code"), [("pylon_nobody", "UNAUTHORIZED"), (7, "INVALID_DATA")]
)
def test_a_bad_token_is_an_error_and_the_identity_stays(
    stage: Stage, ws: Worker, token: Any, code: str
) -> None:
    client = connect(stage, ws, stage.login("ada")[0])
    answer = become(client, token)
    assert (answer["type"], answer["for"], answer["code"]) == ("error", "auth", code)
    stage.write(stage.insert("Mine", text="ada's", ownerId="ada"))
    assert client.read_events(1) == [("insert", "ada's")]


def test_the_new_session_closes_the_socket_and_the_old_no_longer_does(
    stage: Stage, ws: Worker
) -> None:
    (ada, ada_id), (bob, bob_id) = stage.login("ada"), stage.login("bob")
    client = connect(stage, ws, ada)
    become(client, bob)
    stage.logout(ada_id)
    stage.tell(SessionRevoked(ada_id))
    stage.write(stage.insert("Public", text="still here"))
    assert client.read_events(1) == [("insert", "still here")]
    stage.logout(bob_id)
    stage.tell(SessionRevoked(bob_id))
    assert client.read_close() == (4401, "session revoked")
    is_nobody_s(stage, ws, bob)


def test_a_lost_revocation_is_found_in_the_store(stage: Stage, ws: Worker) -> None:
    token, session_id = stage.login("ada")
    client, other = connect(stage, ws, token), connect(stage, ws, stage.login("bob")[0])
    stage.logout(session_id)  # and no signal
    assert client.read_close() == (4401, "session revoked")
    stage.write(stage.insert("Public", text="others stay"))
    assert other.read_events(1) == [("insert", "others stay")]
    is_nobody_s(stage, ws, token)


def test_a_socket_belongs_to_the_family_of_its_session(stage: Stage, ws: Worker) -> None:
    token, family = stage.login("ada")
    client = connect(stage, ws, token)
    row = stage.pool.point(lambda reader: reader.session(family))
    assert row is not None
    renewed = ISSUER.rotate(row)
    is_old = Condition("session_id", "=", family)
    now_s = SystemClock().wall_ns() // 10**9
    stage.write(SetRecords("sessions", [is_old], {"rotated_at": now_s - 60}, 1), renewed.put)
    stage.tell(SessionRevoked(family, is_certain=False))
    assert become(client, renewed.token)["user_id"] == "ada"
    stage.write(EndSessions([is_old]))  # as retention does with old tokens
    stage.tell(SessionRevoked(family, is_certain=False))
    stage.write(stage.insert("Mine", text="still ada's", ownerId="ada"))
    assert client.read_events(1) == [("insert", "still ada's")]
    late = connect(stage, ws, renewed.token)
    stage.write(EndSessions([Condition("family", "=", family)]))  # and no signal
    assert [client.read_close(), late.read_close()] == [(4401, "session revoked")] * 2


def test_a_session_that_expires_closes_its_sockets(stage: Stage, ws: Worker) -> None:
    issuer = SessionIssuer(SessionLife(2, 0, is_sliding=False), SystemClock(), SystemRandom())
    made = issuer.issue("ada", device="test")
    stage.write(made.put)
    client = connect(stage, ws, made.token)
    assert client.read_close() == (4401, "session expired")
    late = connect(stage, ws, made.token)
    stage.write(
        stage.insert("Mine", text="ada's", ownerId="ada"), stage.insert("Public", text="end")
    )
    assert late.read_events(1) == [("insert", "end")]
