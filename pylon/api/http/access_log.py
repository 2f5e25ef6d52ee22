"""The access log: a line for a share of the requests (PYLON_ACCESS_LOG), none by default.

A line has the method, the route's template, the status, the duration, the size of the body as
sent, the request id, and the trace id if the request names one. A streamed response gets its line
at its end.

Invariant: nothing that a client chose but the id and the trace: no path, query, header, cookie or
body. Probes have no line. Log event: request.answered. Called by `middleware`.
"""

from __future__ import annotations

from typing import Any

import falcon

from pylon.api.http.request_metrics import NO_ROUTE, method_label
from pylon.clock import RandomSource
from pylon.log import get_logger

_log = get_logger("http")


class AccessLog:
    """The access log of one HTTP worker."""

    __slots__ = ("_random", "_share")

    def __init__(self, share: float, random: RandomSource) -> None:
        """Args: `share` is PYLON_ACCESS_LOG, from 0 to 1."""
        self._share = share
        self._random = random

    def takes(self) -> bool:
        """Return whether the request that asks gets a line."""
        share = self._share
        return share > 0.0 and (share >= 1.0 or self._random.uniform(0.0, 1.0) < share)

    def write(
        self, req: falcon.Request, resp: falcon.Response, elapsed_s: float, size_bytes: int
    ) -> None:
        """Write the line of a request whose response is complete."""
        _log.info("request.answered", **line_of(req, resp, elapsed_s), size_bytes=size_bytes)


def line_of(req: falcon.Request, resp: falcon.Response, elapsed_s: float) -> dict[str, Any]:
    """Return what a log line about a request has. None of it can hold a secret."""
    context = req.context
    line = {
        "request_id": context.request_id,
        "method": method_label(req.method),
        "route": req.uri_template or NO_ROUTE,
        "status": resp.status_code,
        "duration_s": round(elapsed_s, 6),
    }
    trace = getattr(context, "trace", None)
    if trace is not None:
        line["trace_id"] = trace.trace_id
    return line
