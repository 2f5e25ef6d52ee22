"""The span of a request, by the semantic conventions of HTTP servers.

`begin` gives a request its place in a trace: in the trace that its `traceparent` names, if that one
is sampled, or in a new one (PYLON_OTEL_SAMPLE). `finish` makes the span at the end of the response.

Invariant: a span names the route and never the path, as the access log does. Called by
`middleware`, only with an exporter. PERF: 3 us for both; a span of
OpenTelemetry's own SDK costs 18 us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import falcon

from pylon.api.http.request_metrics import method_label
from pylon.clock import NS_PER_S, Clock, RandomSource
from pylon.trace_context import TraceContext
from pylon.tracing.spans import AttributeValue, Span

if TYPE_CHECKING:  # a worker without a collector does not import it
    from pylon.tracing.exporter import SpanExporter

_OTHER_METHOD: Final = "_OTHER"  # of the semantic conventions


def begin(
    req: falcon.Request, exporter: SpanExporter, clock: Clock, random: RandomSource
) -> None:
    """Begin the span of a request, if its trace is sampled: a span id of its own."""
    context = req.context
    caused_by: TraceContext | None = getattr(context, "trace", None)
    if caused_by is not None and not caused_by.is_sampled:
        return
    if caused_by is None and not exporter.begins_trace():
        return
    trace_id = random.token_hex(16) if caused_by is None else caused_by.trace_id
    context.parent_id = None if caused_by is None else caused_by.span_id
    context.trace = TraceContext(trace_id, random.token_hex(8), True)
    context.span_started_ns = clock.wall_ns()


def finish(
    req: falcon.Request, resp: falcon.Response, exporter: SpanExporter, elapsed_s: float,
    size_bytes: int,
) -> None:
    """End the span of a request that `begin` has begun."""
    context = req.context
    started_ns: int | None = getattr(context, "span_started_ns", None)
    if started_ns is None:
        return
    method = method_label(req.method)
    status = resp.status_code
    attributes: dict[str, AttributeValue] = {
        "http.request.method": method if method == req.method else _OTHER_METHOD,
        "http.response.status_code": status,
        "http.response.body.size": size_bytes,
        "url.scheme": req.forwarded_scheme,
        "network.protocol.name": "http",
        "network.protocol.version": req.env.get("SERVER_PROTOCOL", "HTTP/1.1")[5:],
        "pylon.request_id": context.request_id,
    }
    route = req.uri_template
    if route is not None:
        attributes["http.route"] = route
    if status >= 500:
        attributes["error.type"] = getattr(context, "error_code", str(status))
    shown = "HTTP" if method != req.method else method
    exporter.put(Span(
        context.trace.trace_id, context.trace.span_id, context.parent_id,
        shown if route is None else f"{shown} {route}", started_ns,
        started_ns + int(elapsed_s * NS_PER_S), attributes, status >= 500,
    ))
