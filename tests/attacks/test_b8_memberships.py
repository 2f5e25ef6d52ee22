"""B8: a caller whose membership has ended tries to keep what it opened, in the hub and by pulls."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import orjson
import pytest

from pylon import limits
from pylon.auth_context import ADMIN, AuthContext, Caller
from pylon.changelog.feed import Feed as LogFeed
from pylon.changelog.pull import build_delta
from pylon.errors import ResyncRequired
from tests.support.membership_stage import MembershipStage, Replica
from tests.support.wait import run_greenlets_until
from workers.hub.history import History
from workers.hub.replay import Replay

ADA, BOB = AuthContext(user_id="ada"), AuthContext(user_id="bob")
LONG = "x" * 200_000


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[MembershipStage]:
    made = MembershipStage(tmp_path)
    yield made
    made.close()


def member(number: int, user: str, room: str = "r1") -> tuple[str, str, int, dict[str, Any]]:
    return "put", "Member", number, {"roomId": room, "userId": user, "level": 0}


def test_an_own_change_behind_many_changes_of_others_is_not_overlooked(
    stage: MembershipStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RELATED_EVENTS", 5)
    stage.carry_out([member(1, "ada"), ("put", "Message", 1, {"roomId": "r1"})], 0)
    pulled = Replica(stage, ADA, is_live=False)
    pulled.pull()
    live = Replica(stage, ADA)
    live.connect()
    live.connection.abort()
    cursor = pulled.cursor
    stage.carry_out([member(number, "bob") for number in range(2, 12)], 1)
    stage.carry_out([("drop", "Member", 1, {})], 2)
    with pytest.raises(ResyncRequired):
        build_delta(LogFeed(stage.pool), stage.app.rules, ADA, cursor)
    pulled.pull()
    pulled.check("by pulls")
    live.reconnect()
    stage.settle()
    live.check("live")


def read_all(sock: socket.socket, connection: Any) -> bytes:
    """Return what a slow reader reads at last."""
    received = b""

    def is_read() -> bool:
        nonlocal received
        while True:
            try:
                data = sock.recv(1 << 20)
            except BlockingIOError:
                break
            if not data:
                break
            received += data
        return not connection.outbox_bytes

    run_greenlets_until("the outbox is empty", is_read)
    for _ in range(5):
        gevent.sleep(0.01)
        is_read()
    return received


def begin_slow_difference(stage: MembershipStage) -> Replica:
    """Return ada's replica, whose socket does not take the rows that a membership has opened."""
    stage.database.commit(*[
        stage.database.insert("Message", f"{n:040x}", roomId="r1", text=LONG) for n in range(1, 12)
    ])
    ada = Replica(stage, ADA)
    ada.connect()
    stage.carry_out([member(1, "ada")], 1)
    stage.feed.check_head()
    run_greenlets_until("the difference is under way", lambda: ada.connection.outbox_bytes > 0)
    return ada


def test_a_new_identity_does_not_inherit_the_memberships_of_the_old_one(
    stage: MembershipStage,
) -> None:
    ada = begin_slow_difference(stage)
    stage.hub.change_caller(ada.connection, Caller(BOB))
    read_all(ada._socket, ada.connection)
    run_greenlets_until("bob has joined", lambda: stage.hub.memberships.has_sets(BOB))
    other = Replica(stage, BOB)
    other.connect()
    stage.database.commit(
        stage.database.insert("Message", f"{99:040x}", roomId="r1", text="secret")
    )
    stage.feed.check_head()
    assert b"secret" not in read_all(ada._socket, ada.connection)
    other.listen()
    assert other.events == []


def test_an_admin_who_becomes_a_member_during_a_replay_is_served_as_one(
    stage: MembershipStage,
) -> None:
    stage.carry_out([("put", "Message", 1, {"roomId": "r1"}), member(1, "ada")], 0)
    ada = Replica(stage, ADA)
    ada.connect()
    stage.replicas.remove(ada)
    ours = ada.connection
    stage.hub._leave(ours)
    ours.caller = Caller(ADMIN)
    stage.database.commit(*[
        stage.database.insert("Note", f"{n:040x}", roomId="r2", text=LONG) for n in range(1, 12)
    ])
    starts: Any = None  # no connection starts without a cursor here
    replay = Replay(stage.hub, stage.feed, History(stage.pool), starts, stage.replay)
    stage.feed.check_head()
    running = gevent.spawn(replay.run, ours, ours.last_seq)
    run_greenlets_until("the replay is under way", lambda: ours.outbox_bytes > 0)
    stage.hub.change_caller(ours, Caller(ADA))
    stage.carry_out([("drop", "Member", 1, {})], 1)
    stage.feed.check_head()
    read_all(ada._socket, ours)
    running.join(10)
    assert running.successful()
    assert stage.hub.memberships.has_sets(ADA)
    stage.carry_out([member(2, "ada")], 2)
    stage.settle()
    stage.carry_out([("put", "Message", 2, {"roomId": "r1"})], 3)
    stage.feed.check_head()
    assert f"{2:040x}".encode() in read_all(ada._socket, ours)


