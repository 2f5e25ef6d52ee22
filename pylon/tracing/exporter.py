"""The exporter: sends the spans of one worker to a collector, by OTLP over HTTP.

`put` appends a span to a bounded queue and never blocks. A greenlet takes the spans of a second
together and sends them in batches. A collector that does not answer gets a batch again, a few times
with growing waits; then the batch is lost. Meanwhile the queue fills, and drops what comes.

Invariants: no request waits for the collector. A worker without spans has no timer. A worker that
ends sends what waits, for at most `limits.SPAN_REQUEST_S`. Bounds: `limits.SPANS_WAITING` spans,
`limits.SPANS_OF_BATCH` in a request, `limits.SPAN_TRIES`. Metrics: pylon_spans_total,
pylon_spans_waiting. Log event: spans.lost, once in `limits.SPAN_LOG_S`. Each HTTP worker has one,
made after its fork by `pylon.api.services`, if PYLON_OTEL_ENDPOINT is set.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from contextlib import suppress
from typing import Any, Final

import gevent
import urllib3
from gevent.event import Event

from pylon import limits, metrics
from pylon.app import App
from pylon.clock import Clock, RandomSource
from pylon.log import get_logger
from pylon.tracing.spans import Span, SpanEncoder

_CONTENT_TYPE: Final = "application/x-protobuf"
_RETRYABLE: Final = frozenset({429, 502, 503, 504})  # of the OTLP specification
_GATHER_S: Final = 1.0
_FIRST_WAIT_S: Final = 1.0

_log = get_logger("tracing")
_results: Final = {
    result: metrics.SPANS.labels(result=result).inc
    for result in ("sent", "dropped", "refused", "lost")
}


class SpanExporter:
    """The spans of one worker that wait for the collector."""

    def __init__(
        self, endpoint: str, headers: dict[str, str], encoder: SpanEncoder, clock: Clock,
        random: RandomSource, share: float,
    ) -> None:
        """
        Args:
            endpoint: the collector's URL for traces, for example http://127.0.0.1:4318/v1/traces.
            headers: further header fields, such as the collector's credentials.
            share: of the requests that bring no trace, those that begin one (PYLON_OTEL_SAMPLE).
        """
        self._endpoint = endpoint
        self._headers = {**headers, "content-type": _CONTENT_TYPE}
        self._encoder = encoder
        self._clock = clock
        self._random = random
        self._share = share
        self._waiting: deque[Span] = deque()
        self._filled = Event()
        self._greenlet: gevent.Greenlet[[], Any] | None = None
        self._logged_s = float("-inf")
        self._pool = urllib3.PoolManager(1, retries=False, timeout=limits.SPAN_REQUEST_S)
        metrics.SPANS_WAITING.set_function(lambda: len(self._waiting))

    def begins_trace(self) -> bool:
        """Return whether a request that brings no trace begins one."""
        share = self._share
        return share > 0.0 and (share >= 1.0 or self._random.uniform(0.0, 1.0) < share)

    def put(self, span: Span) -> None:
        """Queue a span; drop it if too many wait. Never blocks."""
        if len(self._waiting) >= limits.SPANS_WAITING:
            _results["dropped"]()
            return
        self._waiting.append(span)
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)
        self._filled.set()

    def close(self) -> None:
        """Send what waits, each batch once, within the time limit of one request."""
        if self._greenlet is not None:
            self._greenlet.kill()
        with gevent.Timeout(limits.SPAN_REQUEST_S, False):
            while self._waiting:
                self._send(self._take_batch(), tries=1)
        self._pool.clear()

    def _run(self) -> None:
        while True:
            self._filled.wait()
            gevent.sleep(_GATHER_S)
            self._filled.clear()
            while self._waiting:
                self._send(self._take_batch(), tries=limits.SPAN_TRIES)

    def _take_batch(self) -> list[Span]:
        count = min(len(self._waiting), limits.SPANS_OF_BATCH)
        return [self._waiting.popleft() for _ in range(count)]

    def _send(self, batch: list[Span], tries: int) -> None:
        body = self._encoder.encode(batch)
        wait_s = _FIRST_WAIT_S
        for attempt in range(1, tries + 1):
            problem, is_final = self._attempt(body, batch)
            if problem is None:
                return
            if is_final or attempt == tries:
                break
            gevent.sleep(wait_s * self._random.uniform(0.8, 1.2))
            wait_s *= 2
        _results["refused" if is_final else "lost"](len(batch))
        now_s = self._clock.monotonic_s()
        if now_s - self._logged_s >= limits.SPAN_LOG_S:
            self._logged_s = now_s
            _log.warning(
                "spans.lost", problem=problem, spans=len(batch), endpoint=self._endpoint,
                hint="check PYLON_OTEL_ENDPOINT and the collector",
            )

    def _attempt(self, body: bytes, batch: list[Span]) -> tuple[str | None, bool]:
        """Send a batch once. Return what went wrong, and whether another attempt is in vain."""
        try:
            answer = self._pool.request(
                "POST", self._endpoint, body=body, headers=self._headers, redirect=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as ex:
            return type(ex).__name__, False
        if answer.status >= 300:
            return f"status {answer.status}", answer.status not in _RETRYABLE
        rejected = 0
        with suppress(ValueError):  # the status says that the collector has the spans
            rejected = min(self._encoder.count_rejected(answer.data), len(batch))
        _results["sent"](len(batch) - rejected)
        _results["refused"](rejected)
        return None, True


def open_exporter(app: App) -> SpanExporter:
    """Return the exporter of this process, for the collector at PYLON_OTEL_ENDPOINT."""
    config = app.config
    encoder = SpanEncoder({
        "service.name": app.manifest.name, "service.version": app.manifest.version,
        "service.instance.id": app.random.token_hex(8), "host.name": platform.node(),
        "process.pid": os.getpid(),
    })
    return SpanExporter(
        config.otel_endpoint or "", dict(config.otel_headers), encoder, app.clock, app.random,
        config.otel_sample,
    )
