"""Metrics of HTTP workers: requests, connections, compression, and the query cache."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import BYTES, FAST_S, WORKER
from pylon.metrics.values import PlainCounter as Counter
from pylon.metrics.values import PlainHistogram as Histogram

HTTP_REQUESTS: Final = Counter(
    "pylon_http_requests_total", "Answered HTTP requests.", ("route", "method", "status"),
    registry=WORKER,
)
HTTP_UNKNOWN_PARAMETERS: Final = Counter(
    "pylon_http_unknown_parameters_total",
    "Requests with a query parameter that the route does not take.", ("route",), registry=WORKER,
)
HTTP_DURATION: Final = Histogram(
    "pylon_http_request_duration_seconds", "Time from a parsed request to its answer.",
    ("route",), buckets=FAST_S, registry=WORKER,
)
HTTP_ERRORS: Final = Counter(
    "pylon_http_errors_total", "Error answers to HTTP requests, by error code (docs/errors.md).",
    ("code",), registry=WORKER,
)
HTTP_REQUEST_BYTES: Final = Histogram(
    "pylon_http_request_size_bytes", "Size of request bodies, of the requests that have one.",
    ("route",), buckets=BYTES, registry=WORKER,
)
HTTP_RESPONSE_BYTES: Final = Histogram(
    "pylon_http_response_size_bytes", "Size of response bodies as sent, compressed ones included.",
    ("route",), buckets=BYTES, registry=WORKER,
)
SPANS: Final = Counter(
    "pylon_spans_total",
    "Spans of requests, by result: sent, dropped (the queue was full), refused (by the collector), "
    "lost (it did not answer).", ("result",), registry=WORKER,
)
SPANS_WAITING: Final = Gauge(
    "pylon_spans_waiting", "Spans that wait for the collector.", registry=WORKER,
)
HTTP_REQUESTS_IN_FLIGHT: Final = Gauge(
    "pylon_http_requests_in_flight",
    "Requests being answered at the moment, waiting ones included.",
    registry=WORKER,
)
HTTP_WAITING: Final = Gauge(
    "pylon_http_connections_waiting",
    "Connections that wait for a greenlet to answer them.", registry=WORKER,
)
QUARANTINED_FINGERPRINTS: Final = Gauge(
    "pylon_quarantined_fingerprints", "Requests that have killed workers and are refused, as each "
    "worker knows them.", registry=WORKER,
)
QUARANTINED_REQUESTS: Final = Counter(
    "pylon_quarantined_requests_total", "Requests refused because their like has killed workers.",
    registry=WORKER,
)
HTTP_ABORTED: Final = Counter(
    "pylon_http_connections_aborted_total",
    "HTTP connections ended by a limit, by reason.", ("reason",),
    registry=WORKER,
)
COMPRESSED_RESPONSES: Final = Counter(
    "pylon_http_compressed_responses_total",
    "Large responses that the client takes compressed, by encoding; none: too many at once.",
    ("encoding",), registry=WORKER,
)
COMPRESSION_SAVED: Final = Counter(
    "pylon_http_compression_saved_bytes_total",
    "Bytes of responses that compression saved.", registry=WORKER,
)
HIDDEN_CONFLICTS: Final = Counter(
    "pylon_hidden_conflicts_total",
    "Refused writes that reveal a row which the caller may not read, by kind of value; values "
    "that an undone transaction had tried.", ("kind",), registry=WORKER,
)
QUERY_CACHE_LOOKUPS: Final = Counter(
    "pylon_query_cache_lookups_total",
    "Queries and pulls, by whether the query cache had the answer: hit or miss.",
    ("result",), registry=WORKER,
)
QUERY_CACHE_BYTES: Final = Gauge(
    "pylon_query_cache_size_bytes",
    "Bytes of answers in the query cache, which lasts until the next commit.", registry=WORKER,
)

# Derived from HTTP_REQUESTS when the page is made (spec/http.md §7): help texts by name.
DERIVED_HELP: Final = {
    "pylon_http_requests_ok_total": "Answered HTTP requests with a status from 200 to 399.",
    "pylon_http_requests_errors_total": "Answered HTTP requests with any other status.",
    "pylon_http_requests_by_method": "The same as pylon_http_requests_by_method_total: the name "
    "that dashboards of the other server read.",
    "pylon_http_requests_by_method_total": "Answered HTTP requests by method.",
}
DERIVED_LABELS: Final[dict[str, tuple[str, ...]]] = {
    name: ("method",) if "by_method" in name else () for name in DERIVED_HELP
}
