"""Trace context (W3C): the trace that a request belongs to, from its `traceparent` field.

The HTTP middleware parses the field of each request that has one. Log lines, exemplars and spans
carry the trace id. The traceparent of the request that a greenlet works for stands in `outgoing`;
what this process sends to other servers meanwhile carries it on.

Invariant: a field that does not follow the specification is ignored, as it demands. Called by
`pylon.api.http` and `workers.identity`.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Final, NamedTuple

HEADER: Final = "traceparent"
_FIELD: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.{0,200})?"
)
_VERSION: Final = "00"

outgoing: Final[ContextVar[str | None]] = ContextVar("outgoing", default=None)


class TraceContext(NamedTuple):
    """A trace, and the span within it that caused a request."""

    trace_id: str
    span_id: str
    is_sampled: bool

    def traceparent(self) -> str:
        """Return the field for requests that this one causes."""
        return f"{_VERSION}-{self.trace_id}-{self.span_id}-{self.is_sampled:02x}"


def parse_traceparent(field: str) -> TraceContext | None:
    """Return the context of a `traceparent` field; None if it is malformed."""
    found = _FIELD.fullmatch(field)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == _VERSION and rest is not None:
        return None  # later versions may have further parts
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))
