"""Arbitrary requests to a served app: never a 500, errors always in the envelope, and the
server is ready afterwards.

Bodies, path segments, query strings and headers are made by Hypothesis, some at random and some
out of the words that the app knows, so that they get past the first check.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.stores import TestStore
from tests.support.wide_app import SMALL, wide_app
from tests.support.wire import KeepAliveClient, Response

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.stores]

ADMIN = ("Authorization", f"Bearer {ADMIN_TOKEN}")
FEW = settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)
ROWS = 200


class Target:
    """The served app, a connection to it, and what it can be asked."""

    def __init__(self, server: PylonServer) -> None:
        self.server = server
        self.client = KeepAliveClient(server.port)
        document = self.client.request("GET", "/api/openapi.json", headers=[ADMIN]).json
        self.writes = sorted(
            (method.upper(), path)
            for path, item in document["paths"].items()
            for method in item
            if method in ("post", "patch") and path != "/api/__test__/reset"
        )

    def ask_checked(self, *request: Any, **more: Any) -> Response:
        """Send a request, and assert what must be true of every answer."""
        answer = self.client.request(*request, **more)
        assert_is_well_formed(answer, request[0])
        return answer


def assert_is_well_formed(answer: Response, method: str) -> None:
    assert answer.status != 500, answer.body
    assert 200 <= answer.status < 600
    if answer.status >= 400 and method != "HEAD":
        assert answer.headers.get("content-type") == "application/json", answer
        if answer.json.get("committed") is False:
            return  # a transaction: the errors are those of its operations
        error = answer.json["error"]
        assert isinstance(error["code"], str)
        assert isinstance(error["message"], str)
    if answer.status == 405:
        assert answer.headers["allow"]
    if answer.status == 503:
        assert answer.headers["retry-after"]


@pytest.fixture(scope="module")
def target(
    tested_store: TestStore, processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    server = PylonServer(tmp_path_factory.mktemp("requests"), wide_app(), SMALL)
    try:
        server.start()
        made = Target(server)
        for n in range(ROWS):
            row = {"title": f"t{n}", "count": n % 7, "done": n % 2 == 0, "weight": n / 3}
            body = json.dumps(row).encode()
            assert made.ask_checked("POST", "/api/entities/Item", body).status == 201
        yield made
        made.client.close()
    finally:
        server.close()


@pytest.fixture(autouse=True)
def still_ready(target: Target) -> Iterator[None]:
    yield
    assert target.ask_checked("GET", "/readyz").status == 200
    assert target.ask_checked("GET", "/api/entities/Item?limit=1").status == 200


WORDS = st.sampled_from([
    "id", "title", "body", "count", "weight", "done", "dueAt", "code", "parent", "up", "children",
    "Item", "Tag", "Secret", "entity", "op", "data", "operations", "changes", "kind", "insert",
    "update", "delete", "row_id", "op_id", "client_id", "user_id", "relation", "target_id",
    "where", "include", "limit", "order", "groupBy", "field", "bucket", "sum", "avg", "min", "max",
    "countDistinct", "query", "filters", "facets", "sort", "page", "page_size", "entities",
    "$or", "$and", "$not", "$ne", "$in", "$nin", "$gt", "$lt", "$gte", "$lte", "$like",
    "$startsWith", "$exists", "$search", "$order", "$limit", "$offset", "$ref:0", "*", "asc",
    "desc", "month", "2026-01-01", "1Z", "%", "'", '"', "--", "\0", "a' OR 1=1", "",
])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**66), 2**66), st.floats(), WORDS,
    st.text(max_size=20),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.one_of(WORDS, st.text(max_size=5)), inner, max_size=5),
    ),
    max_leaves=25,
)
OBJECTS = st.dictionaries(WORDS, JSON, max_size=5)
BODIES = st.one_of(
    OBJECTS.map(lambda body: json.dumps(body).encode()),
    JSON.map(lambda body: json.dumps(body).encode()),
    st.lists(OBJECTS, max_size=4).map(lambda body: json.dumps(body).encode()),
    st.binary(max_size=60),
    st.integers(60, 3_000).map(lambda depth: b"[" * depth + b"]" * depth),
    st.integers(60, 3_000).map(lambda depth: b'{"$and":[' * depth + b"{}" + b"]}" * depth),
)


@settings(FEW, max_examples=600)
@given(data=st.data(), body=BODIES, as_admin=st.booleans())
def test_any_body_on_any_writing_route(
    target: Target, data: st.DataObject, body: bytes, as_admin: bool
) -> None:
    method, path = data.draw(st.sampled_from(target.writes))
    target.ask_checked(method, path.replace("{row_id}", "x"), body, [ADMIN] if as_admin else [])


SEGMENTS = st.one_of(
    WORDS, st.text(max_size=12),
    st.sampled_from(["..", ".", "%", "%zz", "%00", "%2f", "{}", "*", "a" * 3_000, "\u202e", ";"]),
)
BASES = st.sampled_from([
    "/", "/api", "/api/entities", "/api/query", "/api/lookup", "/api/aggregate", "/api/search",
    "/api/actions", "/api/auth", "/api/sync", "/app", "/metrics", "/api/entities/Item",
    "/api/lookup/Item", "/api/lookup/Item/title", "/api/export",
])
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "TRACE"])


@settings(FEW, max_examples=400)
@given(METHODS, BASES, st.lists(SEGMENTS, max_size=4), st.booleans())
def test_any_path(
    target: Target, method: str, base: str, segments: list[str], as_admin: bool
) -> None:
    path = "/".join([base, *(quote(segment, safe="%") for segment in segments)])
    body = b"{}" if method in ("POST", "PATCH", "PUT") else None
    target.ask_checked(method, path, body, [ADMIN] if as_admin else [])


NAMES = st.sampled_from([
    "limit", "offset", "after", "since", "snapshot_after", "full", "count", "$limit", "", "x",
])
VALUES = st.one_of(
    st.text(max_size=20), st.integers().map(str),
    st.sampled_from(["-1", "1e9", "9" * 30, "٣", "0x10", "%ff", "%", "a&limit=1", "1" * 5_000]),
)
GETS = st.sampled_from([
    "/api/entities/Item", "/api/entities/Item/cursor", "/api/entities/Item/x", "/api/sync/pull",
    "/api/manifest", "/api/openapi.json", "/api/auth/me", "/api/lookup/Item/count/1", "/metrics",
    "/api/export", "/api/export/Item",
])


@settings(FEW, max_examples=300)
@given(GETS, st.lists(st.tuples(NAMES, VALUES), max_size=4), st.booleans())
def test_any_query_string(
    target: Target, path: str, pairs: list[tuple[str, str]], escaped: bool
) -> None:
    safe = "" if escaped else "%&="
    text = "&".join(f"{quote(name)}={quote(value, safe=safe)}" for name, value in pairs)
    target.ask_checked("GET", f"{path}?{text}", headers=[ADMIN])


HEADERS = st.sampled_from([
    "Authorization", "Cookie", "Origin", "Referer", "If-Match", "If-None-Match",
    "Idempotency-Key", "X-Request-Id", "X-Forwarded-For", "X-Forwarded-Proto", "Accept",
    "Content-Type", "Host", "User-Agent", "Sec-WebSocket-Protocol", "Upgrade", "Expect", "Range",
])
VISIBLE = bytes(string.printable.strip().encode()) + b" \t" + bytes(range(0x80, 0x100))
HEADER_VALUES = st.one_of(
    st.lists(st.sampled_from(VISIBLE), max_size=40).map(lambda codes: bytes(codes).strip()),
    st.sampled_from([
        b"", b"Bearer", b"Bearer ", b"Bearer pylon_" + b"f" * 64, b"Bearer \xff", b"Basic Og==",
        b"wide_session=", b'wide_session="', b"wide_session=a; wide_session=b", b";;;=;",
        b"null", b"http://localhost:3000", b"http://[", b"https://evil.example", b"*", b'"1"',
        b'W/"1"', b'"' + b"9" * 40 + b'"', b'"1", "2"', b"key", b"k" * 201, b"k" * 4_000,
        b"1.2.3.4, 5.6.7.8", b"::1", b"text/plain", b"openmetrics", b"100-continue",
        b"bytes=0-", b"websocket", b"a,b,c", b"%00",
    ]),
)
REQUESTS = st.sampled_from([
    ("GET", "/api/entities/Item", None), ("GET", "/api/auth/session", None),
    ("GET", "/metrics", None), ("GET", "/api/client-config", None), ("GET", "/health", None),
    ("POST", "/api/auth/guest", b""), ("POST", "/api/auth/refresh", b""),
    ("POST", "/api/entities/Tag", b'{"name":"t"}'), ("POST", "/api/query/Item", b"{}"),
    ("PATCH", "/api/entities/Item/x", b'{"title":"t"}'), ("DELETE", "/api/entities/Item/x", None),
    ("DELETE", "/api/auth/session", None), ("POST", "/api/transact", b"[]"),
    ("POST", "/api/batch", b'{"operations":[]}'), ("POST", "/api/sync/push", b'{"changes":[]}'),
])


@settings(FEW, max_examples=500)
@given(REQUESTS, st.lists(st.tuples(HEADERS, HEADER_VALUES), max_size=4))
@example(("GET", "/api/auth/me", None), [("Authorization", b"Bearer \xc3\xa9")])
@example(("GET", "/api/client-config", None), [("Host", b"\xff")])
@example(("POST", "/api/auth/guest", b""), [("Origin", b"\xff\xfe")])
@example(("POST", "/api/auth/guest", b""), [("Referer", b"http://[")])
@example(("DELETE", "/api/auth/session", None), [("Cookie", b"wide_session=a; wide_session=b")])
@example(("POST", "/api/auth/guest", b""), [("User-Agent", b"\x80" * 3_000)])
def test_any_headers(
    target: Target, request_line: tuple[str, str, bytes | None],
    headers: list[tuple[str, bytes]],
) -> None:
    method, path, body = request_line
    target.ask_checked(method, path, body, headers)


@settings(FEW, max_examples=150)
@given(st.one_of(
    st.binary(min_size=1, max_size=80).filter(lambda b: b"\n" not in b),
    st.sampled_from([
        b"GET", b"GET /", b"GET / HTTP/9.9", b"GET  /  HTTP/1.1", b"get / HTTP/1.1",
        b"\x16\x03\x01",
        b"GET http://evil.example/api/auth/me HTTP/1.1", b"GET * HTTP/1.1", b"OPTIONS * HTTP/1.1",
        b"GET //evil.example HTTP/1.1", b"GET /%00 HTTP/1.1", b"GET /\xff HTTP/1.1",
        b"GET /" + b"a" * 9_000 + b" HTTP/1.1",
    ]),
))
def test_any_request_line(target: Target, line: bytes) -> None:
    """What is not HTTP gets an answer that says so, or none; and nothing breaks."""
    client = KeepAliveClient(target.server.port, timeout_s=10)
    try:
        answer = client.exchange(line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    except ConnectionError:
        return
    except OSError as ex:
        raise AssertionError(f"no answer to {line!r}") from ex
    finally:
        client.close()
    assert_is_well_formed(answer, "HEAD" if line.startswith(b"HEAD ") else "GET")
