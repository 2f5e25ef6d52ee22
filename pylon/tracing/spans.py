"""Spans: what a trace tells of one request, and their form in OTLP (protobuf over HTTP).

Names and attributes follow OpenTelemetry's semantic conventions of HTTP servers (1.23 and later).
`SpanEncoder` makes an ExportTraceServiceRequest of many spans. The messages are those of
opentelemetry-proto, the extra `[otel]`, which only a process with an encoder imports.

Invariant: a span has what the access log has, and no more of what a client sent. Called by
`pylon.api.http.request_spans` and `exporter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

import pylon

_KIND_SERVER: Final = 2  # SpanKind.SPAN_KIND_SERVER
_STATUS_ERROR: Final = 2  # Status.STATUS_CODE_ERROR
_FLAG_SAMPLED: Final = 1

AttributeValue = str | int


class Span(msgspec.Struct, frozen=True, gc=False):
    """One request of this server within a trace. Ids are lower-case hex, as in `traceparent`."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    started_ns: int  # Unix time
    ended_ns: int
    attributes: Mapping[str, AttributeValue]
    is_error: bool


class SpanEncoder:
    """Encodes spans of one process."""

    __slots__ = ("_messages", "_resource", "_response")

    def __init__(self, resource: Mapping[str, AttributeValue]) -> None:
        """
        Args:
            resource: the attributes of the process: service.name and so on.

        Raises:
            ImportError: opentelemetry-proto is not installed; a start refuses that.
        """
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

        self._messages: Any = trace_service_pb2
        self._resource = resource

    def encode(self, spans: Sequence[Span]) -> bytes:
        """Return an ExportTraceServiceRequest. PERF: 6 us for each span."""
        request = self._messages.ExportTraceServiceRequest()
        group = request.resource_spans.add()
        _add_attributes(group.resource.attributes, self._resource)
        scope = group.scope_spans.add()
        scope.scope.name, scope.scope.version = "pylon", pylon.__version__
        for span in spans:
            out = scope.spans.add()
            out.trace_id = bytes.fromhex(span.trace_id)
            out.span_id = bytes.fromhex(span.span_id)
            if span.parent_id is not None:
                out.parent_span_id = bytes.fromhex(span.parent_id)
            out.name, out.kind, out.flags = span.name, _KIND_SERVER, _FLAG_SAMPLED
            out.start_time_unix_nano, out.end_time_unix_nano = span.started_ns, span.ended_ns
            _add_attributes(out.attributes, span.attributes)
            if span.is_error:
                out.status.code = _STATUS_ERROR
        encoded: bytes = request.SerializeToString()
        return encoded

    def count_rejected(self, answer: bytes) -> int:
        """Return how many spans the collector rejected, by the body of its answer.

        Raises:
            ValueError: the body is no ExportTraceServiceResponse.
        """
        from google.protobuf.message import DecodeError

        response = self._messages.ExportTraceServiceResponse()
        try:
            response.ParseFromString(answer)
        except DecodeError as ex:
            raise ValueError("the collector's answer is no protobuf") from ex
        return int(response.partial_success.rejected_spans)


def _add_attributes(out: Any, attributes: Mapping[str, AttributeValue]) -> None:
    for name, value in attributes.items():
        attribute = out.add()
        attribute.key = name
        if isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.string_value = value
