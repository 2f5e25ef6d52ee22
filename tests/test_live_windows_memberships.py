"""Live windows of callers whose memberships begin and end (`exists(...)` in read policies)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon.auth_context import AuthContext
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.live import LiveClient, LiveStage
from tests.support.live_windows import (
    ADA,
    BOB,
    WINDOWS_APP,
    diffs_of,
    fill,
    reads_of,
    settle,
)
from tests.support.storage import row_id
from workers.ws import live_range_reads

pytestmark = pytest.mark.stores

CHAT = {"text": "a", "$order": {"rank": "desc"}, "$limit": 3}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveStage]:
    monkeypatch.setattr(live_range_reads, "_FEED_STEPS", 0)
    made = LiveStage(tmp_path, WINDOWS_APP)
    yield made
    made.close()


@pytest.fixture
def rooms(world: LiveStage) -> LiveStage:
    """Ada and Bob are members of room "a", which has 9 messages."""
    fill(world, 9, "Chat", text="a")
    world.write(
        world.insert("Member", row_id(1), text="a", ownerId="ada"),
        world.insert("Member", row_id(2), text="a", ownerId="bob"),
    )
    world.publish()
    return world


def subscribed(world: LiveStage, auth: AuthContext) -> LiveClient:
    client = LiveClient(world, auth)
    client.subscribe_window("s", "Chat", CHAT)
    return client


@pytest.mark.parametrize("has_sets", [True, False])
def test_membership_opens_and_closes_the_windows_of_its_caller(
    rooms: LiveStage, has_sets: bool
) -> None:
    ada, bob = subscribed(rooms, ADA), subscribed(rooms, BOB)
    if has_sets:
        rooms.hold_sets(ADA)
    before = reads_of("refresh")
    ended = rooms.delete("Member", row_id(1))
    assert diffs_of(ada, rooms, ended) == [("delete", n, "-") for n in (9, 8, 7)]
    op = rooms.insert("Chat", row_id(10), rank=10, text="a")
    assert diffs_of(ada, rooms, op) == []
    begun = rooms.insert("Member", row_id(3), text="a", ownerId="ada")
    opened = [("insert", 10, None), ("insert", 9, 10), ("insert", 8, 9)]
    assert diffs_of(ada, rooms, begun) == opened
    bob.listen()
    assert bob.windows["s"].kinds == ["delete", "insert"], "only the new message"
    assert reads_of("refresh") == before + 2
    assert [row["rank"] for row in bob.windows["s"].rows] == [10, 9, 8]


def test_row_of_a_room_that_closes_in_the_same_commit_does_not_move_in(rooms: LiveStage) -> None:
    ada = subscribed(rooms, ADA)
    ops = rooms.delete("Member", row_id(1)), rooms.delete("Chat", row_id(9))
    assert {kind for kind, _, _ in diffs_of(ada, rooms, *ops)} == {"delete"}
    assert ada.windows["s"].rows == []


def test_membership_that_ends_while_a_window_is_read(rooms: LiveStage) -> None:
    def end() -> None:
        rooms.write(rooms.delete("Member", row_id(1)))
        rooms.publish()

    rooms.store.meanwhile = end
    ada = subscribed(rooms, ADA)
    assert (ada.windows["s"].complete, ada.windows["s"].rows) == (True, [])
    rooms.write(rooms.insert("Member", row_id(3), text="a", ownerId="ada"))
    rooms.publish()
    settle(rooms)
    ada.listen()
    rooms.store.meanwhile = lambda: (
        rooms.write(rooms.delete("Member", row_id(3))), rooms.publish()
    )
    ada.widen("s", 3)
    settle(rooms)
    ada.listen()
    assert ada.windows["s"].rows == []


@pytest.mark.sqlite
def test_no_row_is_read_for_a_stranger_of_the_room(
    rooms: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SqliteReader, "_selection")
    stranger = LiveClient(rooms, AuthContext(user_id="eve"))
    stranger.subscribe_window("s", "Chat", CHAT)
    stranger.subscribe("t", "Chat", {"text": "a"})
    assert stranger.errors == []
    assert stranger.windows["s"].rows == [] and stranger.sets["t"].rows == {}
    with pytest.raises(AttributeError):  # all rooms have to be looked at
        stranger.subscribe_window("u", "Chat", {"$order": {"rank": "desc"}, "$limit": 3})
