"""The headers of our answers, as HTTP wants them (RFC 9110), on every route of a served app."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wide_app import SMALL, wide_app
from tests.support.wire import KeepAliveClient, Response

ADMIN = ("Authorization", f"Bearer {ADMIN_TOKEN}")
OF_ONE_ANSWER = {"x-request-id", "date", "connection"}
# What they say changes from one moment to the next, and its length with it.
ALIVE = {"/metrics", "/health", "/readyz"}
# The links of mails, which a browser opens. That of an invite has no page: the app has no orgs.
PAGES = {"/api/auth/magic-link/verify", "/email-change/confirm", "/email-change/revert"}


@pytest.fixture(scope="module")
def served(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    server = PylonServer(tmp_path_factory.mktemp("headers"), wide_app(), SMALL)
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def client(served: PylonServer) -> Iterator[KeepAliveClient]:
    made = KeepAliveClient(served.port)
    yield made
    made.close()


def paths(client: KeepAliveClient, method: str) -> list[str]:
    """Every path with the method, its variables filled."""
    document = client.request("GET", "/api/openapi.json", headers=[ADMIN]).json
    found = [
        path.replace("{row_id}", "x").replace("{value}", "y")
        for path, item in document["paths"].items() if method in item
    ]
    assert len(found) > 5
    return found


def lasting(answer: Response, path: str) -> dict[str, str]:
    left_out = OF_ONE_ANSWER | ({"content-length"} if path in ALIVE else set())
    return {name: value for name, value in answer.headers.items() if name not in left_out}


def test_head_has_the_headers_of_get_and_no_body(client: KeepAliveClient) -> None:
    for path in paths(client, "head"):
        get = client.request("GET", path, headers=[ADMIN])
        head = client.request("HEAD", path, headers=[ADMIN])
        assert (head.status, head.body) == (get.status, b""), path
        assert lasting(head, path) == lasting(get, path), path


def test_every_answer_says_its_length_and_type_and_id(client: KeepAliveClient) -> None:
    shown = set()
    for path in paths(client, "get"):
        if path.endswith("/connect"):  # a stream, by a shards worker: tests/test_e2e_shards.py
            continue
        answer = client.request("GET", path, headers=[ADMIN])
        if "transfer-encoding" not in answer.headers:
            assert int(answer.headers["content-length"]) == len(answer.body), path
        is_page = answer.headers["content-type"] == "text/html; charset=utf-8"
        if is_page:
            shown.add(path)
        else:
            kinds = ("application/json", "text/plain")
            assert answer.headers["content-type"].startswith(kinds), path
        assert answer.headers["x-request-id"], path
        assert answer.headers["x-content-type-options"] == "nosniff", path
        # Of a response that may be compressed it names Accept-Encoding too.
        assert answer.headers["vary"] in ("Origin", "Accept-Encoding, Origin"), path
        if is_page or path.startswith("/api/") or path in ("/metrics", "/readyz"):
            # What depends on the caller or on Accept is in no cache, so Vary need not say so.
            assert answer.headers["cache-control"] == "no-store", path
    assert shown == PAGES


def test_405_names_the_methods_that_are_there(client: KeepAliveClient) -> None:
    document = client.request("GET", "/api/openapi.json", headers=[ADMIN]).json
    for path, item in document["paths"].items():
        filled = path.replace("{row_id}", "x").replace("{value}", "y")
        # A path that matches a row's too, as .../cursor does, has the row's PATCH and DELETE.
        method = "PATCH" if "put" in item else "PUT"
        assert method.lower() not in item, path
        answer = client.request(method, filled, b"{}", [ADMIN])
        assert answer.status == 405, path
        allowed = {name.strip().lower() for name in answer.headers["allow"].split(",")}
        assert allowed - {"options"} == item.keys(), path


def test_401_has_a_challenge(client: KeepAliveClient) -> None:
    for method, path in (("GET", "/metrics"), ("POST", "/api/auth/refresh")):
        answer = client.request(method, path, b"" if method == "POST" else None)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="pylon"'


def test_a_preflight_allows_what_clients_send(client: KeepAliveClient) -> None:
    answer = client.request("OPTIONS", "/api/entities/Item/x", headers=[
        ("Origin", "http://localhost:3000"), ("Access-Control-Request-Method", "PATCH"),
        ("Access-Control-Request-Headers", "if-match, idempotency-key"),
    ])
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers  # RFC 9110 §8.6
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"if-match", "if-none-match", "idempotency-key", "authorization"} <= set(allowed)
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert {"etag", "idempotency-replayed", "x-pylon-change-seq", "retry-after"} <= set(exposed)


def test_304_has_the_etag_and_no_body(client: KeepAliveClient) -> None:
    made = client.request("POST", "/api/entities/Tag", b'{"name":"t"}')
    assert made.status == 201
    path = f"/api/entities/Tag/{made.json['id']}"
    etag = made.headers["etag"]
    assert client.request("GET", path).headers["etag"] == etag
    known = client.request("GET", path, headers=[("If-None-Match", etag)])
    assert (known.status, known.body, known.headers["etag"]) == (304, b"", etag)
    again = client.request("GET", path)
    assert again.status == 200  # on the same connection: nothing was left over


@pytest.mark.parametrize(("sent", "status"), [
    (b"GET /" + b"p" * 9_000 + b" HTTP/1.1\r\n\r\n", 414),
    (b"GET /health HTTP/1.1\r\nHost: h\r\nX: " + b"v" * 9_000 + b"\r\n\r\n", 431),
    (b"GET /health HTTP/1.1\r\n\r\n", 400),
    (b"POST /api/query/Item HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
    (b"POST /api/query/Item HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\na00001\r\n",
     413),
    (b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: else\r\n\r\n", 417),
    (b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    (b"GET / HTTP/3.0\r\n\r\n", 505),
], ids=["414", "431", "no host", "bad chunk", "large chunk", "417", "501", "505"])
def test_a_page_can_read_what_the_server_refuses_before_the_app(
    served: PylonServer, client: KeepAliveClient, sent: bytes, status: int
) -> None:
    """B52: without CORS headers the page learns "CORS error" and no more."""
    wanted = client.request("GET", "/api/auth/me").headers
    refusing = KeepAliveClient(served.port)
    answer = refusing.exchange(sent)
    refusing.close()
    assert answer.status == status
    assert answer.json["error"]["code"]
    for name, value in wanted.items():
        if name.startswith(("access-control-", "x-")) and name not in OF_ONE_ANSWER:
            assert answer.headers[name] == value
    assert answer.headers["access-control-allow-origin"]
    assert answer.headers["vary"] == "Origin"
    assert answer.headers["cache-control"] == "no-store"


def test_what_may_pass_says_when_to_try_again(served: PylonServer) -> None:
    """A drain: 503 with Retry-After, or a connection that is closed in order."""
    client = KeepAliveClient(served.port)
    assert client.request("GET", "/readyz").status == 200
    assert served.process is not None
    served.process.terminate()
    seen = []
    try:
        while served.process.poll() is None:
            answer = client.request("GET", "/readyz")
            seen.append(answer.status)
            if answer.status == 503:
                assert answer.headers["retry-after"] == "1"
                assert answer.headers["cache-control"] == "no-store"
    except (OSError, http.client.HTTPException):
        pass  # the port is closed
    finally:
        client.close()
    assert served.process.wait(60) == 0
    assert set(seen) <= {200, 503}
