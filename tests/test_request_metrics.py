"""The metrics of requests: by route, by error code, by size; and that no client adds a series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon import metrics
from pylon.api.http.request_metrics import MeasuredStream
from pylon.metrics import snapshot
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.measured import total
from tests.test_api_sync import MANIFEST

pytestmark = pytest.mark.stores
ROWS = "/api/entities/{entity}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "page.html").write_text("x" * 5_000)
    with serve_api(tmp_path, MANIFEST, {"PYLON_STATIC_DIR": str(tmp_path / "static")}) as made:
        yield made


def sum_of(name: str, **labels: str) -> float:
    return sum(
        sample.value for family in snapshot() for sample in family.samples
        if sample.name == f"{name}_sum" and labels.items() <= sample.labels.items()
    )


def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in snapshot() for sample in family.samples
        if family.name.startswith("pylon_http_")
    }


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_10_000_odd_urls_methods_and_ids_add_no_series(server: ApiStage) -> None:
    for method in ("GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS", "ODD", "WEBSOCKET"):
        for path in ("/x", "/api/entities/Note/1", "/api/entities/No/1", "/api/rooms/x",
                     "/api/entities/Note/a%2Fb", "/api/nothing"):
            server.call(method, path, b"{" if method in ("POST", "PATCH", "PUT") else None)
    before = series()
    for number in range(1_112):
        for method, path in (
            ("GET", f"/odd{number}"), ("GET", f"/api/entities/Note/{number}"),
            ("GET", f"/api/entities/Entity{number}/1"), (f"ODD{number}", "/x"),
            ("DELETE", f"/api/entities/Note/{number}%2F{number}"),
            ("HEAD", f"/api/rooms/{number}"), ("PUT", f"/api/entities/Note/{number}"),
            ("WEBSOCKET", f"/{number}"), ("GET", f"/api/nothing/{number}?{number}={number}"),
        ):
            server.call(method, path)
    assert series() == before


def test_an_error_is_counted_by_its_code(server: ApiStage) -> None:
    before = {code: total(metrics.HTTP_ERRORS, code=code)
              for code in ("NOT_FOUND", "INVALID_JSON", "METHOD_NOT_ALLOWED")}
    server.call("GET", "/api/entities/Note/none")
    server.call("POST", "/api/entities/Note", b"{")
    server.call("PUT", "/api/entities/Note")
    server.call("GET", "/api/auth/me")
    for code, count in before.items():
        assert total(metrics.HTTP_ERRORS, code=code) == count + 1, code


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_a_method_that_the_framework_refuses_is_counted(server: ApiStage) -> None:
    before = total(metrics.HTTP_REQUESTS, route="none", method="OTHER", status="400")
    assert server.call("WEBSOCKET", "/x").status_code == 400
    assert total(metrics.HTTP_REQUESTS, route="none", method="OTHER", status="400") == before + 1


def test_sizes_are_those_of_the_bodies(server: ApiStage) -> None:
    asked = sum_of("pylon_http_request_size_bytes", route=ROWS)
    bodies = total(metrics.HTTP_REQUEST_BYTES)
    answered = sum_of("pylon_http_response_size_bytes", route=ROWS)
    body = b'{"text":"12345"}'
    made = server.call("POST", "/api/entities/Note", body, ADMIN_TOKEN)
    assert made.status_code == 201
    assert sum_of("pylon_http_request_size_bytes", route=ROWS) == asked + len(body)
    listed = server.call("GET", "/api/entities/Note", token=ADMIN_TOKEN)
    head = server.call("HEAD", "/api/entities/Note", token=ADMIN_TOKEN)
    assert int(head.headers["content-length"]) == len(listed.content)
    assert sum_of("pylon_http_response_size_bytes", route=ROWS) == (
        answered + len(made.content) + len(listed.content)
    )
    assert total(metrics.HTTP_REQUEST_BYTES) == bodies + 1


def test_size_of_a_streamed_response_and_of_a_file(server: ApiStage) -> None:
    for number in range(20):
        server.call("POST", "/api/entities/Note", {"text": str(number)}, ADMIN_TOKEN)
    before = sum_of("pylon_http_response_size_bytes", route="/api/export/{entity}")
    exported = server.call("GET", "/api/export/Note", token=ADMIN_TOKEN)
    assert exported.status_code == 200 and len(exported.content) > 1_000
    assert sum_of("pylon_http_response_size_bytes", route="/api/export/{entity}") == (
        before + len(exported.content)
    )
    before = sum_of("pylon_http_response_size_bytes", route="none")
    assert len(server.call("GET", "/app/page.html").content) == 5_000
    assert sum_of("pylon_http_response_size_bytes", route="none") == before + 5_000


def test_a_stream_that_its_client_leaves_is_measured_once_and_closed() -> None:
    ended: list[str] = []

    def parts() -> Iterator[bytes]:
        try:
            yield b"abc"
            yield b"defg"
        finally:
            ended.append("closed")

    observed: list[float] = []
    stream = MeasuredStream(parts(), [observed.append])
    assert next(stream) == b"abc"
    stream.close()
    stream.close()
    assert (observed, ended) == ([3], ["closed"])
