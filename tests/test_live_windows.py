"""Live windows: their messages, what they share, what a change costs, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from pylon import limits, metrics
from pylon.auth_context import ADMIN, ANONYMOUS
from pylon.errors import QueryTimeout
from pylon.query.matcher import matcher_of
from pylon.query.rows import parse_order
from pylon.query.window import fields_that_find
from pylon.storage.interface import Reader
from tests.support.live import LiveClient, LiveStage, LiveWindow
from tests.support.live_windows import (
    ADA,
    BOB,
    NEWEST,
    WINDOWS_APP,
    diffs_of,
    fill,
    reads_of,
    settle,
)
from tests.support.measured import total
from tests.support.storage import row_id
from tests.support.wait import run_greenlets_until
from workers.ws import live_range_reads, live_windows
from workers.ws.live_subscriptions import Watch

pytestmark = pytest.mark.stores


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveStage]:
    monkeypatch.setattr(live_range_reads, "_FEED_STEPS", 0)
    monkeypatch.setattr(live_windows, "_RETRY_S", 0.001)
    made = LiveStage(tmp_path, WINDOWS_APP)
    yield made
    made.close()


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
    kind: Any = world.pool.point(type)
    rows_within = kind.rows_within

    def counted(reader: Reader, entity: str, query: Any, size_bytes: int) -> Any:
        counts.append(query.limit)
        return rows_within(reader, entity, query, size_bytes)

    monkeypatch.setattr(kind, "rows_within", counted)
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
        patch.delattr(world.pool.point(type), "rows_within")
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
    entity = WINDOWS_APP.by_name["Public"]
    order = parse_order(entity, "$order", body.get("$order"))
    matcher = matcher_of(entity, {key: v for key, v in body.items() if key != "$order"})
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
    world.write(*(world.insert("Public", row_id(n), ownerId="x" * 10_000) for n in range(400)))
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
    world.write(*(world.insert("Public", row_id(n), ownerId="x" * 10_000) for n in range(400)))
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


def test_window_keeps_few_keys_however_many_rows_come(world: LiveStage) -> None:
    fill(world, 5)
    client = LiveClient(world, ADA)
    client.subscribe_window("s", "Public", NEWEST)
    (watch,) = world.live._watches._by_key.values()
    assert watch.window is not None
    for n in range(6, 100):
        diffs_of(client, world, world.insert("Public", row_id(n), rank=n))
        assert len(watch.window.keys) <= 3 + 2 * limits.LIVE_WINDOW_SPARE_ROWS
    for n in range(99, 3, -1):
        diffs_of(client, world, world.delete("Public", row_id(n)))
        assert [row["rank"] for row in client.windows["s"].rows] == [n - 1, n - 2, n - 3]
