"""Membership policies in hubs and pulls, against a model of what each caller may read.

Rows and memberships come, go and change in random commits. After each step every client, live or by
pulls, holds exactly the rows that its caller may read, and it was never sent an image that its
caller could not read at some commit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.changelog.feed import Feed as LogFeed
from pylon.changelog.pull import build_delta
from pylon.errors import ResyncRequired
from tests.support.examples import count_examples
from tests.support.membership_stage import MembershipStage, Replica
from tests.support.wait import run_greenlets_until

pytestmark = pytest.mark.stores

USERS = ["ada", "bob"]
CALLERS = [AuthContext(user_id=user) for user in USERS]
ROOMS = ["r1", "r2", None]
PRICES = ["1", "1.5", None]
TIMES = ["2026-11-28T00:00:00.000000Z", None]
JUDGED = ["Message", "Note", "Open", "Deep", "Ranked", "Priced", "Unpriced", "Since"]


@pytest.fixture(params=["local", "remote"])
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MembershipStage]:
    made = MembershipStage(tmp_path, is_remote=request.param == "remote")
    yield made
    made.close()


ROW = st.tuples(
    st.sampled_from(["put", "put", "drop"]), st.just("judged"), st.integers(1, 2),
    st.fixed_dictionaries({
        "roomId": st.sampled_from(ROOMS), "ownerId": st.sampled_from([None, *USERS]),
        "level": st.integers(0, 2), "price": st.sampled_from(PRICES),
        "at": st.sampled_from(TIMES),
    }),
)
MEMBER = st.tuples(
    st.sampled_from(["put", "put", "drop"]), st.just("Member"), st.integers(1, 3),
    st.fixed_dictionaries({
        "roomId": st.sampled_from(["r1", "r2"]), "userId": st.sampled_from(USERS),
        "level": st.integers(0, 2), "price": st.sampled_from(PRICES),
        "at": st.sampled_from(TIMES),
    }),
)
BAN = st.tuples(
    st.sampled_from(["put", "drop"]), st.just("Ban"), st.integers(1, 2),
    st.fixed_dictionaries({
        "roomId": st.sampled_from(["r1", "r2"]), "userId": st.sampled_from(USERS),
    }),
)
ROOM = st.tuples(
    st.sampled_from(["put", "drop"]), st.just("Room"), st.integers(1, 2),
    st.fixed_dictionaries({"name": st.sampled_from(["r1", "r2"])}),
)
STEP = st.lists(st.one_of(ROW, MEMBER, MEMBER, BAN, ROOM), min_size=1, max_size=4)


@settings(max_examples=count_examples(200), deadline=None)
@given(
    st.sampled_from(JUDGED),
    st.lists(
        st.tuples(STEP, st.booleans(), st.booleans(), st.integers(0, 5)),
        min_size=2, max_size=12,
    ),
    st.booleans(),
)
def test_every_client_holds_what_its_caller_may_read(
    judged: str, steps: list[tuple[list[Any], bool, bool, int]], is_remote: bool,
) -> None:
    """Args: each step is operations, whether they are one commit, whether the feed publishes
    after them, and which client reconnects or pulls."""
    with tempfile.TemporaryDirectory() as folder:
        stage = MembershipStage(Path(folder), is_remote=is_remote)
        try:
            live = [Replica(stage, auth) for auth in CALLERS]
            pulled = [Replica(stage, auth, is_live=False) for auth in CALLERS]
            for replica in live:
                replica.connect()
            away: int | None = None  # the cursor of the first client before its last pull
            for number, (ops, is_one_commit, is_published, reconnecting) in enumerate(steps):
                named = [(verb, judged if entity == "judged" else entity, row_number, values)
                         for verb, entity, row_number, values in ops]
                stage.carry_out(named, number, one_commit=is_one_commit)
                if away is not None:
                    live[0].connect_at(away)
                    away = None
                if is_published:
                    stage.settle()
                    for replica in live:
                        replica.check(f"live after step {number}")
                if reconnecting < len(live):
                    live[reconnecting].reconnect()
                if reconnecting == 4 and live[0].cursor:
                    away = live[0].cursor
                    live[0].disconnect()
                    live[0].pull()
                if reconnecting % 2:
                    pulled[reconnecting % 2].pull()
            if away is not None:
                live[0].connect_at(away)
            stage.settle()
            for replica in live:
                replica.check("live at the end")
            for replica in pulled:
                replica.pull()
                replica.check("pulled at the end")
        finally:
            stage.close()


def test_a_membership_opens_rows_and_its_end_deletes_them(stage: MembershipStage) -> None:
    stage.carry_out([("put", "Message", n, {"roomId": "r1"}) for n in (1, 2, 3)], 0)
    ada = Replica(stage, CALLERS[0])
    ada.connect()
    assert ada.rows == {}
    stage.carry_out([("put", "Member", 1, {"roomId": "r1", "userId": "ada", "level": 0})], 1)
    stage.settle()
    assert [kind for entity, kind in ada.kinds() if entity == "Message"] == ["insert"] * 3
    ada.check("after the membership")
    ada.events.clear()
    stage.carry_out([("drop", "Member", 1, {})], 2)
    stage.settle()
    assert ada.rows == {}
    assert {kind for _, kind in ada.kinds()} == {"delete"}
    assert all("data" not in event for event in ada.events)


def test_others_do_not_hear_of_a_membership(stage: MembershipStage) -> None:
    stage.carry_out([("put", "Message", 1, {"roomId": "r1"})], 0)
    bob = Replica(stage, CALLERS[1])
    bob.connect()
    stage.settle()
    stage.carry_out([("put", "Member", 1, {"roomId": "r1", "userId": "ada", "level": 0})], 1)
    stage.settle()
    assert bob.events == []
    assert not stage.caught_up, "bob left the fan-out for a change that concerns ada only"


def test_more_rows_than_a_difference_holds_make_the_client_resync(
    stage: MembershipStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RELATED_ROWS", 2)
    stage.carry_out([("put", "Message", n, {"roomId": "r1"}) for n in (1, 2, 3)], 0)
    ada = Replica(stage, CALLERS[0])
    ada.connect()
    cursor = ada.cursor
    stage.carry_out([("put", "Member", 1, {"roomId": "r1", "userId": "ada", "level": 0})], 1)
    stage.settle()
    assert not ada.connection.is_open
    assert [type(error) for error in stage.refused] == [ResyncRequired]
    with pytest.raises(ResyncRequired):
        build_delta(LogFeed(stage.pool), stage.app.rules, CALLERS[0], cursor)


def test_a_membership_within_one_commit_shows_nothing(stage: MembershipStage) -> None:
    ada = Replica(stage, CALLERS[0])
    ada.connect()
    stage.carry_out(
        [
            ("put", "Member", 1, {"roomId": "r1", "userId": "ada", "level": 0}),
            ("put", "Message", 1, {"roomId": "r1"}),
            ("drop", "Member", 1, {}),
        ],
        0, one_commit=True,
    )
    stage.settle()
    assert ada.events == []


def test_a_row_in_view_between_the_ends_of_a_difference_leaves_the_client(
    stage: MembershipStage,
) -> None:
    """The client pulled the row after the cursor at which the server begins."""
    stage.carry_out([("put", "Member", 3, {"userId": "ada", "price": "1.5"})], 0)
    ada = Replica(stage, CALLERS[0])
    ada.connect()
    cursor = ada.cursor
    ada.disconnect()
    stage.carry_out([("put", "Unpriced", 2, {"price": "1"})], 1)
    ada.pull()
    stage.carry_out([("put", "Unpriced", 2, {"price": "1.5"})], 2)
    stage.carry_out([("put", "Room", 1, {"name": "r2"})], 3)
    ada.connect_at(cursor)
    stage.settle()
    ada.check("after the row is hidden")


def test_a_row_that_was_never_in_view_is_not_named(stage: MembershipStage) -> None:
    """A row that is made and changed while a membership hides it, between two related changes."""
    stage.carry_out([("put", "Member", 3, {"userId": "ada", "price": "1"})], 0)
    ada = Replica(stage, CALLERS[0])
    ada.connect()
    cursor = ada.cursor
    ada.disconnect()
    stage.carry_out([("put", "Unpriced", 2, {"price": "1"})], 1)
    stage.carry_out([("put", "Unpriced", 2, {"price": "1", "level": 1})], 2)
    stage.carry_out([("put", "Room", 1, {"name": "r2"})], 3)
    ada.connect_at(cursor)
    stage.settle()
    assert "Unpriced" not in [entity for entity, _ in ada.kinds()]
    ada.check("at the end")


def test_a_live_query_begins_again_when_the_callers_memberships_change(
    stage: MembershipStage,
) -> None:
    stage.carry_out([("put", "Message", n, {"roomId": "r1"}) for n in (1, 2)], 0)
    ada = Replica(stage, CALLERS[0])
    ada.connect()
    stage.live.handle_message(
        ada.connection, {"type": "subscribe", "sub_id": "s", "entity": "Message"}
    )
    stage.carry_out([("put", "Member", 1, {"roomId": "r1", "userId": "ada", "level": 0})], 1)
    stage.carry_out([("put", "Message", 3, {"roomId": "r1"})], 2)
    stage.settle()
    assert [len(each["rows"]) for each in ada.messages] == [0, 3]
    stage.carry_out([("drop", "Member", 1, {})], 3)
    stage.settle()
    assert [len(each["rows"]) for each in ada.messages] == [0, 3, 0]
    ada.connection.abort()
    assert not stage.hub.memberships.holds(CALLERS[0])


def test_a_live_window_gets_the_difference_when_the_callers_memberships_change(
    stage: MembershipStage,
) -> None:
    stage.carry_out([("put", "Message", n, {"roomId": "r1"}) for n in (1, 2)], 0)
    ada = Replica(stage, CALLERS[0])
    ada.connect()
    stage.live.handle_message(ada.connection, {
        "type": "subscribe", "sub_id": "s", "entity": "Message",
        "filter": {"$order": {"id": "asc"}, "$limit": 10},
    })
    stage.carry_out([("put", "Member", 1, {"roomId": "r1", "userId": "ada", "level": 0})], 1)
    stage.settle()
    run_greenlets_until("diffs", lambda: len(ada.listen()) == 3)
    assert [each.get("kind") for each in ada.messages] == [None, "insert", "insert"]
    stage.carry_out([("drop", "Member", 1, {})], 2)
    stage.settle()
    run_greenlets_until("diffs", lambda: len(ada.listen()) == 5)
    assert [each["kind"] for each in ada.messages[3:]] == ["delete", "delete"]
