"""Spans of requests: what they say, and their way to a collector that decodes OTLP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pylon.setting_checks
from pylon import limits, metrics
from pylon.clock import ManualClock, SystemRandom
from pylon.config import load as load_config
from pylon.errors import WriteQueueFull
from pylon.tracing import exporter as exporting
from pylon.tracing.exporter import SpanExporter
from pylon.tracing.spans import Span, SpanEncoder
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.collector import Collector, serve_collector
from tests.support.measured import total
from tests.support.server import PylonServer
from tests.support.wait import run_greenlets_until, wait_until
from tests.test_api_sync import MANIFEST

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with serve_collector() as made:
        yield made


@contextmanager
def serve(folder: Path, collector: Collector, **environ: str) -> Iterator[ApiStage]:
    with serve_api(
        folder, MANIFEST, {"PYLON_OTEL_ENDPOINT": collector.url, **environ}
    ) as stage:
        yield stage


def flush(stage: ApiStage) -> None:
    spans = stage.services.requests.spans
    assert spans is not None
    spans.close()


def test_a_span_has_the_conventions_names_and_nothing_of_the_client(
    tmp_path: Path, collector: Collector
) -> None:
    with serve(tmp_path, collector, PYLON_OTEL_HEADERS="Authorization=Bearer c-key,x=1") as stage:
        stage.call(
            "POST", "/api/entities/Note?x=in-the-query", b'{"text":"in-the-body"}', ADMIN_TOKEN,
            {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "req-1",
             "Cookie": "a=in-the-cookie"},
        )
        flush(stage)
    (received,) = collector.spans
    span = received.span
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert len(span.span_id) == 8 and span.span_id.hex() != PARENT
    assert (span.name, span.kind, span.status.code) == ("POST /api/entities/{entity}", 2, 0)
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    attributes = received.attributes
    assert attributes.pop("http.response.body.size") > 0
    assert attributes == {
        "http.request.method": "POST", "http.route": "/api/entities/{entity}",
        "http.response.status_code": 201, "url.scheme": "http", "network.protocol.name": "http",
        "network.protocol.version": "1.1", "pylon.request_id": "req-1",
    }
    assert received.resource["service.name"] == "sync" and received.scope == "pylon"
    assert received.resource.keys() >= {"service.version", "service.instance.id", "process.pid"}
    assert collector.requests[0]["authorization"] == "Bearer c-key"
    assert collector.requests[0]["content-type"] == "application/x-protobuf"
    assert "in-the" not in str(span)


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_failures_unknown_paths_and_odd_methods(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(op: object) -> None:
        raise WriteQueueFull("full")

    with serve(tmp_path, collector) as stage:
        monkeypatch.setattr(stage.writer, "submit", full)
        stage.call("POST", "/api/entities/Note", {"text": "x"}, ADMIN_TOKEN)
        stage.call("GET", "/nowhere")
        stage.call("PURGE", "/nowhere")
        stage.call("GET", "/health")
        flush(stage)
    failed, missing, odd = collector.spans
    assert failed.span.status.code == 2
    assert failed.attributes["error.type"] == WriteQueueFull.code
    assert (missing.span.name, missing.span.status.code) == ("GET", 0)
    assert missing.attributes["http.response.status_code"] == 404
    assert "http.route" not in missing.attributes and "error.type" not in missing.attributes
    assert (odd.span.name, odd.attributes["http.request.method"]) == ("HTTP", "_OTHER")
    assert len({each.span.trace_id for each in collector.spans}) == 3
    assert {each.span.parent_span_id for each in collector.spans} == {b""}


def test_a_streamed_response_ends_its_span_with_its_size(
    tmp_path: Path, collector: Collector
) -> None:
    with serve(tmp_path, collector) as stage:
        for number in range(30):
            stage.call("POST", "/api/entities/Note", {"text": str(number)}, ADMIN_TOKEN)
        exported = stage.call("GET", "/api/export/Note", token=ADMIN_TOKEN)
        flush(stage)
    (received,) = collector.named("GET /api/export/{entity}")
    assert received.attributes["http.response.body.size"] == len(exported.content) > 1_000


def test_the_callers_decision_counts_and_else_the_share(
    tmp_path: Path, collector: Collector
) -> None:
    with serve(tmp_path, collector, PYLON_OTEL_SAMPLE="0") as stage:
        stage.call("GET", "/api/auth/me")
        for flag in ("00", "01"):
            stage.call(
                "GET", "/api/auth/me", headers={"traceparent": f"00-{TRACE}-{PARENT}-{flag}"}
            )
        flush(stage)
    assert [each.span.trace_id.hex() for each in collector.spans] == [TRACE]


def span(number: int = 1) -> Span:
    return Span(TRACE, f"{number:016x}", None, "GET /x", 1, 2, {"http.route": "/x"}, False)


@pytest.fixture
def exporter(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> SpanExporter:
    monkeypatch.setattr(exporting, "_GATHER_S", 0.01)
    monkeypatch.setattr(exporting, "_FIRST_WAIT_S", 0.01)
    return SpanExporter(
        collector.url, {}, SpanEncoder({"service.name": "test"}), ManualClock(), SystemRandom(), 1.0
    )


def results() -> dict[str, float]:
    return {name: total(metrics.SPANS, result=name)
            for name in ("sent", "dropped", "refused", "lost")}


def counted(before: dict[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in results().items()
            if value != before[name]}


def test_spans_go_out_in_batches(exporter: SpanExporter, collector: Collector) -> None:
    before = results()
    for number in range(limits.SPANS_OF_BATCH + 10):
        exporter.put(span(number + 1))
    count = limits.SPANS_OF_BATCH + 10
    run_greenlets_until("spans are through", lambda: len(collector.spans) == count)
    assert len(collector.requests) == 2
    run_greenlets_until("spans are counted", lambda: counted(before) == {"sent": count})
    exporter.put(span())
    run_greenlets_until("spans are through", lambda: len(collector.requests) == 3)
    exporter.close()


@pytest.mark.parametrize(("statuses", "requests", "wanted"), [
    ([503, 429], 3, {"sent": 1}), ([400], 1, {"refused": 1}), ([307], 1, {"refused": 1}),
    ([503] * limits.SPAN_TRIES, limits.SPAN_TRIES, {"lost": 1}),
], ids=["busy", "refused", "redirect", "down"])
def test_a_batch_is_sent_again_while_that_can_help(
    exporter: SpanExporter, collector: Collector, capfd: Any, statuses: list[int], requests: int,
    wanted: dict[str, int],
) -> None:
    before = results()
    collector.statuses += statuses
    exporter.put(span())
    run_greenlets_until("spans are through", lambda: counted(before) == wanted)
    assert len(collector.requests) == requests
    assert ("spans.lost" in capfd.readouterr().err) == ("sent" not in wanted)
    exporter.close()


def test_what_a_collector_rejects_of_a_batch_is_counted(
    exporter: SpanExporter, collector: Collector
) -> None:
    before = results()
    collector.rejects = 2
    for number in range(5):
        exporter.put(span(number + 1))
    exporter.close()
    assert counted(before) == {"sent": 3, "refused": 2}


def test_the_queue_is_bounded_and_says_what_it_drops(
    exporter: SpanExporter, collector: Collector
) -> None:
    before = results()
    for number in range(limits.SPANS_WAITING + 7):
        exporter.put(span(number + 1))
    assert counted(before) == {"dropped": 7}
    assert total(metrics.SPANS_WAITING) == limits.SPANS_WAITING
    exporter.close()
    assert counted(before) == {"dropped": 7, "sent": limits.SPANS_WAITING}


def test_no_collector_at_all_loses_spans_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_GATHER_S", 0.01)
    monkeypatch.setattr(exporting, "_FIRST_WAIT_S", 0.01)
    before = results()
    lonely = SpanExporter(
        "http://127.0.0.1:1/v1/traces", {}, SpanEncoder({}), ManualClock(), SystemRandom(), 1.0
    )
    lonely.put(span())
    run_greenlets_until("spans are through", lambda: counted(before) == {"lost": 1})
    lonely.close()


def test_a_start_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pylon.setting_checks, "find_spec", lambda name: None)
    config = load_config({"PYLON_OTEL_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}).config
    problems = list(pylon.setting_checks.unsafe_settings(config))
    assert any("pylon-server[otel]" in problem for problem in problems)


@pytest.mark.usefixtures("processes")
def test_workers_of_a_real_server_send_spans_also_the_last_ones(
    tmp_path: Path, collector: Collector
) -> None:
    server = PylonServer(tmp_path / "server", MANIFEST, {
        "PYLON_OTEL_ENDPOINT": collector.url, "PYLON_HTTP_WORKERS": "2",
    })
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    try:
        server.start()
        for _ in range(20):
            server.request("GET", "/api/auth/me", headers=headers)
        wait_until("the spans have come", lambda: len(collector.named("GET /api/auth/me")) == 20)
        server.request("GET", "/api/client-config", headers=headers)
        assert server.terminate() == 0
    finally:
        server.close()
    assert len(collector.named("GET /api/client-config")) == 1
    assert {each.span.trace_id.hex() for each in collector.named("GET /api/auth/me")} == {TRACE}
