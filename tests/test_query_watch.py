"""What reads cost by entity and kind, which are slow, and that their log lines have no values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import limits, log, metrics
from pylon.api.data.query_watch import QueryWatch
from pylon.clock import ManualClock
from pylon.query.predicate import TRUE
from pylon.query.rows import parse_filter
from pylon.query.shape_text import describe
from pylon.storage.interface import Reader
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.measured import total

SECRET = "hunter2-Zq"
MANIFEST = {
    "name": "watched", "version": "1.0.0",
    "entities": [{"name": "Note", "fields": [
        {"name": "text", "type": "string"}, {"name": "rank", "type": "int"},
        {"name": "extra", "type": "json"}, {"name": "room", "type": "id(Room)"},
    ]}, {"name": "Room", "fields": [
        {"name": "owner", "type": "string"},
    ], "indexes": [{"name": "by_owner", "fields": ["owner"]}]}],
    "policies": [{
        "name": "notes", "entity": "Note",
        "allowRead": "exists(Room, id == data.room, owner == auth.userId)",
        "allowInsert": "auth.userId != null",
    }],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


@pytest.fixture
def lines(capfd: Any) -> Iterator[Any]:
    log.configure("json", "info", "http", "1")

    def read() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        return [line for line in found if line["event"] == "query.slow"]

    yield read
    log.configure("json", "info", "", "")


def slow(clock: ManualClock, watch: QueryWatch, shape: str, elapsed_s: float) -> None:
    def read(reader: Reader) -> str:
        clock.advance(elapsed_s)
        return "answer"

    read_timed = watch.timed("query", "Watched", lambda: shape, read)
    assert read_timed(None) == "answer"  # type: ignore[arg-type]


def test_a_slow_read_is_counted_and_logged_once_a_minute(lines: Any) -> None:
    clock = ManualClock()
    watch = QueryWatch(clock, 0.25)
    before = total(metrics.SLOW_QUERIES, entity="Watched")
    seconds = total(metrics.QUERY_SECONDS, entity="Watched")
    slow(clock, watch, "a = ?", 0.2)
    assert total(metrics.SLOW_QUERIES, entity="Watched") == before
    for _ in range(3):
        slow(clock, watch, "a = ?", 0.5)
    slow(clock, watch, "b = ?", 0.5)
    clock.advance(limits.SLOW_QUERY_LOG_S)
    slow(clock, watch, "a = ?", 0.75)
    assert total(metrics.SLOW_QUERIES, entity="Watched") == before + 5
    assert total(metrics.QUERY_SECONDS, entity="Watched") == pytest.approx(seconds + 2.95)
    assert [(line["shape"], line["duration_s"], line["left_out"]) for line in lines()] == [
        ("a = ?", 0.5, 0), ("b = ?", 0.5, 0), ("a = ?", 0.75, 2),
    ]


def test_a_read_that_fails_counts_its_time(lines: Any) -> None:
    clock = ManualClock()
    watch = QueryWatch(clock, 0.25)

    def read(reader: Reader) -> None:
        clock.advance(10.0)
        raise TimeoutError

    answered = total(metrics.QUERIES, entity="Failing")
    with pytest.raises(TimeoutError):
        watch.timed("query", "Failing", lambda: "a = ?", read)(None)  # type: ignore[arg-type]
    assert total(metrics.QUERIES, entity="Failing") == answered
    assert total(metrics.SLOW_QUERIES, entity="Failing") == 1
    assert [line["duration_s"] for line in lines()] == [10.0]


def test_slow_shapes_in_memory_are_bounded(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SLOW_SHAPES", 3)
    clock = ManualClock()
    watch = QueryWatch(clock, 0.25)
    for number in range(10):
        slow(clock, watch, f"a{number} = ?", 0.5)
    assert len(watch._shapes) <= 3
    assert len(lines()) == 10


FILTERS: dict[str, dict[str, Any]] = {
    "equal": {"text": SECRET}, "one of": {"text": {"$in": [SECRET, "b"]}},
    "like": {"text": {"$like": f"%{SECRET}%"}},
    "path": {"text": {"$ne": SECRET}, "extra": {"$contains": SECRET}},
    "both": {"$or": [{"text": SECRET}, {"text": {"$lte": SECRET}}]},
    "order": {"rank": {"$gte": 4711}, "$order": {"rank": "desc"}},
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_shape_has_fields_and_no_values(server: ApiStage, name: str) -> None:
    (entity, *_) = server.services.data.app.manifest.entities
    query = parse_filter(entity, FILTERS[name], 100, TRUE)
    shape = describe(query.where, query.order)
    assert SECRET not in shape and "4711" not in shape
    assert "?" in shape and ("text" in shape or "rank" in shape)
    assert shape.endswith("order by rank desc") == (name == "order")


@pytest.mark.stores
def test_each_kind_of_read_is_counted_and_slow_ones_show_policy_and_filter(
    server: ApiStage, lines: Any
) -> None:
    server.services.data.queries._slow_s = -1.0  # every read is slow
    token = server.user("u-secret-id")
    room = server.call("POST", "/api/entities/Room", {"owner": "u-secret-id"}, ADMIN_TOKEN).json
    room_id = room["data"]["id"] if "data" in room else room["id"]
    body = {"text": SECRET, "rank": 1, "extra": {"k": SECRET}, "room": room_id}
    assert server.call("POST", "/api/entities/Note", body, ADMIN_TOKEN).status_code == 201
    before = {kind: total(metrics.QUERIES, entity="Note", kind=kind) for kind in (
        "list", "page", "query", "lookup", "aggregate", "graph")}
    looked_up = total(metrics.POLICY_LOOKUPS, entity="Room")
    calls = (
        ("GET", "/api/entities/Note", None), ("GET", "/api/entities/Note/cursor", None),
        ("POST", "/api/query/Note", {"text": SECRET}),
        ("GET", f"/api/lookup/Note/text/{SECRET}", None),
        ("POST", "/api/aggregate/Note", {"count": "*", "where": {"text": SECRET}}),
        ("POST", "/api/query", {"Note": {"where": {"text": SECRET}}}),
    )
    for method, path, sent in calls:
        answer = server.call(method, path, sent, token)
        assert answer.status_code == 200, answer.text
    for kind, count in before.items():
        assert total(metrics.QUERIES, entity="Note", kind=kind) == count + 1, kind
    found = lines()
    assert {line["kind"] for line in found} == {*before}
    for line in found:
        assert SECRET not in json.dumps(line) and "u-secret-id" not in json.dumps(line)
        assert "policy(" in line["shape"] and "exists Room" in line["shape"], line
    row_id = server.call("GET", "/api/entities/Note", token=token).json["data"][0]["id"]
    assert server.call("GET", f"/api/entities/Note/{row_id}", token=token).status_code == 200
    assert total(metrics.POLICY_LOOKUPS, entity="Room") >= looked_up
