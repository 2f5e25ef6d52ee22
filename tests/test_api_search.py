"""Any search by any caller is what plain Python makes of the rows: hits, total and facets.

The conversation of corpora/http/search.json shows the wire; here requests are drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from threading import get_ident
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.examples import count_examples
from tests.support.search import SEARCH, is_hit, pages_app
from tests.support.stores import TestStore

pytestmark = pytest.mark.stores

WORDS = [
    "red", "Red-Café", "pump", "pumps", "blue", "AND", "NEAR", "x2", "日本語", "\U0001f680", "Ünï",
]
PARTS = ["p", "re", "pum", "cafe", "red-ca", "café-red", '"', "*", "title:red", "-1"]
ROWS = [
    {
        "title": " ".join(WORDS[(n * k) % len(WORDS)] for k in (1, 3, 5)[:n % 3 + 1]),
        "body": None if n % 4 == 0 else " ".join(WORDS[(n + k) % len(WORDS)] for k in range(n % 7)),
        "kind": [None, "fault", "note", "a b"][n % 4],
        "open": n % 3 != 0,
        "rank": None if n % 5 == 0 else n % 3 - 1,
        "price": [None, 0.5, 2.0, -1.25e9][n % 4],
        "ownerId": ["ada", "bob"][n % 2],
        "slug": None,
    }
    for n in range(40)
]
CALLERS = ["admin", "ada", "bob", "nobody"]


@pytest.fixture(scope="module")
def server(tested_store: TestStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiStage]:
    with serve_api(tmp_path_factory.mktemp("search"), pages_app()) as made:
        for row in ROWS:
            assert made.call("POST", "/api/entities/Page", row, ADMIN_TOKEN).status_code == 201
        yield made


@pytest.fixture(scope="module")
def tokens(server: ApiStage) -> dict[str, str | None]:
    users = {name: server.user(name) for name in ("ada", "bob")}
    return {"admin": ADMIN_TOKEN, "nobody": None, **users}


@pytest.fixture(scope="module")
def rows(server: ApiStage) -> list[dict[str, Any]]:
    """All rows, by id."""
    listed: list[dict[str, Any]] = server.call("GET", "/api/entities/Page", None, ADMIN_TOKEN).json[
        "data"]
    return listed


def shown(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def passes(row: dict[str, Any], filters: dict[str, Any]) -> bool:
    for name, wanted in filters.items():
        allowed = wanted if isinstance(wanted, list) else [wanted]
        if not any(row[name] == v or (row[name] is not None and shown(row[name]) == v)
                   for v in allowed):
            return False
    return True


def visible(rows: list[dict[str, Any]], who: str) -> list[dict[str, Any]]:
    return [r for r in rows if who == "admin" or r["open"] or r["ownerId"] == who]


VALUES = {
    "kind": st.sampled_from([None, "fault", "note", "a b", "other", ""]),
    "open": st.sampled_from([True, False, "true", "false", None]),
    "rank": st.sampled_from([None, -1, 0, 1, "-1", "0", "1", 9, 0.5]),
    "price": st.sampled_from([None, 0.5, 2, 2.0, "0.5", "2.0", -1.25e9]),
}
QUERIES = st.lists(
    st.sampled_from([*WORDS, *PARTS]), max_size=3
).flatmap(lambda words: st.sampled_from(["", " "]).map(lambda end: " ".join(words) + end))
REQUESTS = st.fixed_dictionaries({}, optional={
    "query": QUERIES,
    "filters": st.fixed_dictionaries({}, optional={
        name: st.one_of(value, st.lists(value, max_size=3)) for name, value in VALUES.items()
    }),
    "facets": st.lists(st.sampled_from(SEARCH["facets"]), max_size=5),
    "sort": st.tuples(st.sampled_from(SEARCH["sortable"]), st.sampled_from(["asc", "desc"])),
    "page": st.integers(0, 4),
    "page_size": st.integers(-1, 120),
})


@settings(max_examples=count_examples(50))
@given(request=REQUESTS, who=st.sampled_from(CALLERS))
def test_a_search_is_what_python_makes_of_the_rows(
    server: ApiStage, tokens: dict[str, str | None], rows: list[dict[str, Any]],
    request: dict[str, Any], who: str,
) -> None:
    answer = server.call("POST", "/api/search/Page", request, tokens[who])
    assert answer.status_code == 200, answer.text
    query = request.get("query", "")
    hits = [r for r in visible(rows, who)
            if is_hit(r, query) and passes(r, request.get("filters", {}))]
    if "sort" in request:
        name, direction = request["sort"]
        # As SQLite does: null first, text by its bytes; descending keeps ties by id.
        hits.sort(
            key=lambda r: (r[name] is not None, _ordered(r[name])), reverse=direction == "desc"
        )
    size = min(max(request.get("page_size", limits.SEARCH_PAGE_DEFAULT), 1), limits.SEARCH_PAGE_MAX)
    start = request.get("page", 0) * size
    got = answer.json
    assert got["total"] == len(hits)
    assert got["facetCounts"] == {
        name: Counter(shown(r[name]) for r in hits if r[name] is not None)
        for name in request.get("facets", [])
    }
    if "sort" in request or not query.strip():
        assert got["hits"] == hits[start:start + size]
    else:  # by relevance: any order, but as many as belong on the page, and no other rows
        assert len(got["hits"]) == len(hits[start:start + size])
        assert all(hit in hits for hit in got["hits"])


def _ordered(value: Any) -> Any:
    return -math.inf if value is None else value.encode() if isinstance(value, str) else value


@settings(max_examples=count_examples(50))
@given(query=QUERIES, who=st.sampled_from(CALLERS), size=st.integers(3, 15))
def test_pages_by_relevance_hold_each_hit_once(
    server: ApiStage, tokens: dict[str, str | None], rows: list[dict[str, Any]],
    query: str, who: str, size: int,
) -> None:
    seen = []
    for page in range(len(rows) // size + 2):
        request = {"query": query, "page": page, "page_size": size}
        seen += server.call("POST", "/api/search/Page", request, tokens[who]).json["hits"]
    wanted = [r["id"] for r in visible(rows, who) if is_hit(r, query)]
    assert sorted(hit["id"] for hit in seen) == wanted


@settings(max_examples=count_examples(50))
@given(query=QUERIES, who=st.sampled_from(CALLERS))
def test_the_filter_operator_finds_the_same_in_the_same_order(
    server: ApiStage, tokens: dict[str, str | None], query: str, who: str
) -> None:
    searched = server.call(
        "POST", "/api/search/Page", {"query": query, "page_size": 100}, tokens[who]
    )
    filtered = server.call("POST", "/api/query/Page", {"$search": query}, tokens[who])
    assert filtered.json == searched.json["hits"]


@settings(max_examples=count_examples(50))
@given(query=QUERIES, who=st.sampled_from(CALLERS))
def test_graphs_and_aggregates_find_the_same(
    server: ApiStage, tokens: dict[str, str | None], rows: list[dict[str, Any]],
    query: str, who: str,
) -> None:
    where = {"$search": query}
    graph = server.call("POST", "/api/query", {"Page": {"where": where}}, tokens[who])
    figures = server.call(
        "POST", "/api/aggregate/Page", {"count": "*", "where": where}, tokens[who]
    )
    wanted = [r for r in visible(rows, who) if is_hit(r, query)]
    assert graph.json == {"Page": wanted}
    assert figures.json == {"rows": [{"count": len(wanted)}]}


def test_more_of_the_words_is_more_relevant(server: ApiStage) -> None:
    hits = server.call("POST", "/api/search/Page", {"query": "pump "}, ADMIN_TOKEN).json["hits"]
    lengths = [sum(len(r[f] or "") for f in ("title", "body")) for r in hits]
    assert len(hits) > 3
    assert lengths[0] < lengths[-1]  # a word in a short text says more than in a long one


@pytest.mark.sqlite  # its threads
def test_words_are_not_looked_for_where_other_requests_wait(server: ApiStage) -> None:
    store = server.services.data.store
    here = get_ident()
    assert store.scan(lambda _: get_ident()) == here
    assert store.scan(lambda _: get_ident(), inline=False) != here


def test_only_the_most_frequent_values_are_counted(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FACET_VALUES", 2)
    answer = server.call("POST", "/api/search/Page", {"facets": ["price"]}, ADMIN_TOKEN)
    assert len(answer.json["facetCounts"]["price"]) == 2
    assert answer.json["total"] == len(ROWS)


@pytest.mark.parametrize("number", ["-9223372036854775809", "1180591620717411303424"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("search", '{"filters":{"kind":%s}}'), ("search", '{"filters":{"rank":[[%s]]}}'),
        ("query", '{"rank":%s}'), ("query", '{"rank":{"$ne":%s}}'),
        ("query", '{"rank":{"$in":[1,%s]}}'), ("query", '{"title":{"$like":[%s]}}'),
        ("aggregate", '{"count":"*","where":{"rank":%s}}'),
    ],
)
def test_a_refused_integer_beyond_64_bits_is_named_in_the_error(
    server: ApiStage, path: str, body: str, number: str
) -> None:
    answer = server.call("POST", f"/api/{path}/Page", (body % number).encode(), ADMIN_TOKEN)
    assert answer.status_code == 400, answer.text
    assert number in str(answer.json["error"]["value"])
