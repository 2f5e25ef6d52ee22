"""Remembered answers: the same as read ones, whoever asks, whatever was written meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import metrics
from pylon.api.data.query_cache import QueryCache
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.examples import count_examples
from tests.support.measured import total

pytestmark = pytest.mark.stores

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "t", "version": "1", "routes": [],
    "entities": [
        {
            "name": name, "crdt": False, "indexes": [],
            "fields": [
                {"name": "owner", "type": "string", "optional": False, "unique": False},
                {"name": "rank", "type": "int", "optional": False, "unique": False},
            ],
        }
        for name in ("Open", "Own")
    ],
    "policies": [
        {"name": "open", "entity": "Open", "allow": "true"},
        {"name": "own", "entity": "Own", "allow": "auth.userId == data.owner"},
    ],
}


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with serve_api(tmp_path, MANIFEST) as running_server:
        yield running_server


def _hits() -> float:
    return total(metrics.QUERY_CACHE_LOOKUPS, result="hit")


def _held_bytes() -> float:
    return total(metrics.QUERY_CACHE_BYTES)


def _add(server: ApiStage, entity: str, owner: str, rank: int) -> None:
    answer = server.call(
        "POST", f"/api/entities/{entity}", {"owner": owner, "rank": rank}, ADMIN_TOKEN
    )
    assert answer.status_code == 201


def _reads(server: ApiStage, entity: str, token: str) -> list[Any]:
    """The same rows by each of the ways that remember."""
    query = server.call("POST", f"/api/query/{entity}", {"rank": {"$gte": 0}}, token).json
    listed = server.call("GET", f"/api/entities/{entity}?limit=100", token=token).json["data"]
    graph = server.call("POST", "/api/query", {entity: {}}, token).json[entity]
    return [query, listed, graph]


def test_the_second_time_is_remembered_and_a_write_is_seen_at_once(server: ApiStage) -> None:
    token = server.guest()
    for rank in range(3):
        _add(server, "Open", "x", rank)
        before = _hits()
        first = _reads(server, "Open", token)
        assert _hits() == before
        assert [[row["rank"] for row in rows] for rows in first] == [list(range(rank + 1))] * 3
        assert _reads(server, "Open", token) == first
        assert _hits() == before + 3


def test_callers_share_what_does_not_depend_on_them_only(server: ApiStage) -> None:
    _add(server, "Own", "ann", 1)
    _add(server, "Own", "bob", 2)
    _add(server, "Open", "ann", 3)
    tokens = {name: server.user(name) for name in ("ann", "bob", "eve")}
    tokens["admin"] = ADMIN_TOKEN
    wanted = {"ann": [1], "bob": [2], "eve": [], "admin": [1, 2]}
    for _ in range(2):
        for name, token in tokens.items():
            for rows in _reads(server, "Own", token):
                assert sorted(row["rank"] for row in rows) == wanted[name]
    body = {"owner": "ann"}
    server.call("POST", "/api/query/Open", body, tokens["ann"])
    before = _hits()
    server.call("POST", "/api/query/Open", body, tokens["bob"])
    assert _hits() == before + 1


def test_pulls_are_remembered_by_cursor_and_by_who_may_see_what(server: ApiStage) -> None:
    for rank, owner in enumerate(("ann", "bob", "ann")):
        _add(server, "Own", owner, rank)
    tokens = {name: server.user(name) for name in ("ann", "bob")}
    head = server.call("GET", "/api/sync/pull?since=1", token=ADMIN_TOKEN).json
    since = head["cursor"]["last_seq"] - 3
    for _ in range(2):
        for name, ranks in (("ann", [0, 2]), ("bob", [1])):
            answer = server.call("GET", f"/api/sync/pull?since={since}", token=tokens[name]).json
            assert [c["data"]["rank"] for c in answer["changes"]] == ranks
    _add(server, "Own", "bob", 9)
    answer = server.call("GET", f"/api/sync/pull?since={since}", token=tokens["bob"]).json
    assert [c["data"]["rank"] for c in answer["changes"]] == [1, 9]


def test_what_was_read_before_a_commit_is_not_kept_after_it() -> None:
    answers: QueryCache[bytes] = QueryCache()
    assert answers.find(1, "q") is None
    assert answers.find(2, "other") is None  # a commit, noticed by another request meanwhile
    answers.keep(1, "q", b"old", 3)
    assert answers.find(2, "q") is None
    answers.keep(2, "q", b"new", 3)
    assert answers.find(2, "q") == b"new"
    assert answers.find(1, "q") is None  # versions need not grow


def test_after_64_misses_in_a_row_one_question_of_16_is_looked_up_until_a_hit() -> None:
    answers: QueryCache[bytes] = QueryCache()
    for number in range(64):
        assert answers.should_probe()
        assert answers.find(1, number) is None
    probes = []
    for number in range(160):
        probes.append(answers.should_probe())
        if probes[-1]:
            assert answers.find(1, -1 - number) is None
    assert probes == [n % 16 == 0 for n in range(160)]
    answers.keep(1, "q", b"a", 1)
    assert answers.find(1, "q") == b"a"
    assert answers.should_probe()


@settings(max_examples=count_examples(60))
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 900), st.booleans()), max_size=60))
def test_it_stays_within_its_bound_and_tells_its_size(
    asked: list[tuple[int, int, bool]],
) -> None:
    size_before = _held_bytes()
    answers: QueryCache[bytes] = QueryCache(max_bytes=16_000)
    truth: dict[tuple[int, int], bytes] = {}
    version = 1
    for key, size_bytes, commit in asked:
        version += commit
        answer = truth.setdefault((version, key), b"x" * size_bytes)
        found = answers.find(version, key)
        assert found is None or found == answer
        answers.keep(version, key, answer, len(answer))
        assert 0 <= _held_bytes() - size_before <= 16_000
    answers.find(version + 1, "gone")
    assert _held_bytes() == size_before
