"""Traces of requests: which fields count, and what carries them on; the lines of the access log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pylon import log
from pylon.metrics import Merged, render_openmetrics, render_text, take_changes
from pylon.trace_context import TraceContext, parse_traceparent
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.test_api_sync import MANIFEST
from tests.test_metrics import status

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FIELD = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST, {"PYLON_ACCESS_LOG": "1"}) as made:
        yield made


@pytest.fixture
def lines(capfd: Any) -> Iterator[Any]:
    log.configure("json", "info", "http", "1")

    def read() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        return [line for line in found if line["event"] == "request.answered"]

    yield read
    log.configure("json", "info", "", "")


@pytest.mark.parametrize(("field", "is_sampled"), [
    (FIELD, True), (f"00-{TRACE}-{SPAN}-00", False), (f"00-{TRACE}-{SPAN}-03", True),
    (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", True), (f"cc-{TRACE}-{SPAN}-01", True),
])
def test_a_valid_field_names_a_trace(field: str, is_sampled: bool) -> None:
    assert parse_traceparent(field) == TraceContext(TRACE, SPAN, is_sampled)


@pytest.mark.parametrize("field", [
    "", "x", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE}-{SPAN}-1",
    f"00-{TRACE[1:]}-{SPAN}-01", f" {FIELD}", f"{FIELD}\n", f"cc-{TRACE}-{SPAN}-01.x",
    f"cc-{TRACE}-{SPAN}-01-" + "x" * 300,
])
def test_a_malformed_field_is_ignored(field: str) -> None:
    assert parse_traceparent(field) is None


def test_a_context_writes_the_field_that_it_came_from() -> None:
    context = parse_traceparent(FIELD)
    assert context is not None and context.traceparent() == FIELD


def test_a_line_has_route_and_ids_and_nothing_of_the_client(server: ApiStage, lines: Any) -> None:
    made = server.call(
        "POST", "/api/entities/Note?x=in-the-query", b'{"text":"in-the-body"}', ADMIN_TOKEN,
        {"traceparent": FIELD, "X-Request-Id": "req-1", "Cookie": "a=in-the-cookie"},
    )
    server.call("GET", "/nowhere/in-the-path", headers={"traceparent": "malformed"})
    server.call("GET", "/health")
    first, second = lines()
    assert first.pop("ts") > 0 and first.pop("duration_s") >= 0
    assert first == {
        "level": "info", "event": "request.answered", "role": "http", "worker": "1", "part": "http",
        "request_id": "req-1", "method": "POST", "route": "/api/entities/{entity}",
        "status": made.status_code, "trace_id": TRACE, "size_bytes": len(made.content),
    }
    assert (second["route"], second["status"]) == ("none", 404)
    assert "trace_id" not in second
    assert "in-the" not in json.dumps([first, second])


def test_a_streamed_response_has_its_line_at_its_end(server: ApiStage, lines: Any) -> None:
    for number in range(30):
        server.call("POST", "/api/entities/Note", {"text": str(number)}, ADMIN_TOKEN)
    exported = server.call("GET", "/api/export/Note", token=ADMIN_TOKEN)
    *_, last = lines()
    assert last["route"] == "/api/export/{entity}"
    assert last["size_bytes"] == len(exported.content) > 1_000


@pytest.mark.parametrize(("share", "low", "high"), [("0", 0, 0), ("0.2", 10, 150), ("1", 300, 300)])
def test_a_share_of_the_requests_has_a_line(
    tmp_path: Path, lines: Any, share: str, low: int, high: int
) -> None:
    with serve_api(tmp_path, MANIFEST, {"PYLON_ACCESS_LOG": share}) as server:
        for _ in range(300):
            server.call("GET", "/api/auth/me")
    assert low <= len(lines()) <= high


def test_openmetrics_has_the_trace_as_an_exemplar_and_text_has_none(server: ApiStage) -> None:
    other = TRACE[::-1]
    take_changes()
    for trace, flag in ((other, "01"), (TRACE, "01"), (TRACE.replace("4", "5"), "00")):
        server.call("GET", "/api/auth/me", headers={"traceparent": f"00-{trace}-{SPAN}-{flag}"})
    merged = Merged()
    merged.update(status("1", *take_changes()))
    families = merged.families()
    found = {
        sample.exemplar.labels["trace_id"]
        for family in text_string_to_metric_families(render_openmetrics(families))
        for sample in family.samples
        if sample.labels.get("route") == "/api/auth/me" and sample.exemplar is not None
    }
    assert TRACE in found and TRACE.replace("4", "5") not in found
    assert "trace_id" not in render_text(families)
    merged.forget("http", "1")
    assert "trace_id" not in render_openmetrics(merged.families())
