"""An OpenTelemetry collector in a thread of the test: it receives traces by OTLP over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass
class Received:
    """A span that came, with the attributes of its process."""

    span: Any
    resource: dict[str, Any]
    scope: str

    @property
    def attributes(self) -> dict[str, Any]:
        """The span's attributes."""
        return values_of(self.span.attributes)


def values_of(attributes: Any) -> dict[str, Any]:
    """Return attributes of the protocol as a dict."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes
    }


@dataclass
class Collector:
    """The collector. `statuses` are those of its next answers; afterwards it takes everything."""

    url: str
    spans: list[Received] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    rejects: int = 0  # of each request, by its partial success
    requests: list[dict[str, str]] = field(default_factory=list)  # the header fields of each

    def named(self, name: str) -> list[Received]:
        """Return the spans of a name."""
        return [each for each in self.spans if each.span.name == name]

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        self.requests.append({k.lower(): v for k, v in handler.headers.items()})
        status = self.statuses.pop(0) if self.statuses else 200
        response = ExportTraceServiceResponse()
        if status == 200:
            assert handler.path == "/v1/traces"
            request = ExportTraceServiceRequest.FromString(body)
            for group in request.resource_spans:
                resource = values_of(group.resource.attributes)
                for scope in group.scope_spans:
                    self.spans += [Received(s, resource, scope.scope.name) for s in scope.spans]
            response.partial_success.rejected_spans = self.rejects
        answer = response.SerializeToString()
        handler.send_response(status)
        handler.send_header("content-type", "application/x-protobuf")
        handler.send_header("content-length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)


@contextmanager
def serve_collector() -> Iterator[Collector]:
    """Run a collector on a free port."""
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            collector.handle(self)

        def log_message(self, *_: Any) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
