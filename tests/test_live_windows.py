"""Live windows: their messages, what they share, what a change costs, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import orjson
import pytest

from pylon import limits, metrics
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.errors import QueryTimeout
from pylon.manifest_loader import parse_manifest
from pylon.query.matcher import matcher_of
from pylon.query.rows import parse_order
from pylon.query.window import fields_that_find
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.live import LiveClient, LiveStage, LiveWindow
from tests.support.manifests import windows_app
from tests.support.measured import total
from tests.support.storage import row_id
from tests.support.wait import run_greenlets_until
from workers.ws import live_range_reads, live_windows
from workers.ws.live_subscriptions import Watch

APP = parse_manifest(orjson.dumps(windows_app()).decode(), "manifest.json")
ADA, BOB = AuthContext(user_id="ada"), AuthContext(user_id="bob")
NEWEST = {"$order": {"rank": "desc"}, "$limit": 3}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveStage]:
    monkeypatch.setattr(live_range_reads, "_FEED_STEPS", 0)
    monkeypatch.setattr(live_windows, "_RETRY_S", 0.001)
    made = LiveStage(tmp_path, APP)
    yield made
    made.close()


def fill(world: LiveStage, count: int, entity: str = "Public", **body: Any) -> None:
    world.write(*(world.insert(entity, row_id(n), rank=n, **body) for n in range(1, count + 1)))
    world.publish()


def settle(world: LiveStage) -> None:
    windows = world.live._windows
    run_greenlets_until(
        "no window lacks rows", lambda: not windows._lacking and not windows._readers
    )


def diffs_of(client: LiveClient, world: LiveStage, *ops: Any) -> list[tuple[str, int, Any]]:
    """Commit, and return (kind, number of the row, number of the row before it or "-")."""
    taken: list[dict[str, Any]] = []
    window = client.windows["s"]
    take = LiveWindow.take

    def note(message: dict[str, Any]) -> None:
        taken.append(message)
        take(window, message)

    client.listen()
    window.take = note  # type: ignore[method-assign]
    world.write(*ops)
    world.publish()
    settle(world)
    client.listen()
    del window.take
    return [
        (m["kind"], int(m["row_id"], 16), "-" if "after" not in m else
         None if m["after"] is None else int(m["after"], 16))
        for m in taken
    ]


def reads_of(reason: str) -> float:
    return metrics.LIVE_WINDOW_READS.labels(reason)._value.get()


def test_diffs_say_where_rows_stand(world: LiveStage) -> None:
    fill(world, 5)
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", NEWEST)
    assert [row["rank"] for row in client.windows["s"].rows] == [5, 4, 3]
    op = world.insert("Public", row_id(6), rank=6)
    assert diffs_of(client, world, op) == [("delete", 3, "-"), ("insert", 6, None)]
    op = world.insert("Public", row_id(7), rank=5)  # equal values go by id
    assert diffs_of(client, world, op) == [("delete", 4, "-"), ("insert", 7, 5)]
    op = world.update("Public", row_id(5), text="stays")
    assert diffs_of(client, world, op) == [("update", 5, "-")]
    op = world.update("Public", row_id(7), rank=9)
    assert diffs_of(client, world, op) == [("update", 7, None)]
    op = world.update("Public", row_id(7), rank=5)
    assert diffs_of(client, world, op) == [("update", 7, 5)]
    op = world.update("Public", row_id(6), rank=1)
    assert diffs_of(client, world, op) == [("delete", 6, "-"), ("insert", 4, 7)]
    op = world.delete("Public", row_id(5))
    assert diffs_of(client, world, op) == [("delete", 5, "-"), ("insert", 3, 4)]
    op = world.insert("Public", row_id(8), rank=None)  # behind all others
    assert diffs_of(client, world, op) == []


def test_window_before_a_position_grows_towards_the_beginning(world: LiveStage) -> None:
    fill(world, 9)
    client = LiveClient(world, ADA)
    client.subscribe_window(
        "s", "Public",
        {"$order": {"rank": "asc"}, "$limit": 3, "$before": {"rank": 8, "id": row_id(8)}},
    )
    assert [row["rank"] for row in client.windows["s"].rows] == [5, 6, 7]
    op = world.delete("Public", row_id(6))
    assert diffs_of(client, world, op) == [("delete", 6, "-"), ("insert", 4, None)]
    op = world.update("Public", row_id(9), rank=6)
    assert diffs_of(client, world, op) == [("delete", 4, "-"), ("insert", 9, 5)]
    client.widen("s", 2)
    assert [row["rank"] for row in client.windows["s"].rows] == [3, 4, 5, 6, 7]
    client.widen("s", 100)
    assert len(client.windows["s"].rows) == 7


def test_more_adds_rows_until_there_are_none(world: LiveStage) -> None:
    fill(world, 60)
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", NEWEST)
    for count, wanted in ((2, 5), (50, 55), (50, 60), (1, 60)):
        client.widen("s", count)
        assert len(client.windows["s"].rows) == wanted
    op = world.insert("Public", row_id(61), rank=0)
    assert diffs_of(client, world, op) == [("insert", 61, 1)]


@pytest.mark.parametrize(
    ("sub_id", "count", "code", "says"),
    [
        ("s", 998, "LIMIT_EXCEEDED", "1001"),
        ("s", 0, "INVALID_DATA", "count"),
        ("s", True, "INVALID_DATA", "count"),
        ("s", None, "INVALID_DATA", "count"),
        ("other", 1, "INVALID_DATA", "no live window"),
        ("plain", 1, "INVALID_DATA", "no live window"),
    ],
)
def test_refused_more_leaves_the_window_as_it_is(
    world: LiveStage, sub_id: str, count: Any, code: str, says: str
) -> None:
    fill(world, 5)
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", NEWEST)
    client.subscribe("plain", "Public", {})
    client.say(type="more", sub_id=sub_id, count=count)
    (error,) = client.errors
    assert (error["for"], error["code"], error["sub_id"]) == ("more", code, sub_id)
    assert says in error["message"]
    op = world.delete("Public", row_id(5))
    assert diffs_of(client, world, op) == [("delete", 5, "-"), ("insert", 2, 3)]


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"$limit": 0}, "INVALID_QUERY", "1 to 1000"),
        ({"$limit": 1_001}, "LIMIT_EXCEEDED", "1000 rows"),
        ({"$limit": -1}, "INVALID_QUERY", "whole number"),
        ({"$order": {"nope": "asc"}}, "INVALID_COLUMN", "nope"),
        ({"$order": {"rank": "up"}}, "INVALID_QUERY", "asc"),
        ({"$order": {"rank": "asc"}, "$after": {"id": "x"}}, "INVALID_QUERY", "rank"),
        ({"$after": {"id": "x"}, "$before": {"id": "x"}}, "INVALID_QUERY", "not both"),
        ({"$limit": 1, "$offset": 1}, "INVALID_QUERY", "$offset"),
        ({"$limit": 1, "$search": "a"}, "INVALID_QUERY", "$search"),
        ({"$or": [{"$limit": 1}], "$limit": 1}, "INVALID_QUERY", "outermost"),
    ],
)
def test_refused_windows(world: LiveStage, body: Any, code: str, says: str) -> None:
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", body)
    (error,) = client.errors
    assert (error["for"], error["code"], error["sub_id"]) == ("subscribe", code, "s")
    assert says in error["message"]
    assert total(metrics.LIVE_QUERIES) == total(metrics.LIVE_WINDOWS) == 0


def test_equal_windows_share_their_state_whatever_their_limits(world: LiveStage) -> None:
    fill(world, 30)
    clients = [LiveClient(world, auth) for auth in (ADA, BOB, ADMIN, ANONYMOUS)]
    for limit, client in enumerate(clients, 2):
        client.subscribe_window("s", "Public", {"$limit": limit, "$order": {"rank": "desc"}})
    clients[0].subscribe_window("t", "Public", {"$limit": 2, "$order": {"rank": "desc"}})
    clients[0].subscribe_window("u", "Public", {"$limit": 2, "$order": {"rank": "asc"}})
    assert total(metrics.LIVE_WINDOWS) == len(world.live._watches) == 2
    world.write(world.insert("Public", row_id(31), rank=31), world.delete("Public", row_id(29)))
    world.publish()
    for limit, client in enumerate(clients, 2):
        client.listen()
        ranks = [row["rank"] for row in client.windows["s"].rows]
        assert ranks == [31, 30, 28, 27, 26][:limit]
    for client in clients:
        client.say(type="unsubscribe", sub_id="s")
    assert total(metrics.LIVE_WINDOWS) == 2
    clients[0].connection.abort()
    assert total(metrics.LIVE_WINDOWS) == len(world.live._watches) == 0


def test_a_caller_with_other_rights_has_a_window_of_their_own(world: LiveStage) -> None:
    fill(world, 4, "Mine", ownerId="ada")
    ada, bob = LiveClient(world, ADA), LiveClient(world, BOB)
    for client in (ada, bob):
        client.subscribe_window("s", "Mine", NEWEST)
    assert (len(ada.windows["s"].rows), len(bob.windows["s"].rows)) == (3, 0)
    assert total(metrics.LIVE_WINDOWS) == 2
    world.write(world.update("Mine", row_id(4), ownerId="bob"))
    world.publish()
    for client, ranks in ((ada, [3, 2, 1]), (bob, [4])):
        client.listen()
        assert [row["rank"] for row in client.windows["s"].rows] == ranks


def test_a_row_behind_a_full_window_is_not_judged(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world, 100, text="a")
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", {"text": "a", **NEWEST})
    judged: list[Any] = []
    has_row = Watch.has_row
    monkeypatch.setattr(
        Watch, "has_row", lambda watch, row: judged.append(row) or has_row(watch, row)
    )
    world.write(
        world.insert("Public", row_id(200), rank=0, text="a"),
        world.update("Public", row_id(2), shared=True),
        world.delete("Public", row_id(3)),
        world.insert("Public", row_id(201), rank=999, text="b"),  # another text
    )
    world.publish()
    assert judged == []
    world.write(world.insert("Public", row_id(202), rank=999, text="a"))
    world.publish()
    assert len(judged) == 1


def test_spare_rows_are_read_again_a_few_at_a_time(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world, 200)
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", NEWEST)
    counts: list[int] = []
    rows_within = SqliteReader.rows_within

    def counted(reader: SqliteReader, entity: str, query: Any, size_bytes: int) -> Any:
        counts.append(query.limit)
        return rows_within(reader, entity, query, size_bytes)

    monkeypatch.setattr(SqliteReader, "rows_within", counted)
    before = reads_of("refill")
    for n in range(200, 100, -1):
        assert diffs_of(client, world, world.delete("Public", row_id(n))) == [
            ("delete", n, "-"), ("insert", n - 3, n - 2),
        ]
    assert 5 < reads_of("refill") - before == len(counts) < 12
    assert max(counts) <= limits.LIVE_WINDOW_SPARE_ROWS


def test_window_without_an_index_is_refused_before_its_rows_are_read(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVE_ROWS", 4)
    fill(world, 6, text="a")
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", {"ownerId": {"$exists": False}, **NEWEST})
    assert len(client.windows["s"].rows) == 3
    with monkeypatch.context() as patch:
        patch.delattr(SqliteReader, "rows_within")
        client.subscribe_window("s", "Public", {"text": "a", "$order": {"ownerId": "asc"}})
        client.subscribe("t", "Public", {"text": "a"})
    window, plain = client.errors
    assert window["code"] == plain["code"] == "LIMIT_EXCEEDED"
    assert '["text", "ownerId"] to Public' in window["hint"]
    client.errors.clear()
    client.subscribe_window("s", "Public", {"id": row_id(1), "$order": {"ownerId": "asc"}})
    assert [row["rank"] for row in client.windows["s"].rows] == [1]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ()),
        ({"$order": {"rank": "desc"}}, ()),
        ({"text": "a", "$order": {"rank": "desc"}}, ()),
        ({"text": None, "$order": {"rank": "desc", "ownerId": "asc"}}, ()),
        ({"text": "a", "rank": 1}, ()),
        ({"id": "x", "$order": {"shared": "asc"}}, ()),
        ({"$order": {"ownerId": "desc"}}, ("ownerId",)),
        ({"shared": True, "$order": {"ownerId": "desc", "rank": "asc"}},
         ("shared", "ownerId", "rank")),
        ({"text": {"$in": ["a", "b"]}, "$order": {"ownerId": "asc"}}, ("ownerId",)),
    ],
)
def test_index_that_a_window_needs(body: dict[str, Any], fields: tuple[str, ...]) -> None:
    entity = APP.by_name["Public"]
    order = parse_order(entity, "$order", body.pop("$order", None))
    matcher = matcher_of(entity, body)
    wanted = (*order, ("id", False))
    assert fields_that_find(entity, matcher.wanted, matcher.allowed, wanted) == fields


def test_window_whose_rows_cannot_be_read_ends_with_an_error(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world, 60)
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", NEWEST)

    def fail(*_: Any, **__: Any) -> Any:
        raise QueryTimeout("too slow")

    monkeypatch.setattr(world.store, "scan", fail)
    for n in range(60, 40, -1):
        world.write(world.delete("Public", row_id(n)))
        world.publish()
    settle(world)
    client.listen()
    assert [(e["for"], e["code"], e["sub_id"]) for e in client.errors] == [
        ("subscribe", "QUERY_TIMEOUT", "s")
    ]
    assert total(metrics.LIVE_WINDOWS) == total(metrics.LIVE_QUERIES) == 0


def test_diffs_wait_until_the_client_has_its_rows(world: LiveStage) -> None:
    world.write(*(world.insert("Public", row_id(n), text="x" * 10_000) for n in range(400)))
    world.publish()
    client = LiveClient(world, ADA)
    client.windows["s"] = LiveWindow({"$limit": 300})
    message = {"type": "subscribe", "sub_id": "s", "entity": "Public", "filter": {"$limit": 300}}
    asking = gevent.spawn(world.live.handle_message, client.connection, message)
    run_greenlets_until("the outbox fills", lambda: client.connection.outbox_bytes > 0)
    world.write(world.delete("Public", row_id(0)), world.update("Public", row_id(1), text="y"))
    world.publish()
    while not asking.dead:
        client.listen()
    client.listen()
    rows = client.windows["s"].rows
    assert [int(row["id"], 16) for row in rows] == list(range(1, 301))
    assert rows[0]["text"] == "y"
    assert client.windows["s"].kinds == ["delete", "insert", "update"]


def test_client_that_takes_its_rows_too_slowly_subscribes_again(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(*(world.insert("Public", row_id(n), text="x" * 10_000) for n in range(400)))
    world.publish()
    client = LiveClient(world, ADA)
    client.windows["s"] = LiveWindow({"$limit": 300})
    message = {"type": "subscribe", "sub_id": "s", "entity": "Public", "filter": {"$limit": 300}}
    asking = gevent.spawn(client.say, **message)
    run_greenlets_until("the outbox fills", lambda: client.connection.outbox_bytes > 0)
    monkeypatch.setattr(limits, "OUTBOX_BYTES", 1_000)
    world.write(world.update("Public", row_id(1), text="y" * 2_000))
    world.publish()
    while not asking.dead:
        client.listen()
    client.listen()
    assert [error["code"] for error in client.errors] == ["RESYNC_REQUIRED"]
    assert total(metrics.LIVE_WINDOWS) == 0


def test_windows_count_against_the_memory_of_live_queries(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVE_BYTES", 50_000)
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", {"$limit": 200})
    client.subscribe_window("t", "Public", {"$limit": 200})
    assert [error["code"] for error in client.errors] == ["LIMIT_EXCEEDED"]
    client.errors.clear()
    client.say(type="more", sub_id="s", count=300)
    assert [(e["for"], e["code"]) for e in client.errors] == [("more", "LIMIT_EXCEEDED")]
    client.say(type="unsubscribe", sub_id="s")
    assert world.live._size_bytes == len(world.live._holdings) == 0


CHAT = {"text": "a", "$order": {"rank": "desc"}, "$limit": 3}


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
