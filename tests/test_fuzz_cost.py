"""Nothing that a caller can ask for costs without bound: an answer within the time limit, or
QUERY_TIMEOUT, or LIMIT_EXCEEDED; and the others are served meanwhile.

The nasty requests are in corpora/cost.json: names and bodies, where `{"repeat": [x, n]}` stands
for n times x (one text, or a list), `{"items": [x, n]}` for a list in any case, and
`{"nest": [key, x, n]}` for n objects with a list within each other.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylon import limits
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wide_app import SMALL, wide_app
from tests.support.wire import KeepAliveClient, Response

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CORPUS = json.loads((Path(__file__).parent / "corpora" / "cost.json").read_text())
ADMIN = ("Authorization", f"Bearer {ADMIN_TOKEN}")
ROWS = 3_000
# The statement's own limit, the waiting for a connection, and a machine that is busy.
PATIENCE_S = 2 * limits.READ_TIMEOUT_S + 10
REFUSALS = {"QUERY_TIMEOUT", "LIMIT_EXCEEDED", "PAYLOAD_TOO_LARGE"}
WRONG = {"INVALID_QUERY", "INVALID_VALUE", "INVALID_COLUMN", "INVALID_JSON"}


def spelled(value: Any) -> Any:
    """`value` with every repetition written out."""
    if isinstance(value, dict):
        if value.keys() == {"repeat"}:
            what, times = value["repeat"]
            made = spelled(what)
            return made * times if isinstance(made, str) else [made] * times
        if value.keys() == {"items"}:
            what, times = value["items"]
            return [spelled(what)] * times
        if value.keys() == {"nest"}:
            outer, inner, depth = value["nest"]
            made = spelled(inner)
            for _ in range(depth):
                made = {outer: [made]}
            return made
        return {key: spelled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [spelled(inner) for inner in value]
    return value


@pytest.fixture(scope="module")
def served(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    server = PylonServer(tmp_path_factory.mktemp("cost"), wide_app(), SMALL)
    try:
        server.start()
        rows = [
            {"title": "a" * 300 + str(n), "body": "ab " * 100, "count": n % 3, "done": n % 2 == 0,
             "id": f"{n:040x}", "parent": f"{n % 5:040x}"}
            for n in range(ROWS)
        ]
        status, body, _ = server.request(
            "POST", "/api/import", {"entities": {"Item": rows}}, token=ADMIN_TOKEN, timeout_s=60
        )
        assert (status, body["imported"]) == (200, ROWS), body
        yield server
    finally:
        server.close()


def ask(server: PylonServer, path: str, body: Any) -> tuple[Response, float]:
    client = KeepAliveClient(server.port, timeout_s=PATIENCE_S)
    started_s = time.monotonic()
    try:
        answer = client.request("POST", path, json.dumps(body).encode(), [ADMIN])
    finally:
        client.close()
    return answer, time.monotonic() - started_s


@pytest.mark.parametrize("case", CORPUS, ids=[case["name"] for case in CORPUS])
def test_a_nasty_request_is_bounded(served: PylonServer, case: dict[str, Any]) -> None:
    answer, took_s = ask(served, case["path"], spelled(case["body"]))
    assert took_s < PATIENCE_S
    if answer.status != 200:
        assert answer.json["error"]["code"] in case.get("codes", REFUSALS)
    assert served.request("GET", "/readyz")[0] == 200


def test_slow_queries_do_not_keep_the_others_waiting(served: PylonServer) -> None:
    """More of them than there are connections for reading, all at once."""
    slow = next(case for case in CORPUS if case["name"] == "like, many wildcards")
    body = spelled(slow["body"])
    answers: list[Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(served, slow["path"], body)[0]))
        for _ in range(limits.READ_CONNECTIONS * 2)
    ]
    for thread in threads:
        thread.start()
    probes = 0
    while any(thread.is_alive() for thread in threads) and probes < 50:
        started_s = time.monotonic()
        assert served.request("GET", "/health")[0] == 200
        assert time.monotonic() - started_s < limits.READ_TIMEOUT_S / 2
        probes += 1
    for thread in threads:
        thread.join(PATIENCE_S * 4)
    assert len(answers) == len(threads)
    assert all(a.status == 200 or a.json["error"]["code"] in REFUSALS for a in answers)


TEXT = st.text(alphabet="ab%_ 'x\"*()", max_size=40)
VALUE = st.one_of(
    TEXT, st.integers(-5, 5), st.booleans(), st.none(), st.lists(TEXT, max_size=20),
    st.lists(st.integers(0, 9), max_size=20),
)
OPERATOR = st.sampled_from([
    "$not", "$ne", "$gt", "$gte", "$lt", "$lte", "$like", "$startsWith", "$in", "$nin", "$exists",
])
FIELD = st.sampled_from([
    "id", "title", "body", "count", "weight", "done", "dueAt", "code", "parent",
])
CONDITION = st.one_of(VALUE, st.dictionaries(OPERATOR, VALUE, min_size=1, max_size=3))
WHERE = st.recursive(
    st.dictionaries(FIELD, CONDITION, max_size=3),
    lambda inner: st.builds(
        lambda key, parts, also: {key: parts, **also},
        st.sampled_from(["$or", "$and"]), st.lists(inner, max_size=6),
        st.dictionaries(FIELD, CONDITION, max_size=1),
    ),
    max_leaves=12,
)
ORDER = st.dictionaries(FIELD, st.sampled_from(["asc", "desc"]), max_size=4)
COUNT = st.sampled_from([0, 1, 5, 1_000, 1_001, 2**62])
NODE = st.recursive(
    st.fixed_dictionaries({}, optional={"where": WHERE, "order": ORDER, "limit": COUNT}),
    lambda inner: st.fixed_dictionaries({
        "include": st.dictionaries(st.sampled_from(["up", "children"]), inner, min_size=1),
    }, optional={"limit": COUNT}),
    max_leaves=6,
)
FIELDS = st.lists(FIELD, max_size=3)
GROUP = st.one_of(
    FIELD,
    st.fixed_dictionaries({"field": FIELD}, optional={
        "bucket": st.sampled_from(["hour", "day", "week", "month", "year", "eon"]),
    }),
)
REQUEST = st.one_of(
    st.tuples(st.just("/api/query/Item"), st.builds(
        lambda where, more: {**where, **more}, WHERE,
        st.fixed_dictionaries({}, optional={
            "$order": ORDER, "$limit": COUNT, "$offset": COUNT, "$search": TEXT,
        }),
    )),
    st.tuples(st.just("/api/query"), st.dictionaries(st.just("Item"), NODE, min_size=1)),
    st.tuples(st.just("/api/aggregate/Item"), st.fixed_dictionaries({}, optional={
        "count": st.one_of(st.just("*"), FIELD), "sum": FIELDS, "avg": FIELDS, "min": FIELDS,
        "max": FIELDS, "countDistinct": FIELDS, "groupBy": st.lists(GROUP, max_size=3),
        "where": WHERE,
    })),
    st.tuples(st.just("/api/search/Item"), st.fixed_dictionaries({}, optional={
        "query": TEXT, "filters": st.dictionaries(FIELD, VALUE, max_size=2), "facets": FIELDS,
        "sort": st.tuples(FIELD, st.sampled_from(["asc", "desc"])), "page": COUNT,
        "page_size": COUNT,
    })),
)


@settings(
    max_examples=250, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)
@given(request_=REQUEST)
def test_any_question_is_answered_in_time(
    served: PylonServer, request_: tuple[str, dict[str, Any]]
) -> None:
    answer, took_s = ask(served, *request_)
    assert took_s < PATIENCE_S
    assert answer.status == 200 or answer.json["error"]["code"] in REFUSALS | WRONG, answer.body
