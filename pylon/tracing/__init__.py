"""Tracing: spans of requests for an OpenTelemetry collector (PYLON_OTEL_ENDPOINT).

    spans     a span, and spans as OTLP's protobuf
    exporter  the bounded queue of a worker's spans, and their requests to the collector
"""