def test_a_live_query_that_was_ended_does_not_begin_again(stage: MembershipStage) -> None:
    """The client's message that ends it waits when the membership changes."""
    stage.carry_out([("put", "Message", 1, {"roomId": "r1"}), member(1, "ada")], 0)
    ada = Replica(stage, ADA)
    ada.connect()
    waiting: list[Any] = []
    stage.live.on_restart(lambda *task: waiting.append(task))
    stage.live.handle_message(
        ada.connection, {"type": "subscribe", "sub_id": "s", "entity": "Message"}
    )
    stage.carry_out([("drop", "Member", 1, {})], 1)
    stage.feed.check_head()
    assert len(waiting) == 1
    stage.live.handle_message(ada.connection, {"type": "unsubscribe", "sub_id": "s"})
    for task in waiting:
        stage.live.handle_message(*task)
    ada.listen()
    assert [each["type"] for each in ada.messages] == ["subscribed", "unsubscribed"]


# A published client names no cursor. Its socket begins at the cursor before its last pull, because
# the server does not know whether the client got the answer.


def test_a_membership_that_ended_between_pull_and_socket_leaves_no_rows(
    stage: MembershipStage,
) -> None:
    stage.carry_out([("put", "Message", 1, {"roomId": "r1"})], 0)
    ada = Replica(stage, ADA)
    ada.pull()
    before = ada.cursor
    stage.carry_out([member(1, "ada"), ("put", "Message", 2, {"roomId": "r1"})], 1)
    ada.pull()
    assert len(ada.rows) == 3 + len(stage.rows("Unpriced", ADA))
    stage.carry_out([("drop", "Member", 1, {})], 2)
    ada.connect_at(before)
    stage.settle()
    ada.check("after the membership has ended")


def test_a_membership_that_came_back_between_pull_and_socket_has_its_rows(
    stage: MembershipStage,
) -> None:
    stage.carry_out([("put", "Message", 1, {"roomId": "r1"}), member(1, "ada")], 0)
    ada = Replica(stage, ADA)
    ada.pull()
    before = ada.cursor
    stage.carry_out([("drop", "Member", 1, {}), ("put", "Message", 2, {"roomId": "r1"})], 1)
    ada.pull()
    assert not ada.rows
    stage.carry_out([member(2, "ada")], 2)
    ada.connect_at(before)
    stage.settle()
    ada.check("after the membership came back")


def test_a_socket_before_the_last_pull_tells_no_ids_of_rows_that_were_never_readable(
    stage: MembershipStage,
) -> None:
    stage.carry_out([("put", "Message", 1, {"roomId": "r1"}), ("put", "Ranked", 1, {
        "roomId": "r1", "level": 9})], 0)
    ada = Replica(stage, ADA)
    ada.pull()
    before = ada.cursor
    stage.carry_out([member(1, "ada"), ("drop", "Member", 1, {})], 1)
    ada.connect_at(before)
    stage.settle()
    assert "Ranked" not in {entity for entity, _ in ada.kinds()}
    ada.check("at the end")


def test_a_client_that_was_cut_off_within_a_difference_gets_the_rest(
    stage: MembershipStage,
) -> None:
    stage.carry_out([("put", "Message", n, {"roomId": "r1"}) for n in (1, 2, 3)], 0)
    ada = Replica(stage, ADA)
    ada.pull()
    stage.carry_out([member(1, "ada")], 1)
    answer = build_delta(LogFeed(stage.pool), stage.app.rules, ADA, ada.cursor)
    ada.cursor = orjson.loads(answer.body)["changes"][0]["seq"]  # the others never came
    assert build_delta(LogFeed(stage.pool), stage.app.rules, ADA, ada.cursor).body
    ada.connect()
    stage.settle()
    ada.check("after the rest")


def test_a_client_whose_cursor_is_below_the_end_of_its_difference_converges(
    stage: MembershipStage,
) -> None:
    """The delete has the seq of the row's own change, below that of the ban."""
    stage.carry_out([("put", "Open", 1, {"roomId": "r1"})], 0)
    ada = Replica(stage, ADA)
    ada.connect()
    stage.carry_out([("put", "Open", 1, {"roomId": "r1"})], 1)
    stage.carry_out([("put", "Ban", 1, {"roomId": "r1", "userId": "ada"})], 2)
    stage.settle()
    assert ada.rows == {}
    stage.carry_out([("put", "Ban", 1, {"roomId": "r1", "userId": "bob"})], 3)
    ada.reconnect()
    ada.check("after the ban has ended")


def test_a_mark_in_a_membership_moves_no_rows(stage: MembershipStage) -> None:
    stage.carry_out([member(1, "ada"), ("put", "Message", 1, {"roomId": "r1"})], 0)
    ada = Replica(stage, ADA)
    ada.connect()
    stage.settle()
    stage.caught_up.clear()
    cursor = ada.cursor
    verb, entity, number, values = member(1, "ada")
    stage.carry_out([(verb, entity, number, {**values, "note": "read to 1"})], 1)
    stage.settle()
    assert not stage.caught_up
    answer = orjson.loads(build_delta(LogFeed(stage.pool), stage.app.rules, ADA, cursor).body)
    assert [event["entity"] for event in answer["changes"]] == ["Member"]
    ada.check("after the mark")
